-- name: long_transactions
-- What holds back VACUUM: sessions in a transaction or with a snapshot, prepared transactions, replication slots.
-- Of another user's session only those see more than its pid who are in pg_read_all_stats.
select 'session' as kind, pid::text as who, coalesce(application_name, '') as application, coalesce(state, '') as state,
       extract(epoch from clock_timestamp() - xact_start)::float as seconds
from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
  and (backend_xmin is not null or backend_xid is not null or state like 'idle in transaction%%')
  and xact_start < clock_timestamp() - %(seconds)s * interval '1 second'
union all
select 'prepared transaction', gid, owner::text, '', extract(epoch from clock_timestamp() - prepared)::float
from pg_prepared_xacts
where database = current_database() and prepared < clock_timestamp() - %(seconds)s * interval '1 second'
union all
select 'replication slot', slot_name::text, coalesce(plugin::text, ''), 'inactive', null
from pg_replication_slots where not active and (xmin is not null or catalog_xmin is not null)
order by seconds desc nulls last
limit 5;

-- name: dead_rows
-- Rows of the queue's table that VACUUM has not removed yet, and when it last came by.
select n_live_tup::bigint as live, n_dead_tup::bigint as dead, greatest(last_autovacuum, last_vacuum) as vacuumed_at
from pg_stat_user_tables where relid = 'sync_queue'::regclass;

-- name: last_tick
-- How long ago `schedule run` did its work, on whichever host.
select extract(epoch from coalesce(%(now)s, now()) - max(minute))::float as seconds from schedule_ticks;

-- name: clock
-- The server's time, not the transaction's.
select clock_timestamp() as now;
