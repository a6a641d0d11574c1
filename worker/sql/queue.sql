-- name: enqueue
-- Adds tasks given as parallel arrays; a pending twin takes over the newer payload, run and higher rank.
-- A twin that is being processed does not count: it may have read what has changed since.
-- The same statement wakes the workers that sleep (see `wake`): one round trip and one commit.
with added as (
    insert into sync_queue
        (queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts, scheduled_at,
         ready)
    select queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts,
           coalesce(scheduled_at, %(now)s, now()), coalesce(scheduled_at <= coalesce(%(now)s, now()), true)
    from unnest(%(queue)s::text[], %(account_id)s::uuid[], %(entity_type)s::text[], %(entity_id)s::text[],
                %(operation)s::text[], %(priority)s::integer[], %(payload)s::jsonb[], %(run_id)s::uuid[],
                %(max_attempts)s::integer[], %(scheduled_at)s::timestamptz[])
        as t (queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts,
              scheduled_at)
    on conflict (account_id, entity_type, entity_id, operation) where status = 'pending'
    do update set queue = excluded.queue,
                  priority = greatest(sync_queue.priority, excluded.priority),
                  payload = excluded.payload,
                  run_id = coalesce(excluded.run_id, sync_queue.run_id),
                  scheduled_at = least(sync_queue.scheduled_at, excluded.scheduled_at),
                  ready = sync_queue.ready or excluded.ready,
                  updated_at = now()
    returning queue, ready, xmax = 0 as added
), woken as (
    select pg_notify('sync_queue', queue)
    from (select distinct queue from added where ready) q
    where %(always)s or exists (select from workers where asleep and q.queue like any(listens))
)
select count(*) filter (where added) as added, (select count(*) from woken) as woken from added;

-- name: enqueue_one
-- `enqueue` for a single task, which is what most producers have: no arrays, and a plan made once. Who is woken is
-- told the lane and the task, and need not look for it (see `claim_told`). Whether somebody sleeps at all tells a
-- sequence, at a tenth of what a look into `workers` costs (see migration 0012).
insert into sync_queue
    (queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts, scheduled_at, ready)
values (%(queue)s, %(account_id)s, %(entity_type)s, %(entity_id)s, %(operation)s, %(priority)s, %(payload)s, %(run_id)s,
        %(max_attempts)s, coalesce(%(scheduled_at)s::timestamptz, now()),
        coalesce(%(scheduled_at)s::timestamptz <= now(), true))
on conflict (account_id, entity_type, entity_id, operation) where status = 'pending'
do update set queue = excluded.queue,
              priority = greatest(sync_queue.priority, excluded.priority),
              payload = excluded.payload,
              run_id = coalesce(excluded.run_id, sync_queue.run_id),
              scheduled_at = least(sync_queue.scheduled_at, excluded.scheduled_at),
              ready = sync_queue.ready or excluded.ready,
              updated_at = now()
returning (xmax = 0)::integer as added,
          case when ready and now() <= to_timestamp(pg_sequence_last_value('asleep_until'))
               then tell_of_task(queue, priority, account_id, id) end as woken;

-- name: transaction_began
-- What `now()` is until the transaction ends.
select now();

-- name: reserve_ids
-- Where blocks of ids begin that are ours: the sequence goes on by a block at a time (see migration 0015).
select array_agg(nextval('sync_queue_id_seq')) as begins from generate_series(1, %(blocks)s);

-- name: copy_tasks
-- A bulk straight into the table, twice as fast; it fails as a whole where a twin is pending.
copy sync_queue (id, queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts)
from stdin (format binary);

-- name: copy_timed_tasks
-- The same where it is said when tasks are due.
copy sync_queue (id, queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts,
                 scheduled_at, ready)
from stdin (format binary);

-- name: create_incoming
-- Where COPY puts a bulk before it coalesces; a transaction may bring several.
create temporary table if not exists incoming (
    n bigint, queue text, account_id uuid, entity_type text, entity_id text,
    operation text, priority integer, payload jsonb, run_id uuid, max_attempts integer, scheduled_at timestamptz,
    ready boolean
) on commit drop;
truncate incoming;

-- name: copy_incoming
-- The bulk itself.
copy incoming (n, queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts,
               scheduled_at, ready)
from stdin (format binary);

