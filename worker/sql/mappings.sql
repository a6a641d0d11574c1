-- name: create_read
-- Where COPY puts one page of what was read from main.
create temporary table read (entity_type text, entity_id uuid, hash text, body json) on commit drop;

-- name: copy_read
-- The page itself.
copy read from stdin;

-- name: save_snapshots
-- Keeps the page. What a request sent later has brought already stays.
insert into snapshots (main_id, entity_type, entity_id, hash, body, read_at)
select %(main)s, entity_type, entity_id, hash, body, %(read_at)s from read order by entity_type, entity_id
on conflict (main_id, entity_type, entity_id) do update
set hash = excluded.hash, body = excluded.body, read_at = excluded.read_at
where snapshots.read_at <= excluded.read_at;

-- name: drop_unseen
-- Forgets snapshots of a type that a complete read begun at %(since)s did not meet.
delete from snapshots
where main_id = %(main)s and entity_type = any(%(types)s::text[]) and read_at < %(since)s;

-- name: withdraw_unseen
-- What main no longer has is to be archived in the children, never deleted.
update snapshots
set body = (body::jsonb || '{"archived": true}')::json, hash = hash || '-gone', read_at = %(since)s
where main_id = %(main)s and entity_type = any(%(types)s::text[]) and read_at < %(since)s
  and hash not like '%%-gone'
returning entity_id;

-- name: differing
-- Main's entities whose content is not what the child last received, with what they are mapped to.
select s.entity_id, s.hash, s.body, m.child_entity_id
from snapshots s
left join mappings m on m.child_id = %(child)s and m.entity_type = s.entity_type and m.main_entity_id = s.entity_id
where s.main_id = %(main)s and s.entity_type = %(type)s and m.hash is distinct from s.hash
  and not (m.child_entity_id is null and s.hash like '%%-gone')
order by s.entity_id;

-- name: load
-- These entities of main with what the child last received of them.
select s.entity_id, s.hash, s.body, m.child_entity_id, m.hash as sent_hash
from snapshots s
left join mappings m on m.child_id = %(child)s and m.entity_type = s.entity_type and m.main_entity_id = s.entity_id
where s.main_id = %(main)s and s.entity_type = %(type)s and s.entity_id = any(%(ids)s::uuid[]);

-- name: mapped
-- main id → child id of these types.
select entity_type, main_entity_id, child_entity_id from mappings
where child_id = %(child)s and entity_type = any(%(types)s::text[]);

-- name: claimed_by_others
-- Which of these child entities belong to one of main's already.
select child_entity_id from mappings
where child_id = %(child)s and entity_type = %(type)s and child_entity_id = any(%(ids)s::uuid[]);

-- name: owners
-- Which of main's entities these of the child's are mapped to.
select child_entity_id, main_entity_id from mappings
where child_id = %(child)s and entity_type = %(type)s and child_entity_id = any(%(ids)s::uuid[]);

-- name: save_mappings
-- Remembers what the child has received, in the transaction that ends the tasks.
insert into mappings (child_id, entity_type, main_entity_id, child_entity_id, hash, synced_at)
select %(child)s, %(type)s, main_id, child_id, hash, now()
from unnest(%(main_ids)s::uuid[], %(child_ids)s::uuid[], %(hashes)s::text[]) as t (main_id, child_id, hash)
order by main_id
on conflict (child_id, entity_type, main_entity_id) do update
set child_entity_id = excluded.child_entity_id, hash = excluded.hash, synced_at = now();

-- name: drop_mappings
-- Forgets mappings whose child entity is confirmed gone.
delete from mappings
where child_id = %(child)s and entity_type = %(type)s and main_entity_id = any(%(ids)s::uuid[]);

-- name: lock_references
-- One worker at a time creates the references of a child: they have no syncId.
select pg_advisory_xact_lock(hashtextextended('references:' || %(child)s::text, 0));

-- name: server_time
-- The one clock that all hosts share.
select clock_timestamp() as now;

-- name: unsent_goods
-- Goods whose content is not what the child last received, with what they are recognised by.
select s.entity_id, m.child_entity_id,
       case when %(field)s = 'barcode' then json_build_object('barcodes', s.body -> 'barcodes')
            else json_build_object(%(field)s::text, s.body -> %(field)s::text) end as body
from snapshots s
left join mappings m on m.child_id = %(child)s and m.entity_type = 'product' and m.main_entity_id = s.entity_id
where s.main_id = %(main)s and s.entity_type = 'product' and m.hash is distinct from s.hash
  and not (m.child_entity_id is null and s.hash like '%%-gone')
order by s.entity_id;

-- name: doubt_references
-- A reference of the child turned out to be gone: all are looked up again by the next `prepare`.
update mappings set hash = null where child_id = %(child)s and entity_type <> 'product';

-- name: intents
-- Creates of this child whose outcome is not known.
select main_entity_id, tries, extract(epoch from clock_timestamp() - sent_at)::float as age
from intents where child_id = %(child)s and entity_type = %(type)s;

-- name: intend
-- Before a create without syncId is sent: its answer may never come.
insert into intents (child_id, entity_type, main_entity_id, sent_at)
select %(child)s, %(type)s, id, clock_timestamp() from unnest(%(ids)s::uuid[]) as t (id) order by id
on conflict (child_id, entity_type, main_entity_id) do update
set sent_at = excluded.sent_at, tries = intents.tries + 1;

-- name: fulfil
-- What became of these creates is known.
delete from intents
where child_id = %(child)s and entity_type = %(type)s and main_entity_id = any(%(ids)s::uuid[]);

-- name: intend_updates
-- Before updates are sent: their answers may never come. What was sent earlier and may still take effect.
with earlier as (
    select main_entity_id, hash, sent_at, sent_at + make_interval(secs => %(seconds)s) as until
    from intents
    where child_id = %(child)s and entity_type = %(type)s and main_entity_id = any(%(ids)s::uuid[])
      and sent_at > clock_timestamp() - make_interval(secs => %(seconds)s)
), noted as (
    insert into intents (child_id, entity_type, main_entity_id, sent_at, hash)
    select %(child)s, %(type)s, id, clock_timestamp(), hash
    from unnest(%(ids)s::uuid[], %(hashes)s::text[]) as t (id, hash) order by id
    on conflict (child_id, entity_type, main_entity_id) do update
    set sent_at = excluded.sent_at, tries = intents.tries + 1,
        hash = case when intents.hash = excluded.hash
                      or intents.sent_at <= clock_timestamp() - make_interval(secs => %(seconds)s)
                    then excluded.hash else '' end
)
select main_entity_id, hash, sent_at, until from earlier;

-- name: fulfil_updates
-- What became of these updates is known; where an earlier one's fate is not, that alone stays noted.
with known as (
    select * from unnest(%(ids)s::uuid[], %(hashes)s::text[], %(sent_at)s::timestamptz[]) as t (id, hash, sent_at)
), restored as (
    update intents set hash = known.hash, sent_at = known.sent_at
    from known
    where child_id = %(child)s and entity_type = %(type)s and main_entity_id = known.id and known.hash is not null
)
delete from intents using known
where child_id = %(child)s and entity_type = %(type)s and main_entity_id = known.id and known.hash is null;

-- name: forget_updates
-- Updates whose fate nobody learned, and which have long had it.
delete from intents where hash is not null and sent_at < now() - interval '1 day';
