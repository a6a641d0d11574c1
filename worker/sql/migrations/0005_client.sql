-- What a client that survives anything remembers: its breaker, its measure of arrays, creates without an answer.

-- One row per account that has had failures; a row of another token than the present one counts for nothing.
create table breakers (
    account_id uuid primary key references accounts on delete cascade,
    principal text not null,
    open boolean not null default false,
    open_until timestamptz not null default '-infinity',-- when it may be tried; of the last time, where it is closed
    opened integer not null default 0,                  -- how often in a row; each wait doubles the last
    reason text,
    probe_until timestamptz                             -- until then somebody tries whether it may be closed
);

-- Failed requests of the last minute. Unlogged: after a crash of the server the minute begins anew.
create unlogged table breaker_failures (
    principal text not null,
    key text not null,                                  -- what makes two failures the same
    throttled boolean not null,
    happened_at timestamptz not null
);
create index breaker_failures_principal on breaker_failures (principal, happened_at);

-- Elements per array that this account is known to bear; how many were refused, and when.
alter table accounts add column bulk integer not null default 1000 check (bulk between 1 and 1000);
alter table accounts add column bulk_limit integer not null default 1001;
alter table accounts add column bulk_at timestamptz not null default '-infinity';

-- Creates of references (they have no syncId) from before the request until its answer is known.
create table intents (
    child_id uuid not null references accounts on delete cascade,
    entity_type text not null,
    main_entity_id uuid not null,
    sent_at timestamptz not null,
    tries integer not null default 1,
    primary key (child_id, entity_type, main_entity_id)
);
