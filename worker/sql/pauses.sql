-- name: pause
-- Queues whose name is like this are not claimed from before then; pauses that are over go.
with over as (delete from paused_queues where until <= now() and pattern <> %(pattern)s)
insert into paused_queues (pattern, name, until, reason)
values (%(pattern)s, %(name)s, %(until)s, %(reason)s)
on conflict (pattern) do update set until = excluded.until, reason = excluded.reason, created_at = now();

-- name: resume
-- Ends a pause; the workers that sleep are woken, since what waited is not enqueued anew.
with gone as (delete from paused_queues where name = %(name)s returning name, until)
select name, (select count(pg_notify('sync_queue', queue)) from (
    select distinct unnest(queues) as queue from workers where asleep) w) from gone where until > now();

-- name: pauses
-- Pauses in force.
select name as queue, pattern, until, reason, created_at from paused_queues
where until > coalesce(%(now)s, now()) order by name;
