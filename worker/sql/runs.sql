-- name: start_run
-- A new run, or nothing when one of the same account is under way.
insert into runs (id, account_id, main_id, kind, requested_by, in_redis)
values (%(id)s, %(account)s, %(main)s, %(kind)s, %(requested_by)s, case when %(redis)s then '{}'::jsonb end)
on conflict (account_id, kind) where finished_at is null do nothing
returning id;

-- name: run_under_way
-- The unfinished run that covers this account: its own, or that of its main account.
select id from runs
where finished_at is null and kind = %(kind)s and (account_id = %(account)s or account_id = any(%(mains)s::uuid[]))
order by created_at limit 1;

-- name: run
-- A run; its counts are there once it is finished.
select id, account_id, main_id, kind, requested_by, created_at, finished_at, counts, in_redis from runs where id = %(id)s;

-- name: runs
-- The newest runs.
select id, account_id, main_id, kind, requested_by, created_at, finished_at, counts
from runs
where %(account)s::uuid is null or account_id = %(account)s::uuid or main_id = %(account)s::uuid
order by created_at desc, id
limit %(limit)s;

-- name: waiting_accounts
-- Accounts that wait for an operator; what they have to do does not keep a run open: nobody could start another.
select id from accounts where parked_until >= now() + interval '1 hour';

-- name: finish_run
-- Ends a run none of whose tasks is open, freezing its counts. Called after the commit that ended a
-- task: of two workers that end the last two tasks at once, the later sees no open one. While tasks may be open in
-- Redis, only who sees those (%(redis)s) ends it.
update runs set finished_at = now(), counts = %(counts)s
where finished_at is null and id = %(id)s and (%(redis)s or in_redis is distinct from '{}')
returning id, account_id, counts, extract(epoch from finished_at - created_at)::float as seconds;

-- name: latest_runs
-- Of each account and kind the newest run, if it is finished.
select id from (
    select distinct on (account_id, kind) id, finished_at from runs order by account_id, kind, created_at desc) latest
where finished_at is not null;

-- name: reopen_runs
-- They are under way once more.
update runs set finished_at = null, counts = null where finished_at is not null and id = any(%(ids)s::uuid[])
returning id;

-- name: open_runs
-- Ids of the unfinished runs.
select id from runs where finished_at is null;

-- name: due_links
-- Links that sync by themselves and whose last run began long enough ago, in whole minutes: cron is never on
-- the second, and every 5 minutes shall not become every 6.
select l.main_id, l.child_id
from links l
where (l.settings ->> 'every_minutes')::integer > 0
  and not exists (
      select from runs r
      where r.account_id in (l.child_id, l.main_id) and r.kind = 'products'
        and (r.finished_at is null
             or date_trunc('minute', r.created_at) > date_trunc('minute', %(now)s::timestamptz)
                                                     - (l.settings ->> 'every_minutes')::integer * interval '1 minute'))
order by l.main_id, l.child_id;

-- name: tick
-- The first host to come in a minute does that minute's work; the rows of old minutes go.
with old as (delete from schedule_ticks where minute < %(minute)s - interval '1 day')
insert into schedule_ticks (minute, host) values (%(minute)s, %(host)s)
on conflict (minute) do nothing
returning minute;
