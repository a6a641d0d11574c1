-- What the queue's driver `redis` keeps in PostgreSQL, where the work's effects are.

-- Accounts by number: a task's id is number * 10^10 + its place in the account, so that ids are unique in the whole
-- cluster and tell where the task is.
create table queue_accounts (
    account_id uuid primary key,
    number integer generated always as identity unique
);

-- How claims ended, written in the transaction of their effect. Whoever comes first decides: the worker that ends its
-- claim, or (without outcome) who gives it up for dead.
create table queue_settlements (
    worker bigint not null,
    task bigint not null,
    attempts integer not null,
    account_id uuid not null,
    outcome jsonb,                                      -- null: taken away
    primary key (worker, task, attempts)
);

-- Tasks enqueued in a transaction of the caller's, on their way to Redis.
create table queue_outbox (
    n bigint generated always as identity primary key,
    account_id uuid not null,
    entity_type text not null,
    entity_id text not null,
    operation text not null,
    run_id uuid,
    task text not null                                  -- JSON, as queue.lua takes it
);
create index queue_outbox_thing on queue_outbox (account_id, entity_type, entity_id, operation);