-- name: enqueue_incoming
-- `enqueue` for what COPY brought; of twins inside the bulk the last one wins.
with added as (
    insert into sync_queue
        (queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts, scheduled_at,
         ready)
    select queue, account_id, entity_type, entity_id, operation, priority, payload, run_id, max_attempts,
           scheduled_at, ready
    from incoming i
    where not exists (
        select from incoming later
        where later.account_id = i.account_id and later.entity_type = i.entity_type
          and later.entity_id = i.entity_id and later.operation = i.operation and later.n > i.n)
    order by n
    on conflict (account_id, entity_type, entity_id, operation) where status = 'pending'
    do update set queue = excluded.queue,
                  priority = greatest(sync_queue.priority, excluded.priority),
                  payload = excluded.payload,
                  run_id = coalesce(excluded.run_id, sync_queue.run_id),
                  scheduled_at = least(sync_queue.scheduled_at, excluded.scheduled_at),
                  ready = sync_queue.ready or excluded.ready,
                  updated_at = now()
    returning xmax = 0 as added
)
select count(*) filter (where added) as added, count(*) as all from added;

-- name: wake
-- Wakes the workers that sleep and listen to one of these queues; sent with the commit. Idle-gated, since
-- a NOTIFY in every transaction halves the rate of many producers. A worker says that it sleeps before its
-- last looks; in a transaction that goes on for long it may do so unseen, hence `always`.
select pg_notify('sync_queue', queue) from unnest(%(queues)s::text[]) as t (queue)
where %(always)s or exists (select from workers where asleep and t.queue like any(listens));

-- name: discover
-- The lanes that may be claimed from: every (queue, rank, account) with a due task, for queues that match one
-- of the patterns, the first that matches counting. Tasks whose time has come are let into the claim's index
-- on the way (`promoted`; the scans of this statement do not see them yet).
--
-- Loose index scans, one probe per queue and one per lane, not per task: the cost does not depend on how many
-- tasks wait. A worker asks once a second and then claims lane after lane: `claim` is directed, so that
-- neither the number of accounts nor dead rows (see there) cost it anything.
with recursive patterns as (
    select pattern, lane from unnest(%(patterns)s::text[]) with ordinality as t (pattern, lane)
), promoted as (
    update sync_queue
    set ready = true
    where id = any(array(
        select id from sync_queue
        where status = 'pending' and not ready and scheduled_at <= coalesce(%(now)s, now())
        order by scheduled_at limit 10000 for update skip locked))
    returning queue, -priority as rank, account_id
), names (queue) as (
    (select queue from sync_queue where %(wild)s and status = 'pending' and ready order by queue limit 1)
    union all
    select next.queue
    from names cross join lateral (
        select queue from sync_queue
        where status = 'pending' and ready and sync_queue.queue > names.queue
        order by queue limit 1) next
), lanes (queue, lane) as (
    select queue, min(lane)
    from (select queue from names union select queue from promoted union select unnest(%(names)s::text[])) known
    join patterns on queue like pattern
    where not exists (
        select from paused_queues p where known.queue like p.pattern and p.until > coalesce(%(now)s, now()))
    group by queue
), heads (lane, queue, rank, account_id) as (
    select lanes.lane, lanes.queue, first.rank, first.account_id
    from lanes cross join lateral (
        select -priority as rank, account_id from sync_queue
        where status = 'pending' and ready and queue = lanes.queue
        order by -priority, account_id limit 1) first
    union all
    select heads.lane, heads.queue, next.rank, next.account_id
    from heads cross join lateral (
        select -priority as rank, account_id from sync_queue
        where status = 'pending' and ready and queue = heads.queue
          and (-priority, account_id) > (heads.rank, heads.account_id)
        order by -priority, account_id limit 1) next
)
select lane, queue, rank, account_id, a.concurrency
from (select * from heads union select lane, queue, rank, account_id from promoted join lanes using (queue)) found
left join accounts a on a.id = account_id
where coalesce(a.parked_until <= coalesce(%(now)s, now()), true);

