-- name: create_schema_migrations
-- The list of migrations applied, made by the first `migrate`.
create table if not exists schema_migrations (
    version integer primary key,
    name text not null,
    applied_at timestamptz not null default now()
);

-- name: schema_version
-- The newest migration applied; 0 before the first.
select coalesce(max(version), 0) as version from schema_migrations;

-- name: record_migration
-- Notes, in the migration's own transaction, that it was applied.
insert into schema_migrations (version, name) values (%(version)s, %(name)s);
