-- name: acquire
-- One grant, or how long to wait for it; see limiter_acquire in the migrations.
select grant_id, wait, reason
from limiter_acquire(%(principal)s, %(account)s, %(units)s, %(budget)s, %(window)s, %(parallel)s,
                     %(account_parallel)s, %(worker)s, %(ttl)s);

-- name: free
-- The request is over: its slot is free, its units stay in the window from now on.
update limiter_grants set done_at = clock_timestamp() where id = %(grant)s and done_at is null;

-- name: pause_principal
-- Nobody may send for this token before then.
insert into limiter_principals (principal, paused_until)
values (%(principal)s, clock_timestamp() + %(wait)s * interval '1 second')
on conflict (principal) do update
set paused_until = greatest(limiter_principals.paused_until, excluded.paused_until);

-- name: forget_principals
-- Drops the rows of tokens that nobody has used for a day.
with idle as (
    delete from limiter_grants where coalesce(done_at, granted_at) < now() - interval '1 hour' returning principal)
delete from limiter_principals p
where p.paused_until < now() - interval '1 day'
  and not exists (select from limiter_grants g where g.principal = p.principal);
