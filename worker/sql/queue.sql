-- name: enqueue
-- Adds tasks given as parallel arrays; a pending twin takes over the newer payload, run and higher rank.
-- A twin that is being processed does not count: it may have read what has changed since.
insert into sync_queue
    (queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts, scheduled_at)
select queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts,
       coalesce(scheduled_at, %(now)s, now())
from unnest(%(queue)s::text[], %(account_id)s::uuid[], %(entity_type)s::text[], %(entity_id)s::text[],
            %(operation)s::text[], %(priority)s::integer[], %(payload)s::jsonb[], %(run_id)s::uuid[],
            %(max_attempts)s::integer[], %(scheduled_at)s::timestamptz[])
    as t (queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts, scheduled_at)
on conflict (account_id, entity_type, entity_id, operation) where status = 'pending'
do update set priority = greatest(sync_queue.priority, excluded.priority),
              payload = excluded.payload,
              run_id = coalesce(excluded.run_id, sync_queue.run_id),
              scheduled_at = least(sync_queue.scheduled_at, excluded.scheduled_at),
              updated_at = now()
returning id, xmax = 0 as added;

-- name: create_incoming
-- Where COPY puts a bulk before it coalesces; a transaction may bring several.
create temporary table if not exists incoming (
    n bigint, queue text, account_id uuid, entity_type text, entity_id text, operation text, priority integer,
    payload jsonb, run_id uuid, max_attempts integer, scheduled_at timestamptz
) on commit drop;
truncate incoming;

-- name: copy_incoming
-- The bulk itself.
copy incoming from stdin;

-- name: enqueue_incoming
-- `enqueue` for what COPY brought; of twins inside the bulk the last one wins.
with added as (
    insert into sync_queue
        (queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts, scheduled_at)
    select queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts,
           coalesce(scheduled_at, %(now)s, now())
    from incoming i
    where not exists (
        select from incoming later
        where later.account_id = i.account_id and later.entity_type = i.entity_type
          and later.entity_id = i.entity_id and later.operation = i.operation and later.n > i.n)
    order by n
    on conflict (account_id, entity_type, entity_id, operation) where status = 'pending'
    do update set priority = greatest(sync_queue.priority, excluded.priority),
                  payload = excluded.payload,
                  run_id = coalesce(excluded.run_id, sync_queue.run_id),
                  scheduled_at = least(sync_queue.scheduled_at, excluded.scheduled_at),
                  updated_at = now()
    returning xmax = 0 as added
)
select count(*) filter (where added) as added, count(*) as all from added;

-- name: wake
-- Wakes the workers that sleep; sent with the commit.
select pg_notify('sync_queue', queue) from unnest(%(queues)s::text[]) as t (queue);

-- name: queues
-- The queues that have pending tasks, by a loose scan of the claim's index.
with recursive names (queue) as (
    (select queue from sync_queue where status = 'pending' order by queue limit 1)
    union all
    (select next.queue from names
     cross join lateral (select queue from sync_queue
                         where status = 'pending' and sync_queue.queue > names.queue
                         order by queue limit 1) next)
)
select queue from names;

-- name: claim
-- Takes the next batch: one account's tasks of one kind, from the first lane that has any.
--
-- `waiting` is a loose index scan (one probe per account with pending work, not per task), so that the
-- cost does not depend on how many rows wait. `heads` is each account's best due task; a parked account
-- drops out as a whole. They are tried in order of lane, rank, then accounts after %(after)s, the one this
-- worker served last: the rotation that keeps a large account from starving a small one.
-- `head` locks the first that no other worker is just claiming; `batch` adds the same account's tasks of
-- the same kind. A task whose twin is being processed waits for it: one object is never written by two
-- workers at once.
with recursive lanes as (
    select queue, lane from unnest(%(queues)s::text[]) with ordinality as t (queue, lane)
), waiting (lane, queue, account_id) as (
    select lanes.lane, lanes.queue, first.account_id
    from lanes cross join lateral (
        select account_id from sync_queue
        where status = 'pending' and queue = lanes.queue order by account_id limit 1) first
    union all
    select waiting.lane, waiting.queue, next.account_id
    from waiting cross join lateral (
        select account_id from sync_queue
        where status = 'pending' and queue = waiting.queue and account_id > waiting.account_id
        order by account_id limit 1) next
), heads as (
    select waiting.lane, best.*
    from waiting cross join lateral (
        select id, queue, account_id, entity_type, operation, priority, rescues from sync_queue q
        where status = 'pending' and queue = waiting.queue and account_id = waiting.account_id
          and scheduled_at <= coalesce(%(now)s, now())
          and not exists (
              select from sync_queue busy
              where busy.status = 'processing' and busy.account_id = q.account_id
                and busy.entity_type = q.entity_type and busy.entity_id = q.entity_id
                and busy.operation = q.operation)
        order by priority desc, id limit 1) best
    where not exists (
        select from accounts parked
        where parked.id = waiting.account_id and parked.parked_until > coalesce(%(now)s, now()))
    order by lane, best.priority desc, waiting.account_id <= %(after)s, waiting.account_id
), head as (
    select heads.*
    from heads cross join lateral (
        select from sync_queue
        where sync_queue.id = heads.id and status = 'pending' for update skip locked) locked
    limit 1
), batch as (
    select q.id
    from sync_queue q join head using (queue, account_id)
    where q.status = 'pending' and q.entity_type = head.entity_type and q.operation = head.operation
      and q.scheduled_at <= coalesce(%(now)s, now())
      and not exists (
          select from sync_queue busy
          where busy.status = 'processing' and busy.account_id = q.account_id
            and busy.entity_type = q.entity_type and busy.entity_id = q.entity_id
            and busy.operation = q.operation)
    order by q.priority desc, q.id
    limit (select greatest(1, %(limit)s >> greatest(0, rescues - 2)) from head)
    for update of q skip locked
)
update sync_queue q
set status = 'processing', worker = %(worker)s, attempts = attempts + 1, started_at = now(), updated_at = now(),
    error = null
