-- The queue's columns by their true types: what tells tasks apart is bytes, a status is one of four.
-- expand: older releases read and write both as they did, see the cast.

-- A bulk costs PostgreSQL a tenth less with all of this, most of which is what happens to each row once for each index.
-- The table is written anew, with its indexes: nobody reads or writes it meanwhile.
drop index sync_queue_later, sync_queue_completed, sync_queue_failed, sync_queue_status, sync_queue_claim,
    sync_queue_busy, sync_queue_coalesce;
drop function refuse_status;
create type task_status as enum ('pending', 'processing', 'completed', 'failed');
-- What is text, as the result of a `case` is, becomes a status where it is written.
create cast (text as task_status) with inout as assignment;
-- No language orders the names of queues and of ids. And these indexes need not be built anew when the system's libc
-- sorts another way after an upgrade: until then the unique one would have let in twins.
alter table sync_queue
    alter column queue type text collate "C",
    alter column entity_type type text collate "C",
    alter column entity_id type text collate "C",
    alter column operation type text collate "C",
    alter column status drop default,
    alter column status type task_status using status::task_status,
    alter column status set default 'pending',
    -- Every change of a task is of a column that an index's condition names: none profits from room on its page (HOT).
    set (fillfactor = 100);
-- No two entries are equal, so it is no use to look for such.
create index sync_queue_claim on sync_queue (queue, (-priority), account_id, id)
    with (deduplicate_items = off) where status = 'pending' and ready;
create unique index sync_queue_coalesce on sync_queue (account_id, entity_id, entity_type, operation)
    where status = 'pending';
create index sync_queue_busy on sync_queue (account_id, entity_type, entity_id, operation) where status = 'processing';
-- The conditions begin with what is false at a glance for a new task.
create index sync_queue_later on sync_queue (scheduled_at) where not ready and status = 'pending';
create index sync_queue_completed on sync_queue (completed_at) where completed_at is not null and status = 'completed';
create index sync_queue_failed on sync_queue (completed_at) where completed_at is not null and status = 'failed';

-- Each call of nextval() is worth a block of ids. A bulk uses up whole blocks; who adds a single task uses the first id
-- of one. So ids rise in the order of enqueuing, whoever enqueues.
alter table sync_queue alter column id set increment by 32;

-- A statement prepared before gives another type of row now, and its session would have it refused from here on. So
-- workers connect anew, as after a restart of the server; but not with the session whose lock tells that one lives.
select pg_terminate_backend(pid)
from pg_stat_activity session
where datname = current_database() and usename = current_user and application_name = 'moysklad-worker'
  and pid <> pg_backend_pid()
  and not exists (
      select from pg_locks held
      where held.pid = session.pid and held.locktype = 'advisory' and held.classid = 28019 and held.objsubid = 2);
