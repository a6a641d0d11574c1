-- limiter_ask as in 0004, with half the statements: what is there of a principal is read with one each of its tickets
-- and its grants, and what is dead is deleted when there is some. On a connection that has been quiet for a moment
-- every statement costs some 30 us, as long as others wait for the principal's lock. And each is planned once for a
-- session, not anew for its first five times, at 0.6 ms a question: every thread of every worker has a session of its
-- own, and the plans, all by key, are the same each time.

create or replace function limiter_ask(
    p_ticket bigint, p_principal text, p_account uuid, p_units integer, p_urgent boolean, p_lag double precision,
    p_longest double precision, p_worker bigint, p_channel text, p_reap boolean, p_lock_class integer,
    p_ttl double precision, p_budget integer, p_window double precision, p_parallel integer,
    p_account_parallel integer, p_poll double precision, p_patience double precision, p_catch_up double precision,
    out granted boolean, out wait double precision, out reason text
) language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    state limiter_principals;
    place integer := case when p_urgent then 0 else 1 end;
    moment timestamptz;
    turn timestamptz;
    room timestamptz;
    span interval := p_window * interval '1 second';
    lag interval := p_lag * interval '1 second';
    cost integer;
    budget integer;
    slots integer;
    again boolean;
    late boolean;
    remembered boolean;
    wanted boolean;
    ahead integer;
    before integer;
    used integer;
    sure integer;
    busy integer;
    oldest timestamptz;
    missing integer;
    windows integer;
    dead integer;
