-- name: add_account
-- A new account.
insert into accounts (id, name, role, auth, weight, token)
values (%(id)s, %(name)s, %(role)s, %(auth)s, %(weight)s, %(token)s)
on conflict (id) do nothing
returning id;

-- name: account
-- One account.
select id, name, role, auth, weight, token, parked_until, parked_reason from accounts where id = %(id)s;

-- name: accounts
-- All accounts, main ones first, with what they are linked to.
select a.id, a.name, a.role, a.auth, a.weight, a.parked_until, a.parked_reason,
       array(select l.child_id from links l where l.main_id = a.id order by l.child_id) as children,
       array(select l.main_id from links l where l.child_id = a.id order by l.main_id) as mains
from accounts a
order by a.role desc, a.name, a.id;

-- name: set_token
-- A new token; an account parked because of the old one works again.
update accounts set token = %(token)s, parked_until = null, parked_reason = null
where id = %(id)s returning id;

-- name: remove_account
-- Forgets an account, its links, mappings, snapshots and pending tasks.
with gone as (delete from accounts where id = %(id)s returning id),
     m as (delete from mappings where child_id in (select id from gone)),
     s as (delete from snapshots where main_id in (select id from gone)),
     q as (delete from sync_queue where status = 'pending' and account_id in (select id from gone))
select id from gone;

-- name: park_account
-- No task of the account is claimed before then; the reason is shown.
update accounts set parked_until = %(until)s, parked_reason = %(reason)s where id = %(id)s;

-- name: pause_account
-- The same for a short wait, given as a duration; what is set for longer stays, with its reason.
update accounts
set parked_until = now() + %(wait)s * interval '1 second', parked_reason = %(reason)s
where id = %(id)s and coalesce(parked_until < now() + %(wait)s * interval '1 second', true);

-- name: link
-- Child receives from main, with these settings; changed settings make everything be sent anew.
with old as (
    select settings from links where main_id = %(main)s and child_id = %(child)s
), linked as (
    insert into links (main_id, child_id, settings) values (%(main)s, %(child)s, %(settings)s)
    on conflict (main_id, child_id) do update set settings = excluded.settings
    returning settings
), forgotten as (
    update mappings set hash = null
    where child_id = %(child)s and exists (select from old, linked where old.settings <> linked.settings)
)
select settings from linked;

-- name: unlink
-- Child no longer receives from main; what it has stays.
delete from links where main_id = %(main)s and child_id = %(child)s returning main_id;

-- name: links
-- The links of a main account, or of all.
select main_id, child_id, settings from links
where %(main)s::uuid is null or main_id = %(main)s::uuid
order by main_id, child_id;

-- name: links_of_child
-- Where a child receives from.
select main_id, child_id, settings from links where child_id = %(child)s order by main_id;