-- name: claim
-- Takes the next batch of one lane: tasks of one kind, the oldest first, beginning behind %(mark)s.
--
-- The mark is the last task this worker took from the lane. Without it every claim would walk over the index
-- entries of all tasks taken before it, for as long as some transaction is open that could still see them
-- (VACUUM may not remove them): measured, the rate falls to a third within 75,000 dead rows. With it the
-- rate stays. What lands below the mark (handed back, or committed late) is found when the worker has
-- looked for lanes anew, a second later, and begins from the front.
-- A task whose twin is being processed waits for it: one object is never written by two workers at once.
-- As a scalar subquery, so that it is looked up by its key whatever the planner thinks of the table.
-- A row comes back also when nothing is taken: `seen` and `last` tell whether there is more behind.
-- The commit does not wait for the disk (`at_once`). A server that crashes within the next moments may forget the claim:
-- then the task waits as before, whoever takes it next does it, and what the first one writes for it is refused, as
-- after a lost lease. Each end of a task, and each effect, does wait, and takes the claims before it along.
with front as materialized (
    select ctid, id, entity_type, entity_id, operation, rescues from sync_queue
    where status = 'pending' and ready and queue = %(queue)s and -priority = %(rank)s and account_id = %(account)s
      and id > %(mark)s
      and scheduled_at <= coalesce(%(now)s, now())  -- a release from before `ready` may have put it back for later
      and (%(concurrency)s::integer is null or %(concurrency)s > (
          select count(distinct worker) from sync_queue
          where status = 'processing' and account_id = %(account)s and worker <> %(worker)s))
      and not exists (
          select from paused_queues p where %(queue)s like p.pattern and p.until > coalesce(%(now)s, now()))
    order by id limit %(limit)s for update skip locked
), free as materialized (
    select ctid, id, entity_type, operation, rescues from front
    where (select busy.id from sync_queue busy
           where busy.status = 'processing' and busy.account_id = %(account)s
             and busy.entity_type = front.entity_type and busy.entity_id = front.entity_id
             and busy.operation = front.operation limit 1) is null
), head as (
    select entity_type, operation, rescues from free order by id limit 1
), batch as materialized (
    select ctid, id from free join head using (entity_type, operation) order by id
    limit (select greatest(1, %(limit)s >> greatest(0, rescues - 2)) from head)
), taken as (
    update sync_queue q
    set status = 'processing', worker = %(worker)s, attempts = attempts + 1, started_at = now(), updated_at = now(),
        error = null, error_class = null
    from batch where q.ctid = batch.ctid
    returning q.id, q.queue, q.account_id, q.entity_type, q.entity_id, q.operation, q.priority, q.payload::text,
              q.attempts, q.max_attempts, q.run_id, q.worker,
              extract(epoch from now() - q.scheduled_at)::float as waited
)
select t.*, seen.seen, seen.last, seen.left_out
from (select count(*) as seen, max(id) as last,
             min(id) filter (where id not in (select id from batch)) as left_out,
             set_config('synchronous_commit', 'off', true) as at_once from front) seen
left join taken t on true
order by t.id;

-- name: claim_told
-- Takes the one task this worker has been told of: `claim` for who waits with nothing to do, at half its cost. What
-- `discover` and `claim` see to is seen to here; an account with a bound to its workers is left to them.
-- `limit 1` keeps the planner with the key, whatever it thinks of the table.
with told as materialized (
    select ctid, status, ready, scheduled_at, queue, account_id, entity_type, entity_id, operation from sync_queue
    where id = %(task)s limit 1 for update skip locked
)
update sync_queue q
set status = 'processing', worker = %(worker)s, attempts = attempts + 1, started_at = now(), updated_at = now(),
    error = null, error_class = null
from told
where q.ctid = told.ctid and told.status = 'pending' and told.ready and told.scheduled_at <= now()
  and told.queue = %(queue)s
  and not exists (select from paused_queues p where %(queue)s like p.pattern and p.until > now())
  and not exists (
      select from accounts a where a.id = told.account_id and (a.concurrency is not null or a.parked_until > now()))
  and (select busy.id from sync_queue busy
       where busy.status = 'processing' and busy.account_id = told.account_id and busy.entity_type = told.entity_type
         and busy.entity_id = told.entity_id and busy.operation = told.operation limit 1) is null
returning q.id, q.queue, q.account_id, q.entity_type, q.entity_id, q.operation, q.priority, q.payload::text, q.attempts,
          q.max_attempts, q.run_id, q.worker, extract(epoch from now() - q.scheduled_at)::float as waited,
          set_config('synchronous_commit', 'off', true) as at_once;

-- name: lock_account
-- One claim at a time where the number of an account's workers is bounded.
select pg_advisory_xact_lock(hashtextextended('concurrency:' || %(account)s::text, 0));

