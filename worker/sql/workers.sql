-- name: register_worker
-- A worker begins its life; the id is new for every process.
insert into workers (host, pid, name, queues, release, lease_until)
values (%(host)s, %(pid)s, %(name)s, %(queues)s, %(release)s, now() + %(lease)s * interval '1 second')
returning id;

-- name: hold_worker
-- The session lock that says "alive"; PostgreSQL frees it when the process or its connection dies.
select pg_try_advisory_lock(%(lock_class)s, %(worker)s::integer) as held;

-- name: heartbeat
-- Renews the lease; no row means that the worker was given up for dead and its claims are gone.
update workers
set seen_at = now(), lease_until = now() + %(lease)s * interval '1 second', done = %(done)s, failed = %(failed)s,
    rss_mb = %(rss_mb)s
where id = %(worker)s
returning id;

-- name: unregister_worker
-- A worker's clean end.
delete from workers where id = %(worker)s;

-- name: bury_workers
-- Removes dead workers, and lets go of the requests they had under way.
with gone as (delete from workers where id = any(%(workers)s::bigint[]) returning id)
update limiter_grants set done_at = now() where done_at is null and worker in (select id from gone);

-- name: workers
-- Who is alive, with how long ago it was last heard of and what it holds.
select w.id, host, pid, name, queues, release, started_at, done, failed, rss_mb,
       extract(epoch from now() - seen_at)::float as silent_seconds,
       (select count(*) from sync_queue q where q.status = 'processing' and q.worker = w.id) as processing
from workers w
where lease_until > now()
order by w.id;