from batch where q.id = batch.id
returning q.id, q.queue, q.account_id, q.entity_type, q.entity_id, q.operation, q.priority, q.payload, q.attempts,
          q.max_attempts, q.run_id, q.worker,
          extract(epoch from now() - q.scheduled_at)::float as waited;

-- name: owned
-- Of these claims, those still ours, locked until the transaction ends: the fence against a lost lease.
select q.id
from sync_queue q
join unnest(%(ids)s::bigint[], %(attempts)s::integer[]) as c (id, attempts)
  on q.id = c.id and q.attempts = c.attempts
where q.status = 'processing' and q.worker = %(worker)s
order by q.id
for update of q;

-- name: held
-- What a worker holds.
select id from sync_queue where status = 'processing' and worker = %(worker)s for update;

-- name: complete
-- Ends claims with success; says what was done and why.
update sync_queue q
set status = 'completed', worker = null, result = c.result, error = c.note, completed_at = now(), updated_at = now()
from unnest(%(ids)s::bigint[], %(result)s::text[], %(note)s::text[]) as c (id, result, note)
where q.id = c.id and q.status = 'processing';

-- name: fail
-- Ends claims without success.
update sync_queue q
set status = 'failed', worker = null, result = 'failed', error = c.error, completed_at = now(), updated_at = now()
from unnest(%(ids)s::bigint[], %(error)s::text[]) as c (id, error)
where q.id = c.id and q.status = 'processing';

-- name: retry
-- Puts claims back for a later attempt, which this one counts towards. Where the same thing was asked
-- for again meanwhile, the newer row does the work and this one ends as coalesced.
update sync_queue q
set status = case when twin.id is null then 'pending' else 'completed' end,
    result = case when twin.id is not null then 'coalesced' end,
    completed_at = case when twin.id is not null then now() end,
    worker = null, error = c.error, updated_at = now(),
    scheduled_at = coalesce(%(now)s, now()) + c.delay * interval '1 second'
from unnest(%(ids)s::bigint[], %(delay)s::float[], %(error)s::text[]) as c (id, delay, error)
join sync_queue mine on mine.id = c.id
left join sync_queue twin
  on twin.status = 'pending' and twin.account_id = mine.account_id and twin.entity_type = mine.entity_type
 and twin.entity_id = mine.entity_id and twin.operation = mine.operation
where q.id = c.id and q.status = 'processing';

-- name: snooze
-- Puts claims back for later without counting the attempt.
update sync_queue q
set status = case when twin.id is null then 'pending' else 'completed' end,
    result = case when twin.id is not null then 'coalesced' end,
    completed_at = case when twin.id is not null then now() end,
    worker = null, attempts = q.attempts - 1, error = c.reason, updated_at = now(),
    scheduled_at = coalesce(%(now)s, now()) + c.wait * interval '1 second'
from unnest(%(ids)s::bigint[], %(wait)s::float[], %(reason)s::text[]) as c (id, wait, reason)
join sync_queue mine on mine.id = c.id
left join sync_queue twin
  on twin.status = 'pending' and twin.account_id = mine.account_id and twin.entity_type = mine.entity_type
 and twin.entity_id = mine.entity_id and twin.operation = mine.operation
where q.id = c.id and q.status = 'processing';

-- name: release
-- Hands claims back as if never taken.
update sync_queue q
set status = case when twin.id is null then 'pending' else 'completed' end,
    result = case when twin.id is not null then 'coalesced' end,
    completed_at = case when twin.id is not null then now() end,
    worker = null, attempts = q.attempts - 1, updated_at = now()
