-- name: create_schema_migrations
-- The list of migrations applied, made by the first `migrate`. Lists of before the column `kind` have expand steps only.
create table if not exists schema_migrations (
    version integer primary key,
    name text not null,
    applied_at timestamptz not null default now()
);
do $$
begin
    if not exists (select from information_schema.columns
                   where table_schema = current_schema() and table_name = 'schema_migrations' and column_name = 'kind')
    then
        alter table schema_migrations
            add column kind text not null default 'expand' check (kind in ('expand', 'contract'));
    end if;
end $$;

-- name: applied_migrations
-- What was applied. By way of jsonb, because a list of before `kind` has no such column.
select version, name, coalesce(to_jsonb(s) ->> 'kind', 'expand') as kind from schema_migrations s order by version;

-- name: record_migration
-- Notes, in the migration's own transaction, that it was applied.
insert into schema_migrations (version, name, kind) values (%(version)s, %(name)s, %(kind)s);
