-- name: number_accounts
-- Numbers for accounts that have none; of all that were asked for.
with added as (
    insert into queue_accounts (account_id) select distinct unnest(%(accounts)s::uuid[])
    on conflict do nothing returning account_id, number
)
select account_id, number from added
union all
select account_id, number from queue_accounts where account_id = any(%(accounts)s::uuid[]);

-- name: gates
-- Accounts this process does not know yet (behind %(known)s), and those that are parked or served by few at once.
select q.number, q.account_id, a.concurrency, coalesce(a.parked_until > coalesce(%(now)s, now()), false) as parked
from queue_accounts q
left join accounts a on a.id = q.account_id
where q.number > %(known)s or a.concurrency is not null or a.parked_until > coalesce(%(now)s, now());

-- name: claim_settlements
-- Writes the ends of these claims, but where an end of them stands; as they stand then. The lock keeps rescues of the
-- worker away until the transaction is over.
with locked as (
    select pg_advisory_xact_lock(hashtextextended('settle:' || %(worker)s::text, 0))
), added as (
    insert into queue_settlements (worker, task, attempts, account_id, outcome)
    select %(worker)s, task, attempts, account_id, outcome
    from locked, unnest(%(tasks)s::bigint[], %(attempts)s::integer[], %(accounts)s::uuid[], %(outcomes)s::jsonb[])
        as c (task, attempts, account_id, outcome)
    on conflict do nothing
    returning task
)
select task from added;

-- name: rescue_settlements
-- Takes claims away from a dead worker, those whose end does not stand; null where an end is just being written.
with locked as materialized (
    select pg_try_advisory_xact_lock(hashtextextended('settle:' || %(worker)s::text, 0)) as free
), added as (
    insert into queue_settlements (worker, task, attempts, account_id)
    select %(worker)s, task, attempts, account_id
    from locked, unnest(%(tasks)s::bigint[], %(attempts)s::integer[], %(accounts)s::uuid[])
        as c (task, attempts, account_id)
    where free
    on conflict do nothing
    returning task
)
select free, (select count(*) from added) as taken from locked;

-- name: settlements
-- How claims of a worker ended.
select task, attempts, account_id, outcome from queue_settlements where worker = %(worker)s order by task;

-- name: forget_settlements
-- Redis has these of a worker now.
delete from queue_settlements where worker = %(worker)s and task = any(%(tasks)s::bigint[]);

-- name: unregistered_settlers
-- Workers that are gone, whose ends stand.
select distinct worker from queue_settlements s where not exists (select from workers w where w.id = s.worker);

-- name: worker_ids
-- All that are registered.
select id from workers;

-- name: worker_host
-- Where a worker runs.
select host from workers where id = %(worker)s;

-- name: copy_outbox
-- Tasks of the caller's transaction.
copy queue_outbox (account_id, entity_type, entity_id, operation, run_id, task) from stdin;

-- name: in_outbox
-- Which of these things to do wait there, as this transaction sees it.
select distinct o.account_id, o.entity_type, o.entity_id, o.operation
from unnest(%(account_id)s::uuid[], %(entity_type)s::text[], %(entity_id)s::text[], %(operation)s::text[])
    as t (account_id, entity_type, entity_id, operation)
join queue_outbox o using (account_id, entity_type, entity_id, operation);

-- name: take_outbox
-- The next to be sent to Redis; they go with this transaction, which commits when Redis has them.
delete from queue_outbox
where n = any(array(select n from queue_outbox order by n limit %(limit)s for update skip locked))
returning n, account_id, task;

-- name: outbox_runs
-- How many tasks of these runs are on their way.
select run_id, count(*) as tasks from queue_outbox where run_id = any(%(runs)s::uuid[]) group by run_id;

-- name: open_beside_redis
-- Those of the runs that have a task on its way, or an open one in the table, see `unfinished_of_runs`.
select run_id from unnest(%(runs)s::uuid[]) as r (run_id)
where exists (select from queue_outbox o where o.run_id = r.run_id) or exists (
    select from sync_queue q
    where q.run_id = r.run_id
      and (q.status = 'processing' or q.status = 'pending' and q.account_id <> all(%(waiting)s::uuid[])));

-- name: count_outbox
-- How many tasks are on their way.
select count(*) as tasks from queue_outbox;

-- name: forget_outbox
-- What is on its way for an account that is no longer known.
delete from queue_outbox where account_id = %(account_id)s;

-- name: runs_in_redis
-- Runs that may have open tasks in Redis, and which somebody still has to end.
select id from runs r
where in_redis = '{}'
  and (finished_at is null or exists (
      select from sync_queue q where q.run_id = r.id and q.status in ('pending', 'processing')));

-- name: left_redis
-- A run that has no open task in Redis any more.
update runs set in_redis = %(counts)s where id = %(id)s and in_redis = '{}';