begin
    -- What is lost with a crash of the server is noticed below.
    perform set_config('synchronous_commit', 'off', true);
    loop
        select * into state from limiter_principals where principal = p_principal for update;
        exit when found;
        insert into limiter_principals (principal) values (p_principal) on conflict do nothing;
    end loop;
    moment := clock_timestamp();        -- after the lock: a waiter must not use the time of its arrival
    granted := false;
    cost := case when state.weight_for = p_units then state.weight else p_units end;
    budget := greatest(cost, p_budget - limiter_neighbour(state, moment, p_window));
    slots := greatest(1, p_parallel - limiter_shrunk(state, moment));

    -- Who stands before this ticket, a new one being the last of its rank.
    select coalesce(bool_or(id = p_ticket), false), count(*) filter (where gone),
           count(*) filter (where first), coalesce(sum(units) filter (where first), 0),
           coalesce(bool_or(wants_slot and id <> p_ticket), false)
    into again, dead, ahead, before, wanted
    from (select t.id, t.units, t.wants_slot, t.id <> p_ticket and t.expires_at <= moment as gone,
                 t.id <> p_ticket and t.expires_at > moment
                 and (t.rank < place or (t.rank = place and t.seq < coalesce(m.seq, t.seq + 1))) as first
          from limiter_tickets t left join limiter_tickets m on m.id = p_ticket
          where t.principal = p_principal) t;
    if dead > 0 then
        delete from limiter_tickets where principal = p_principal and expires_at <= moment and id <> p_ticket;
    end if;

    -- What counts of those granted before. This ticket itself may be one: granted, but too late to be used.
    select coalesce(sum(units) filter (where leaves_at > moment and id <> p_ticket), 0),
           count(*) filter (where counted and starts_at > moment - span + interval '0.1 second' and id <> p_ticket),
           count(*) filter (where under_way and not gone and id <> p_ticket),
           min(starts_at) filter (where under_way and not gone and id <> p_ticket),
           count(*) filter (where gone),
           coalesce(bool_or(id = p_ticket), false),
           coalesce(bool_or(starts_at >= state.last_start), false)
    into used, sure, busy, oldest, dead, late, remembered
    from (select *, coalesce(done_at, 'infinity') > moment as under_way,
                 leaves_at <= moment
                 and least(done_at, starts_at + p_ttl * interval '1 second') <= moment as gone
          from limiter_grants where principal = p_principal) g;
    if dead >= 16 then      -- together: each is hardly more than nothing to read, and a statement to delete
        delete from limiter_grants
        where principal = p_principal and leaves_at <= moment and id <> p_ticket
          and least(done_at, starts_at + p_ttl * interval '1 second') <= moment;
    end if;

    -- The tables without a log are empty after a crash of the server: let everything leave the window.
    if state.last_start > moment - span and not remembered then
        state.paused_until := greatest(state.paused_until, state.last_start + span + interval '1 second');
    end if;

    turn := greatest(moment, state.paused_until);
    missing := used + before + cost - budget;
    if missing > 0 then
        -- The moment when enough units have left, in the order in which they leave; then whole windows, at the
        -- earliest: who is so far behind asks again before its turn.
        windows := greatest(0, ceil((missing - used)::numeric / budget));
        select min(leaves_at) into room from (
            select leaves_at, sum(units) over (order by leaves_at, id) as gone
            from limiter_grants where principal = p_principal and leaves_at > moment and id <> p_ticket) g
        where gone >= missing - windows * budget;
        room := coalesce(room, moment) + windows * span;
        turn := greatest(turn, room);
        if not state.paced then
            state.paced := true;
            state.pace := room - span * (before + cost) / budget;
        end if;
    elsif used = 0 and ahead = 0 and state.paused_until < moment - span then
        state.paced := false;
    end if;
    if state.paced then
        turn := greatest(turn, state.pace + span * (before + cost) / budget);
    end if;

    wait := extract(epoch from turn - moment);
    if wait > 0 then
        reason := case when state.paused_until > moment then 'paused' else 'window' end;
    elsif busy + ahead + 1 > slots - (case
            -- One slot is left for who is urgent, unless slots come free often.
            when not p_urgent and slots > 1
                 and (state.slow > p_window / 2 or oldest < moment - span / 2) then 1 else 0 end) then
        reason := 'parallel';
    else
        -- Tokens of one account share its slots. Always after the principal's lock, so that there is no deadlock.
        perform pg_advisory_xact_lock(hashtextextended('limiter:' || p_account, 0));
        if (select count(*) >= p_account_parallel from limiter_grants
            where account_id = p_account and (done_at is null or done_at > moment) and id <> p_ticket
              and starts_at > moment - p_ttl * interval '1 second') then
            reason := 'parallel';
        end if;
    end if;

    if reason is null then
        granted := true;
        with used_up as (
            delete from limiter_tickets where id = p_ticket and again
        ), kept as (
            insert into limiter_grants (id, principal, account_id, units, worker, starts_at, leaves_at, seen, sure)
            overriding system value
            values (p_ticket, p_principal, p_account, cost, p_worker, moment, moment + span + lag, used + cost,
                    sure + 1)
            on conflict (id) do update
            set units = excluded.units, starts_at = excluded.starts_at, leaves_at = excluded.leaves_at, done_at = null,
                seen = excluded.seen, sure = excluded.sure
        )
        update limiter_principals
        set paced = state.paced, last_start = greatest(moment, last_start),
            pace = greatest(state.pace + span * cost / budget, moment - p_catch_up * interval '1 second')
        where principal = p_principal;
        if wanted and busy + 1 < slots then        -- who stood behind may have been refused for this one's sake
            perform limiter_wake(p_principal, p_account);
        end if;
        return;
    end if;

    if late then
        update limiter_grants set units = 0, done_at = moment where id = p_ticket;
    end if;
    if reason = 'parallel' then
        wait := p_poll;
        if p_reap then
            -- The session lock goes with the worker's process. MoySklad may notice a little later that it is gone.
            update limiter_grants g set done_at = moment + interval '1 second'
            where g.principal = p_principal and done_at is null and worker is not null
              and not exists (
                  select from workers w where w.id = g.worker and lease_until > moment
                    and (seen_at < pg_postmaster_start_time() or exists (
                        select from pg_locks l
                        where l.locktype = 'advisory' and l.classid = p_lock_class
                          and l.objid = w.id::integer::oid and l.objsubid = 2 and l.granted
                          and l.database = (select oid from pg_database where datname = current_database()))));
        end if;
    elsif wait > p_longest then
        perform limiter_cancel(p_ticket);
        return;
    end if;
    if again then
        update limiter_tickets
        set expires_at = moment + (wait + p_patience) * interval '1 second', channel = p_channel,
            units = cost, wants_slot = (reason = 'parallel')
        where id = p_ticket;
    else
        insert into limiter_tickets (id, principal, account_id, rank, units, expires_at, channel, wants_slot)
        values (p_ticket, p_principal, p_account, place, cost,
                moment + (wait + p_patience) * interval '1 second', p_channel, reason = 'parallel');
    end if;
    if state.paced then
        update limiter_principals set paced = true, pace = state.pace
        where principal = p_principal and not paced;
    end if;
end
$$;

alter function limiter_free set plan_cache_mode = force_generic_plan;
alter function limiter_wake set plan_cache_mode = force_generic_plan;
