-- name: acquire
-- A reservation and how long to wait for it, or only how long to wait before asking again; see
-- limiter_acquire in the migrations.
select grant_id, wait, reason
from limiter_acquire(%(principal)s, %(account)s, %(units)s, %(budget)s, %(window)s, %(lag)s, %(parallel)s,
                     %(account_parallel)s, %(longest)s, %(worker)s, %(ttl)s);

-- name: postpone
-- The request is sent later than its turn: its units stay in the window for so much longer.
update limiter_grants set leaves_at = leaves_at + %(late)s * interval '1 second' where id = %(grant)s;

-- name: free
-- The request is over: its slot is free, and it was counted by now at the latest.
update limiter_grants
set done_at = clock_timestamp(),
    leaves_at = least(leaves_at, clock_timestamp() + %(window)s * interval '1 second')
where id = %(grant)s and done_at is null;

-- name: pause_principal
-- Nobody may send for this token before then.
insert into limiter_principals (principal, paused_until)
values (%(principal)s, clock_timestamp() + %(wait)s * interval '1 second')
on conflict (principal) do update
set paused_until = greatest(limiter_principals.paused_until, excluded.paused_until);

-- name: forget_principals
-- Drops the rows of tokens that nobody has used for a day.
with idle as (delete from limiter_grants where leaves_at < now() - interval '1 hour' returning principal)
delete from limiter_principals p
where p.paused_until < now() - interval '1 day' and p.last_start < now() - interval '1 day'
  and not exists (select from limiter_grants g where g.principal = p.principal);
