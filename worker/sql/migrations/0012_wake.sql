-- Enqueue at less cost: whether anybody sleeps is known without a look into `workers`.

-- Until when, in seconds, somebody may be asleep who wants to be told of new tasks: as long as the longest lease of
-- those that said so. A sequence, because it is read in two microseconds and holds up nobody.
create sequence asleep_until;

create function note_sleeper() returns trigger language plpgsql as $$
begin
    perform setval('asleep_until', greatest(
        pg_sequence_last_value('asleep_until'), ceil(extract(epoch from new.lease_until))::bigint));
    return null;
end $$;
-- With every heartbeat of a worker that sleeps, of whatever release.
create trigger note_sleeper after insert or update on workers
    for each row when (new.asleep) execute function note_sleeper();
update workers set asleep = asleep where asleep;

-- Wakes those that sleep and listen to the queue, telling them the lane and the task. Not inlined into the statement
-- that calls it, which then need not set up the look into `workers` each time.
create function tell_of_task(queue text, priority integer, account_id uuid, id bigint) returns void language sql as $$
    select pg_notify('sync_queue', concat_ws(E'\t', queue, -priority, account_id, id))
    where exists (select from workers where asleep and queue like any(listens))
$$;
