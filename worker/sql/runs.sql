-- name: start_run
-- A new run, or nothing when one of the same account is under way.
insert into runs (id, account_id, main_id, kind, requested_by)
values (%(id)s, %(account)s, %(main)s, %(kind)s, %(requested_by)s)
on conflict (account_id, kind) where finished_at is null do nothing
returning id;

-- name: run_under_way
-- The unfinished run that covers this account: its own, or that of its main account.
select id from runs
where finished_at is null and kind = %(kind)s and (account_id = %(account)s or account_id = any(%(mains)s::uuid[]))
order by created_at limit 1;

-- name: run
-- A run with its tasks counted by status and by result.
select r.id, r.account_id, r.main_id, r.kind, r.requested_by, r.created_at, r.finished_at,
       coalesce(r.counts, (
           select jsonb_build_object(
               'pending', count(*) filter (where status = 'pending'),
               'processing', count(*) filter (where status = 'processing'),
               'completed', count(*) filter (where status = 'completed'),
               'failed', count(*) filter (where status = 'failed'),
               'created', count(*) filter (where result = 'created'),
               'updated', count(*) filter (where result = 'updated'),
               'unchanged', count(*) filter (where result = 'unchanged'),
               'skipped', count(*) filter (where result = 'skipped'))
           from sync_queue q where q.run_id = r.id)) as counts
from runs r
where r.id = %(id)s;

-- name: runs
-- The newest runs.
select id, account_id, main_id, kind, requested_by, created_at, finished_at, counts
from runs
where %(account)s::uuid is null or account_id = %(account)s::uuid or main_id = %(account)s::uuid
order by created_at desc, id
limit %(limit)s;

-- name: run_problems
-- What went wrong or was left out in a run, the newest first.
select id, account_id, entity_type, entity_id, operation, status, result, attempts, error, updated_at
from sync_queue
where run_id = %(id)s and error is not null and (status in ('failed', 'pending') or result = 'skipped')
order by status = 'failed' desc, updated_at desc
limit %(limit)s;

-- name: finish_run
-- Ends a run none of whose tasks is open, freezing its counts. Called after the commit that ended a
-- task: of two workers that end the last two tasks at once, the later sees no open one. What waits for an
-- operator (an account parked for long) does not keep a run open: nobody could start another.
update runs r
set finished_at = now(), counts = (
    select jsonb_build_object(
        'pending', count(*) filter (where status = 'pending'), 'processing', 0,
        'completed', count(*) filter (where status = 'completed'),
        'failed', count(*) filter (where status = 'failed'),
        'created', count(*) filter (where result = 'created'),
        'updated', count(*) filter (where result = 'updated'),
        'unchanged', count(*) filter (where result = 'unchanged'),
        'skipped', count(*) filter (where result = 'skipped'))
    from sync_queue q where q.run_id = r.id)
where r.finished_at is null and r.id = any(%(ids)s::uuid[])
  and not exists (
      select from sync_queue q
      left join accounts a on a.id = q.account_id
      where q.run_id = r.id
        and (q.status = 'processing'
             or q.status = 'pending' and coalesce(a.parked_until < now() + interval '1 hour', true)))
returning r.id, r.account_id, r.counts, extract(epoch from r.finished_at - r.created_at)::float as seconds;

-- name: reopen_runs
-- Runs with tasks that are open again (retried, un-parked) are under way once more, unless a newer one is.
update runs r
set finished_at = null, counts = null
where r.finished_at is not null
  and exists (
      select from sync_queue q
      left join accounts a on a.id = q.account_id
      where q.run_id = r.id and q.status = 'pending' and coalesce(a.parked_until < now() + interval '1 hour', true))
  and r.id = (select latest.id from runs latest where latest.account_id = r.account_id and latest.kind = r.kind
              order by latest.created_at desc limit 1)
returning r.id;

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
