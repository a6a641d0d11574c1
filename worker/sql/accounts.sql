-- name: add_account
-- A new account.
insert into accounts (id, name, role, auth, weight, token)
values (%(id)s, %(name)s, %(role)s, %(auth)s, %(weight)s, %(token)s)
on conflict (id) do nothing
returning id;

-- name: account
-- One account.
select id, name, role, auth, weight, token, bulk, parked_until, parked_reason from accounts where id = %(id)s;

-- name: accounts
-- All accounts, main ones first, with what they are linked to.
select a.id, a.name, a.role, a.auth, a.weight, a.concurrency, a.parked_until, a.parked_reason,
       array(select l.child_id from links l where l.main_id = a.id order by l.child_id) as children,
       array(select l.main_id from links l where l.child_id = a.id order by l.main_id) as mains
from accounts a
order by a.role desc, a.name, a.id;

-- name: set_token
-- A new token; an account parked because of the old one works again.
update accounts set token = %(token)s, parked_until = null, parked_reason = null
where id = %(id)s returning id;

-- name: set_concurrency
-- So many workers may serve the account at once; null: any number.
update accounts set concurrency = %(concurrency)s where id = %(id)s returning id;

-- name: remove_account
-- Forgets an account, its links, mappings and snapshots.
with gone as (delete from accounts where id = %(id)s returning id),
     m as (delete from mappings where child_id in (select id from gone)),
     s as (delete from snapshots where main_id in (select id from gone))
select id from gone;

-- name: park_account
-- No task of the account is claimed before then; the reason is shown.
update accounts set parked_until = %(until)s, parked_reason = %(reason)s where id = %(id)s;

-- name: pause_account
-- The same for a short wait, given as a duration; what is set for longer stays, with its reason.
update accounts
set parked_until = now() + %(wait)s * interval '1 second', parked_reason = %(reason)s
where id = %(id)s and coalesce(parked_until < now() + %(wait)s * interval '1 second', true);

-- name: unpark_account
-- Its tasks may be claimed again, and its breaker is closed: an operator's word.
with closed as (
    update breakers set open = false, reason = null, probe_until = null, open_until = '-infinity'
    where account_id = %(id)s returning principal
), forgotten as (
    delete from breaker_failures where principal in (select principal from closed)
)
update accounts set parked_until = null, parked_reason = null where id = %(id)s returning id;

-- name: shrink_bulk
-- An array of this size was too much: from now on at most half of it. What was refused for its size is a limit
-- for a while; what was only slow may have had another reason.
update accounts
set bulk = greatest(1, least(bulk, %(size)s / 2)),
    bulk_limit = case when %(refused)s then %(size)s else bulk_limit end,
    bulk_at = case when %(refused)s then now() else bulk_at end
where id = %(id)s
returning bulk;

-- name: grow_bulk
-- A full array was borne well: twice as many; half the way to what was refused lately.
update accounts set bulk = longer.bulk
from (select id, least(1000, bulk * 2, case when bulk_at > now() - %(lately)s * interval '1 second'
                                            then (bulk + bulk_limit) / 2 else 1000 end) as bulk
      from accounts where id = %(id)s) longer
where accounts.id = longer.id and accounts.bulk = %(size)s and longer.bulk > accounts.bulk
returning accounts.bulk;

-- name: restore_bulk
-- It was not the length: one element alone was too much.
update accounts set bulk = greatest(bulk, %(size)s), bulk_limit = 1001, bulk_at = '-infinity' where id = %(id)s;

-- name: lock_link
-- The settings of a link, which stay as they are until the transaction ends.
select settings from links where main_id = %(main)s and child_id = %(child)s for share;

-- name: lock_link_to_change
-- Waits for whoever is just recording what was sent with the old settings.
select settings from links where main_id = %(main)s and child_id = %(child)s for update;

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
