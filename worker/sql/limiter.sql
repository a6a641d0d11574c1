-- name: ask
-- Whether this ticket's request may be sent now, else how long to wait before asking again; see limiter_ask in 0004.
select granted, wait, reason
from limiter_ask(%(ticket)s, %(principal)s, %(account)s, %(units)s, %(urgent)s, %(lag)s, %(longest)s, %(worker)s,
                 %(channel)s, %(reap)s, %(lock_class)s, %(ttl)s, %(budget)s, %(window)s, %(parallel)s,
                 %(account_parallel)s, %(poll)s, %(patience)s, %(catch_up)s);

-- name: free
-- The request is over, and what its answer's headers say.
select weight, neighbour from limiter_free(%(ticket)s, %(limit)s, %(remaining)s, %(budget)s, %(window)s, %(lag)s);

-- name: cancel
-- The request will not be sent.
select limiter_cancel(%(ticket)s);

-- name: pause_principal
-- Nobody may send for this token before then; for how long.
select wait from limiter_pause(%(principal)s, %(wait)s, %(steps)s, %(forgotten)s);

-- name: shrink_principal
-- One slot less for this token for a while; for how long nobody sends.
select wait from limiter_shrink(%(principal)s, %(parallel)s, %(breath)s, %(steps)s, %(forgotten)s);

-- name: standing
-- How things stand in these accounts: principals that must not send now, requests that wait, requests under way.
select (select count(*) from limiter_principals
        where paused_until > now() and split_part(principal, ':', 1) = any(%(accounts)s::uuid[]::text[])) as paused,
       (select count(*) from limiter_tickets where account_id = any(%(accounts)s::uuid[])) as waiting,
       (select count(*) from limiter_grants where account_id = any(%(accounts)s::uuid[]) and done_at is null) as requests;

-- name: hello
-- Says something on a channel, to find out whether it is heard.
select pg_notify(%(channel)s, 'hello');

-- name: forget_principals
-- Drops the rows of tokens that nobody has used for a day.
with idle as (delete from limiter_grants where leaves_at < now() - interval '1 hour'),
     dead as (delete from limiter_tickets where expires_at < now() - interval '1 hour')
delete from limiter_principals p
where p.paused_until < now() - interval '1 day' and p.last_start < now() - interval '1 day'
  and not exists (select from limiter_grants g where g.principal = p.principal and g.leaves_at > now() - interval '1 day');