from unnest(%(ids)s::bigint[]) as c (id)
join sync_queue mine on mine.id = c.id
left join sync_queue twin
  on twin.status = 'pending' and twin.account_id = mine.account_id and twin.entity_type = mine.entity_type
 and twin.entity_id = mine.entity_id and twin.operation = mine.operation
where q.id = c.id and q.status = 'processing';

-- name: lock_dead_workers
-- Workers whose lease is over, or whose session is gone: the lock of a killed process is free at once.
-- A start of the server ends all sessions, so the lock tells only of workers heard of since.
select id, host, pid, name, extract(epoch from coalesce(%(now)s, now()) - seen_at)::float as silent
from workers w
where lease_until < coalesce(%(now)s, now())
   or (seen_at > pg_postmaster_start_time()
       and not exists (
           select from pg_locks l
           where l.locktype = 'advisory' and l.classid = %(lock_class)s and l.objid = w.id::integer::oid
             and l.objsubid = 2 and l.granted
             and l.database = (select oid from pg_database where datname = current_database())))
for update skip locked;

-- name: rescue
-- Takes the claims of dead workers back. A death is not counted as an attempt but as a rescue: the next
-- claim that begins with a task rescued before takes half as many with it, from the third death on (see
-- `claim`), so that one which kills its worker ends up alone and fails alone, after %(rescues)s deaths.
update sync_queue q
set status = case when twin.id is not null then 'completed'
                  when mine.rescues + 1 >= %(rescues)s then 'failed' else 'pending' end,
    result = case when twin.id is not null then 'coalesced'
                  when mine.rescues + 1 >= %(rescues)s then 'failed' end,
    completed_at = case when twin.id is not null or mine.rescues + 1 >= %(rescues)s
                        then coalesce(%(now)s, now()) end,
    error = 'worker ' || mine.worker || ' died while it ran, ' || mine.rescues + 1 || ' in all',
    attempts = mine.attempts - 1, rescues = mine.rescues + 1,
    worker = null, scheduled_at = coalesce(%(now)s, now()), updated_at = now()
from (select * from sync_queue
      where status = 'processing' and (worker = any(%(workers)s::bigint[])
         or not exists (select from workers where workers.id = sync_queue.worker))
      order by id for update skip locked) mine
left join sync_queue twin
  on twin.status = 'pending' and twin.account_id = mine.account_id and twin.entity_type = mine.entity_type
 and twin.entity_id = mine.entity_id and twin.operation = mine.operation
where q.id = mine.id
returning q.id, q.queue, q.status, q.run_id;

-- name: prune
-- Deletes ended tasks past their keeping time, a bounded number at once.
delete from sync_queue
where id = any(array(
    select id from sync_queue
    where (status = 'completed' and completed_at < coalesce(%(now)s, now()) - %(completed)s * interval '1 day')
       or (status = 'failed' and completed_at < coalesce(%(now)s, now()) - %(failed)s * interval '1 day')
    limit %(limit)s));

-- name: retry_failed
-- Gives failed tasks a new set of attempts, except where the same thing is pending already.
update sync_queue q
set status = 'pending', attempts = 0, rescues = 0, result = null, completed_at = null, scheduled_at = now(),
    updated_at = now()
where q.id = any(array(
    select distinct on (account_id, entity_type, entity_id, operation) id
    from sync_queue f
    where status = 'failed'
      and (%(ids)s::bigint[] is null or id = any(%(ids)s::bigint[]))
      and (%(account_id)s::uuid is null or account_id = %(account_id)s::uuid)
      and not exists (
          select from sync_queue p
          where p.status = 'pending' and p.account_id = f.account_id and p.entity_type = f.entity_type
            and p.entity_id = f.entity_id and p.operation = f.operation)
    order by account_id, entity_type, entity_id, operation, id desc))
returning id, queue, run_id;

-- name: stats
-- How many tasks stand where, per queue, account and status, and how long the oldest due one has waited.
select queue, account_id, status, count(*) as tasks,
       extract(epoch from coalesce(%(now)s, now()) - min(scheduled_at) filter (
           where status = 'pending' and scheduled_at <= coalesce(%(now)s, now())))::float as oldest_seconds
from sync_queue
group by queue, account_id, status
order by queue, account_id, status;

-- name: oldest
-- How long the oldest due pending task has waited; reads pending rows only, so it may be asked often.
select extract(epoch from coalesce(%(now)s, now()) - min(scheduled_at))::float as seconds
from sync_queue where status = 'pending' and scheduled_at <= coalesce(%(now)s, now());

-- name: peek
-- The newest tasks of a status, whole rows.
select id, queue, account_id, entity_type, entity_id, operation, priority, status, payload, attempts, max_attempts,
       run_id, worker, result, error, scheduled_at, started_at, completed_at, created_at, updated_at
from sync_queue
where status = %(status)s and (%(account_id)s::uuid is null or account_id = %(account_id)s::uuid)
order by updated_at desc, id desc
limit %(limit)s;