-- name: owned
-- Of these claims, those still ours, locked until the transaction ends: the fence against a lost lease. Nor may the
-- locks of a worker that stands still in the transaction, its host frozen, keep its tasks from who rescues them.
select mine.id
from (select set_config('idle_in_transaction_session_timeout', %(patience)s, true) as bounded) transaction
cross join unnest(%(ids)s::bigint[], %(attempts)s::integer[]) as c (id, attempts)
cross join lateral (
    select id from sync_queue where id = c.id and attempts = c.attempts and worker = %(worker)s limit 1 for update) mine;

-- name: held
-- What a worker holds.
select id, attempts from sync_queue where status = 'processing' and worker = %(worker)s;

-- name: complete
-- Ends claims with success, those still ours; says what was done and why, each such way once, and which task went
-- which way.
--
-- The lateral look by key, here and in the verbs below, is what keeps the planner from reading the whole table, or
-- the small-looking index of what is processing with its dead entries. Who waited there for a row that a rescue
-- was just taking away goes on with the row as it is now, and older servers do not compare its place (ctid) anew:
-- so the fence stands in the update as well, as a `case`, which the planner cannot take for a way to find rows.
update sync_queue q
set status = 'completed', worker = null, completed_at = now(), updated_at = now(),
    result = (%(result)s::text[])[c.way], error = (%(note)s::text[])[c.way]
from unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(way)s::integer[]) as c (id, attempts, way)
cross join lateral (
    select ctid as place from sync_queue
    where id = c.id and attempts = c.attempts and worker = %(worker)s limit 1) mine
where q.ctid = mine.place
  and case when q.attempts = c.attempts then q.worker = %(worker)s end
returning q.id;

-- name: fail
-- Ends claims without success.
update sync_queue q
set status = 'failed', worker = null, result = 'failed', error = c.error, completed_at = now(), updated_at = now(),
    history = remember(q, 'fail', c.error_class, c.error), error_class = c.error_class
from (select id, attempts, (%(error)s::text[])[way] as error, (%(error_class)s::text[])[way] as error_class
      from unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(way)s::integer[]) as u (id, attempts, way)) c
cross join lateral (
    select ctid as place from sync_queue
    where id = c.id and attempts = c.attempts and worker = %(worker)s limit 1) mine
where q.ctid = mine.place
  and case when q.attempts = c.attempts then q.worker = %(worker)s end
returning q.id;

-- name: retry
-- Puts claims back for a later attempt, which this one counts towards. Where the same thing was asked
-- for again meanwhile, the newer row does the work and this one ends as coalesced.
update sync_queue q
set status = case when mine.twin is null then 'pending' else 'completed' end,
    result = case when mine.twin is not null then 'coalesced' end,
    completed_at = case when mine.twin is not null then now() end,
    worker = null, updated_at = now(), error = c.error,
    history = remember(q, 'retry', c.error_class, c.error), error_class = c.error_class, ready = c.delay <= 0,
    scheduled_at = coalesce(%(now)s, now()) + c.delay * interval '1 second'
from (select id, attempts, (%(delay)s::float[])[way] as delay, (%(error)s::text[])[way] as error,
             (%(error_class)s::text[])[way] as error_class
      from unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(way)s::integer[]) as u (id, attempts, way)) c
cross join lateral (
    select ctid as place, (
        select twin.id from sync_queue twin
        where twin.status = 'pending' and twin.account_id = s.account_id and twin.entity_type = s.entity_type
          and twin.entity_id = s.entity_id and twin.operation = s.operation limit 1) as twin
    from sync_queue s where id = c.id and attempts = c.attempts and worker = %(worker)s limit 1) mine
where q.ctid = mine.place
  and case when q.attempts = c.attempts then q.worker = %(worker)s end
returning q.id;

-- name: snooze
-- Puts claims back for later without counting the attempt.
update sync_queue q
set status = case when mine.twin is null then 'pending' else 'completed' end,
    result = case when mine.twin is not null then 'coalesced' end,
    completed_at = case when mine.twin is not null then now() end,
    worker = null, updated_at = now(), attempts = q.attempts - 1, error = c.reason,
    ready = c.wait <= 0, scheduled_at = coalesce(%(now)s, now()) + c.wait * interval '1 second'
from (select id, attempts, (%(wait)s::float[])[way] as wait, (%(reason)s::text[])[way] as reason
      from unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(way)s::integer[]) as u (id, attempts, way)) c
