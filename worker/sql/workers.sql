-- name: register_worker
-- A worker begins its life; the id is new for every process.
insert into workers (host, pid, name, queues, listens, release, lease_until)
values (%(host)s, %(pid)s, %(name)s, %(queues)s, %(listens)s, %(release)s, now() + %(lease)s * interval '1 second')
returning id;

-- name: hold_worker
-- The session lock that says "alive"; PostgreSQL frees it when the process or its connection dies.
select pg_try_advisory_lock(%(lock_class)s, %(worker)s::integer) as held;

-- name: pool_worker
-- The worker behind a pooler, whose session can hold no lock.
update workers set pooled = true where id = %(worker)s returning true as held;

-- name: heartbeat
-- Renews the lease; no row means that the worker was given up for dead and its claims are gone.
update workers
set seen_at = now(), lease_until = now() + %(lease)s * interval '1 second', done = %(done)s, failed = %(failed)s,
    rss_mb = %(rss_mb)s
where id = %(worker)s
returning id, restart;

-- name: doze
-- A worker is about to sleep: from now on producers wake it.
update workers set asleep = true where id = %(worker)s;

-- name: rouse
-- A worker is busy: producers need not wake it.
update workers set asleep = false where id = %(worker)s and asleep;

-- name: unregister_worker
-- A worker's clean end.
delete from workers where id = %(worker)s;

-- name: bury_workers
-- Removes dead workers, and lets go of the requests they had under way.
with gone as (delete from workers where id = any(%(workers)s::bigint[]) returning id)
update limiter_grants set done_at = now() + interval '1 second' where done_at is null and worker in (select id from gone);

-- name: restart_workers
-- Asks every worker to end after its batch, and has those that listen look at once.
with asked as (update workers set restart = true where lease_until > now() returning id)
select id, pg_notify('workers', 'restart') from asked order by id;

-- name: workers
-- Who is alive, with how long ago it was last heard of.
select id, host, pid, name, queues, release, started_at, done, failed, rss_mb, restart,
       extract(epoch from now() - seen_at)::float as silent_seconds
from workers where lease_until > now()
order by id;

-- name: workers_of_other_releases
-- Who is alive and runs other code than this.
select host, pid, name, release from workers where lease_until > now() and release <> %(release)s order by id;
