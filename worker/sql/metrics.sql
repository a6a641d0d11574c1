-- name: add_counters
-- Adds what a process has counted since it last did; in one order for all, so that no two wait for each other.
insert into counters as c (name, labels, value)
select name, labels, value from unnest(%(names)s::text[], %(labels)s::jsonb[], %(values)s::float[]) as t (name, labels, value)
order by name, labels
on conflict (name, labels) do update set value = c.value + excluded.value;

-- name: counters
-- What all processes together have counted.
select name, labels, value from counters order by name, labels;

-- name: gauges
-- How things stand in the fleet, each a number.
select (select count(*) from accounts where parked_until > now()) as accounts_parked,
       (select count(*) from paused_queues where until > now()) as queues_paused,
       (select count(*) from breakers where open) as breakers_open,
       (select count(*) from runs where finished_at is null) as runs_under_way,
       (select extract(epoch from now() - max(minute))::float from schedule_ticks) as schedule_age_seconds;