cross join lateral (
    select ctid as place, (
        select twin.id from sync_queue twin
        where twin.status = 'pending' and twin.account_id = s.account_id and twin.entity_type = s.entity_type
          and twin.entity_id = s.entity_id and twin.operation = s.operation limit 1) as twin
    from sync_queue s where id = c.id and attempts = c.attempts and worker = %(worker)s limit 1) mine
where q.ctid = mine.place
  and case when q.attempts = c.attempts then q.worker = %(worker)s end
returning q.id;

-- name: release
-- Hands claims back as if never taken.
update sync_queue q
set status = case when mine.twin is null then 'pending' else 'completed' end,
    result = case when mine.twin is not null then 'coalesced' end,
    completed_at = case when mine.twin is not null then now() end,
    worker = null, updated_at = now(), attempts = q.attempts - 1
from unnest(%(ids)s::bigint[], %(attempts)s::integer[]) as c (id, attempts)
cross join lateral (
    select ctid as place, (
        select twin.id from sync_queue twin
        where twin.status = 'pending' and twin.account_id = s.account_id and twin.entity_type = s.entity_type
          and twin.entity_id = s.entity_id and twin.operation = s.operation limit 1) as twin
    from sync_queue s where id = c.id and attempts = c.attempts and worker = %(worker)s limit 1) mine
where q.ctid = mine.place
  and case when q.attempts = c.attempts then q.worker = %(worker)s end
returning q.id;

-- name: dead_workers
-- Workers whose lease is over, or whose session is gone: the lock of a killed process is free at once.
-- A start of the server ends all sessions, so the lock tells only of workers heard of since; behind a pooler nobody
-- has one.
select id from workers w
where lease_until < coalesce(%(now)s, now())
   or (not pooled and seen_at > pg_postmaster_start_time()
       and not exists (
           select from pg_locks l
           where l.locktype = 'advisory' and l.classid = %(lock_class)s and l.objid = w.id::integer::oid
             and l.objsubid = 2 and l.granted
             and l.database = (select oid from pg_database where datname = current_database())));

-- name: lock_workers
-- Of these workers, those that nobody else is burying: apart from the look, which every worker takes all the time, and
-- whose locks would have a rescue pass them by.
select id, host, pid from workers where id = any(%(workers)s::bigint[]) for update skip locked;

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
    attempts = mine.attempts - 1, rescues = mine.rescues + 1, error_class = 'WorkerDied',
    history = remember(q, 'rescue', 'WorkerDied', 'worker ' || mine.worker || ' died while it ran'),
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
-- Deletes ended tasks past their keeping time, of each sort a bounded number at once.
-- Each sort by its index, the oldest first: with both in one condition and without an order the planner reads the table
-- from its start instead, whenever what ended since the last ANALYZE makes it believe that much is to go.
-- The conditions stand twice: a task that is retried meanwhile is not deleted when its row is free again.
delete from sync_queue
where ctid = any(
        array(
            select ctid from sync_queue
            where status = 'completed' and completed_at < coalesce(%(now)s, now()) - %(completed)s * interval '1 day'
            order by completed_at limit %(limit)s)
        || array(
            select ctid from sync_queue
            where status = 'failed' and completed_at < coalesce(%(now)s, now()) - %(failed)s * interval '1 day'
            order by completed_at limit %(limit)s))
  and status in ('completed', 'failed')
  and completed_at < coalesce(%(now)s, now()) - least(%(completed)s, %(failed)s) * interval '1 day';

-- name: retry_failed
-- Gives failed tasks a new set of attempts, except where the same thing is pending already. What an operator has
-- cancelled comes back only by name.
update sync_queue q
set status = 'pending', ready = true, attempts = 0, rescues = 0, result = null, completed_at = null,
    scheduled_at = now(), updated_at = now()
where q.id = any(array(
    select distinct on (account_id, entity_type, entity_id, operation) id
    from sync_queue f
    where status = 'failed'
      and (%(ids)s::bigint[] is null or id = any(%(ids)s::bigint[]))
      and (%(account_id)s::uuid is null or account_id = %(account_id)s::uuid)
      and (%(since)s::timestamptz is null or completed_at >= %(since)s::timestamptz)
      and (%(error_class)s::text is null or error_class = %(error_class)s::text)
      and (result is distinct from 'cancelled' or %(ids)s::bigint[] is not null or %(error_class)s::text is not null)
      and not exists (
          select from sync_queue p
          where p.status = 'pending' and p.account_id = f.account_id and p.entity_type = f.entity_type
            and p.entity_id = f.entity_id and p.operation = f.operation)
    order by account_id, entity_type, entity_id, operation, id desc))
  and q.status = 'failed'
