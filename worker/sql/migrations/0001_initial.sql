-- Accounts, the queue, the catalogue's snapshots, mappings, runs, workers and the limiter.

create table accounts (
    id uuid primary key,
    name text not null,
    role text not null check (role in ('main', 'child')),
    auth text not null check (auth in ('solution', 'user')),
    weight integer check (weight between 1 and 45),     -- units a request costs; null: by `auth` and date
    token text not null,                                -- Fernet, key APP_KEY
    parked_until timestamptz,                           -- no task of this account is claimed before
    parked_reason text,
    created_at timestamptz not null default now()
);

create table links (
    main_id uuid not null references accounts on delete cascade,
    child_id uuid not null references accounts on delete cascade,
    settings jsonb not null default '{}',
    created_at timestamptz not null default now(),
    primary key (main_id, child_id)
);
create index links_child on links (child_id);

create table runs (
    id uuid primary key,
    account_id uuid not null,                           -- what was asked for: a child, or a main for all its children
    main_id uuid not null,
    kind text not null,
    requested_by text not null,
    counts jsonb,                                       -- frozen when the run is finished
    created_at timestamptz not null default now(),
    finished_at timestamptz
);
-- A second click while a run is under way joins it.
create unique index runs_under_way on runs (account_id, kind) where finished_at is null;
create index runs_recent on runs (created_at desc);

create table sync_queue (
    id bigint generated always as identity primary key,
    queue text not null,
    account_id uuid not null,
    entity_type text not null,
    entity_id text not null default '',
    operation text not null,
    priority integer not null default 1,
    status text not null default 'pending' check (status in ('pending', 'processing', 'completed', 'failed')),
    payload jsonb not null default '{}',
    attempts integer not null default 0,
    max_attempts integer,                               -- null: the worker's --tries
    rescues integer not null default 0,                 -- how many workers died with it
    run_id uuid,
    worker bigint,                                      -- the claim's owner; its lease is workers.lease_until
    result text,                                        -- created, updated, unchanged, skipped, coalesced, ...
    error text,
    scheduled_at timestamptz not null default now(),
    started_at timestamptz,
    completed_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
) with (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05
);
-- One pending row per thing to do: a second request coalesces into the first.
create unique index sync_queue_coalesce on sync_queue (account_id, entity_type, entity_id, operation)
    where status = 'pending';
-- The claim walks lane → account → rank; completed rows are not in it.
create index sync_queue_claim on sync_queue (queue, account_id, priority desc, id) where status = 'pending';
create index sync_queue_claimed on sync_queue (worker) where status = 'processing';
create index sync_queue_busy on sync_queue (account_id, entity_type, entity_id, operation)
    where status = 'processing';
create index sync_queue_run on sync_queue (run_id) where run_id is not null;
create index sync_queue_ended on sync_queue (completed_at) where status in ('completed', 'failed');

create table workers (
    id bigint generated always as identity primary key, -- also the key of the session lock it holds
    host text not null,
    pid integer not null,
    name text not null,
    queues text[] not null,
    release text not null,
    started_at timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    lease_until timestamptz not null,
    done bigint not null default 0,
    failed bigint not null default 0,
    rss_mb integer not null default 0
) with (fillfactor = 50);

create table snapshots (
    main_id uuid not null,
    entity_type text not null,
    entity_id uuid not null,
    hash text not null,
    body json not null,
    read_at timestamptz not null,                       -- when the request that brought it was sent
    primary key (main_id, entity_type, entity_id)
);

create table mappings (
    child_id uuid not null,
    entity_type text not null,
    main_entity_id uuid not null,
    child_entity_id uuid not null,
    hash text,                                          -- of the snapshot the child last received; null: send again
    synced_at timestamptz not null default now(),
    primary key (child_id, entity_type, main_entity_id)
);
-- Two of main's goods may not claim one of the child's. Standard units, countries and currencies may.
create unique index mappings_one_to_one on mappings (child_id, entity_type, child_entity_id)
    where entity_type in ('product', 'productfolder');

create table schedule_ticks (
    minute timestamptz primary key,
    host text not null
);

create table limiter_principals (
    principal text primary key,
    paused_until timestamptz not null default '-infinity',
    last_start timestamptz not null default '-infinity' -- of the latest grant, perhaps in the future
) with (fillfactor = 50);

-- One row per request under way or still inside the window. Unlogged: after a crash of the server
-- the window has passed anyway.
create unlogged table limiter_grants (
    id bigint generated always as identity primary key,
    principal text not null,
    account_id uuid not null,
    units integer not null,
    worker bigint,
    starts_at timestamptz not null,                     -- when it may be sent
    leaves_at timestamptz not null,                     -- when its units are out of every window of MoySklad's
    done_at timestamptz                                 -- null while it is under way
) with (autovacuum_vacuum_scale_factor = 0.05);
create index limiter_grants_principal on limiter_grants (principal, leaves_at);
create index limiter_grants_account on limiter_grants (account_id) where done_at is null;
