-- name: breaker
-- Whether an account's breaker is open, why, and for how long it must not even be tried.
select reason, extract(epoch from open_until - coalesce(%(now)s, clock_timestamp()))::float as wait
from breakers where account_id = %(account)s and principal = %(principal)s and open;

-- name: lock_breaker
-- The account's row, made if need be and locked, so that failures are counted one after the other. Another
-- token begins with a closed one.
insert into breakers (account_id, principal) values (%(account)s, %(principal)s)
on conflict (account_id) do update
set principal = excluded.principal,
    open = breakers.open and breakers.principal = excluded.principal,
    open_until = case when breakers.principal = excluded.principal then breakers.open_until else '-infinity' end
returning open;

-- name: record_failure
-- One more failed request; those older than the window go. After `lock_breaker`, in its transaction.
with old as (
    delete from breaker_failures
    where principal = %(principal)s
      and happened_at <= coalesce(%(now)s, clock_timestamp()) - %(window)s * interval '1 second'
)
insert into breaker_failures (principal, key, throttled, happened_at)
values (%(principal)s, %(key)s, %(throttled)s, coalesce(%(now)s, clock_timestamp()));

-- name: count_failures
-- How many like this one, and how many 429s, the window holds.
select count(*) filter (where key = %(key)s) as alike, count(*) filter (where throttled) as throttled
from breaker_failures
where principal = %(principal)s
  and happened_at > coalesce(%(now)s, clock_timestamp()) - %(window)s * interval '1 second';

-- name: open_breaker
-- Opens it for `base` seconds, or twice as long as the last time if that was lately, at most `longest`; unless
-- it is open already.
update breakers
set open = true, reason = %(reason)s, probe_until = null, opened = turn.number,
    open_until = coalesce(%(now)s, clock_timestamp())
                 + least(%(longest)s, %(base)s * 2.0 ^ least(turn.number - 1, 20)) * interval '1 second'
from (select case when open_until > coalesce(%(now)s, clock_timestamp()) - %(lately)s * interval '1 second'
                  then opened + 1 else 1 end as number
      from breakers where account_id = %(account)s) turn
where account_id = %(account)s and not (open and open_until > coalesce(%(now)s, clock_timestamp()))
returning extract(epoch from open_until - coalesce(%(now)s, clock_timestamp()))::float as wait;

-- name: take_probe
-- The right to try whether it may be closed, for one at a time.
update breakers
set probe_until = coalesce(%(now)s, clock_timestamp()) + %(seconds)s * interval '1 second'
where account_id = %(account)s and principal = %(principal)s and open
  and open_until <= coalesce(%(now)s, clock_timestamp())
  and coalesce(probe_until <= coalesce(%(now)s, clock_timestamp()), true)
returning account_id;

-- name: close_breaker
-- Requests may be sent again; when it was last open stays known, so that the next wait is longer.
update breakers set open = false, reason = null, probe_until = null
where account_id = %(account)s and principal = %(principal)s;

-- name: forget_failures
-- An operator's word, or an opening: what was counted so far counts no more.
delete from breaker_failures where principal = %(principal)s;