returning id, queue, run_id;

-- name: cancel_tasks
-- Ends pending tasks on an operator's word, a bounded number behind %(mark)s: the sweep reads each row once. What a
-- worker is just taking is its.
update sync_queue q
set status = 'failed', result = 'cancelled', error = %(reason)s, error_class = 'Cancelled', completed_at = now(),
    updated_at = now(), history = remember(q, 'cancel', 'Cancelled', %(reason)s)
where q.id = any(array(
    select id from sync_queue
    where status = 'pending' and id > %(mark)s
      and (%(ids)s::bigint[] is null or id = any(%(ids)s::bigint[]))
      and (%(account_id)s::uuid is null or account_id = %(account_id)s::uuid)
      and (%(pattern)s::text is null or queue like %(pattern)s::text)
    order by id limit %(limit)s for update skip locked))
returning id;

-- name: count_processing
-- How many tasks are being processed, of those that `cancel` means.
select count(*) as tasks from sync_queue
where status = 'processing'
  and (%(ids)s::bigint[] is null or id = any(%(ids)s::bigint[]))
  and (%(account_id)s::uuid is null or account_id = %(account_id)s::uuid)
  and (%(pattern)s::text is null or queue like %(pattern)s::text);

-- name: routes
-- What the route of a pending task depends on, and where such tasks are.
select distinct queue, entity_type, account_id from sync_queue where status = 'pending';

-- name: reroute
-- Moves pending tasks to another queue, a bounded number behind %(mark)s. A row that somebody has locked is about to
-- be processed, or coalesces and so goes to its new queue by itself.
update sync_queue q
set queue = %(target)s, updated_at = now()
where q.id = any(array(
    select id from sync_queue
    where status = 'pending' and queue = %(queue)s and entity_type = %(entity_type)s and account_id = %(account_id)s
      and id > %(mark)s
    order by id limit %(limit)s for update skip locked))
returning id;

-- name: depart
-- Moves pending tasks, a bounded number behind %(mark)s, to the outbox that leads to Redis, in the form that
-- queue.lua's `enqueue` takes: they are in one place or in the other. Not those whose twin is being processed: it may
-- come back. Which runs have gone along is noted, see `finish_run`.
with gone as (
    delete from sync_queue
    where id = any(array(
        select id from sync_queue waiting
        where status = 'pending' and id > %(mark)s and not exists (
            select from sync_queue busy
            where busy.status = 'processing' and busy.account_id = waiting.account_id
              and busy.entity_type = waiting.entity_type and busy.entity_id = waiting.entity_id
              and busy.operation = waiting.operation)
        order by id limit %(limit)s for update skip locked))
    returning *
), noted as (
    insert into queue_outbox (account_id, entity_type, entity_id, operation, run_id, task)
    select account_id, entity_type, entity_id, operation, run_id, jsonb_build_array(
        queue, entity_type, entity_id, operation, priority, payload::text, coalesce(run_id::text, ''),
        coalesce(max_attempts, 0), microseconds(scheduled_at), jsonb_build_object(
            'attempts', attempts, 'rescues', rescues, 'error', coalesce(error, ''), 'class', coalesce(error_class, ''),
            'started', coalesce(microseconds(started_at), 0), 'created', microseconds(created_at),
            'updated', microseconds(updated_at),
            'history', coalesce((
                select jsonb_agg(jsonb_build_array(
                    microseconds((entry ->> 'at')::timestamptz)::text, entry ->> 'how', (entry ->> 'attempt')::integer,
                    coalesce(entry ->> 'class', ''), coalesce(entry ->> 'error', ''),
                    coalesce((entry ->> 'worker')::bigint, 0), coalesce(entry ->> 'host', ''),
                    coalesce(microseconds((entry ->> 'started_at')::timestamptz), 0)::text) order by n)
                from jsonb_array_elements(history) with ordinality as h (entry, n)), '[]')))::text
    from gone order by id
), opened as (
    update runs set in_redis = '{}' where id in (select run_id from gone) and in_redis is distinct from '{}'
)
select count(*) as tasks, max(id) as mark from gone;

