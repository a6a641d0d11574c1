-- The queue at speed: what is due apart from what is not, one lane per (queue, rank, account), fewer indexes.

-- False until `scheduled_at` of a pending task has come: the claim's index holds what may be claimed, nothing else.
alter table sync_queue add column ready boolean not null default true;
update sync_queue set ready = false where status = 'pending' and scheduled_at > now();
-- What went wrong in each attempt, and where; only tasks that had trouble have one.
alter table sync_queue add column history jsonb;
alter table sync_queue add column error_class text;         -- of the last error, as in worker/errors.py
drop index sync_queue_claim;
create index sync_queue_claim on sync_queue (queue, (-priority), account_id, id) where status = 'pending' and ready;
create index sync_queue_later on sync_queue (scheduled_at) where status = 'pending' and not ready;
-- Rescue finds a dead worker's claims by reading all that is being processed, which is little; one index less to keep.
drop index sync_queue_claimed;
drop index sync_queue_ended;
create index sync_queue_completed on sync_queue (completed_at) where status = 'completed';
create index sync_queue_failed on sync_queue (completed_at) where status = 'failed';

-- NOTIFY is sent only where a worker that listens to the queue sleeps: it serialises the commits of all producers.
alter table workers add column asleep boolean not null default false;
alter table workers add column listens text[] not null default '{%}';   -- `queues` as patterns of LIKE

-- How many workers may serve the account at once; null: any number.
alter table accounts add column concurrency integer check (concurrency >= 1);

create table paused_queues (
    pattern text primary key,                           -- of LIKE
    name text not null,                                 -- the same as the operator wrote it
    until timestamptz not null,
    reason text not null default '',
    created_at timestamptz not null default now()
);

-- A task's history with one more entry, of the attempt under way: when, where, how it ended and why. The last 50 stay.
create function remember(task sync_queue, how text, error_class text, error text) returns jsonb language sql stable as $$
    select case when jsonb_array_length(past) >= 50 then past - 0 else past end || jsonb_build_object(
        'at', now(), 'how', how, 'attempt', task.attempts, 'class', error_class, 'error', error,
        'worker', task.worker,
        'host', (select host from workers where id = task.worker), 'started_at', task.started_at)
    from (select coalesce(task.history, '[]') as past) p
$$;