-- name: arrive
-- Takes in tasks that waited in Redis, as they waited; a pending twin that was asked for later keeps its say.
with moved as (
    select * from jsonb_to_recordset(%(rows)s::jsonb) as t (
        n integer, queue text, account_id uuid, entity_type text, entity_id text, operation text, priority integer,
        payload jsonb, attempts integer, max_attempts integer, rescues integer, run_id uuid, error text,
        error_class text, history jsonb, scheduled_at timestamptz, started_at timestamptz, created_at timestamptz,
        updated_at timestamptz)
), added as (
    insert into sync_queue (queue, account_id, entity_type, entity_id, operation, priority, payload, attempts,
        max_attempts, rescues, run_id, error, error_class, history, scheduled_at, started_at, created_at, updated_at,
        ready)
    select queue, account_id, entity_type, entity_id, operation, priority, payload, attempts, max_attempts, rescues,
           run_id, error, error_class, nullif(history, 'null'), scheduled_at, started_at, created_at, updated_at,
           scheduled_at <= now()
    from moved order by n
    on conflict (account_id, entity_type, entity_id, operation) where status = 'pending'
    do update set (queue, payload, run_id) = (
                      select case when newer then excluded.queue else sync_queue.queue end,
                             case when newer then excluded.payload else sync_queue.payload end,
                             case when newer then coalesce(excluded.run_id, sync_queue.run_id)
                                  else coalesce(sync_queue.run_id, excluded.run_id) end
                      from (select excluded.updated_at >= sync_queue.updated_at as newer) which),
                  priority = greatest(sync_queue.priority, excluded.priority),
                  scheduled_at = least(sync_queue.scheduled_at, excluded.scheduled_at),
                  ready = sync_queue.ready or excluded.ready,
                  updated_at = now()
    returning queue, ready
), opened as (
    update runs set in_redis = '{}' where id in (select run_id from moved) and in_redis is distinct from '{}'
)
select pg_notify('sync_queue', queue) from (select distinct queue from added where ready) q
where exists (select from workers where asleep and q.queue like any(listens));

-- name: open_tasks
-- How many tasks of the table wait or are being processed.
select count(*) filter (where status = 'pending') as pending, count(*) filter (where status = 'processing') as processing
from sync_queue where status in ('pending', 'processing');

-- name: holders
-- Which worker holds how many tasks.
select worker, count(*) as tasks from sync_queue where status = 'processing' group by worker;

-- name: forget_tasks
-- Deletes what waits for an account that is no longer known.
delete from sync_queue where status = 'pending' and account_id = %(account_id)s;

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
       run_id, worker, result, error, error_class, history, scheduled_at, started_at, completed_at, created_at, updated_at
from sync_queue
where status = %(status)s and (%(account_id)s::uuid is null or account_id = %(account_id)s::uuid)
order by updated_at desc, id desc
limit %(limit)s;

-- name: find_task
-- One task, the whole row.
select id, queue, account_id, entity_type, entity_id, operation, priority, status, payload, attempts, max_attempts,
       run_id, worker, result, error, error_class, history, scheduled_at, started_at, completed_at, created_at, updated_at
from sync_queue
where id = %(id)s;

-- name: run_progress
-- A run's tasks counted by status and by result.
select jsonb_build_object(
    'pending', count(*) filter (where status = 'pending'),
    'processing', count(*) filter (where status = 'processing'),
    'completed', count(*) filter (where status = 'completed'),
    'failed', count(*) filter (where status = 'failed'),
    'created', count(*) filter (where result = 'created'),
    'updated', count(*) filter (where result = 'updated'),
    'unchanged', count(*) filter (where result = 'unchanged'),
    'skipped', count(*) filter (where result = 'skipped')) as counts
from sync_queue where run_id = %(run)s;

-- name: unfinished_of_runs
-- Those of the runs that have a task under way, or one that waits for more than its account.
select run_id from unnest(%(runs)s::uuid[]) as r (run_id)
where exists (
    select from sync_queue q
    where q.run_id = r.run_id
      and (q.status = 'processing' or q.status = 'pending' and q.account_id <> all(%(waiting)s::uuid[])));

-- name: run_problems
-- What went wrong or was left out in a run, the newest first.
select id, queue, account_id, entity_type, entity_id, operation, priority, status, payload, attempts, max_attempts,
       run_id, worker, result, error, error_class, history, scheduled_at, started_at, completed_at, created_at, updated_at
from sync_queue
where run_id = %(run)s and error is not null and (status in ('failed', 'pending') or result = 'skipped')
order by status = 'failed' desc, updated_at desc
limit %(limit)s;
