-- The limiter's one decision, made on the server's clock under the principal's row lock: when the next
-- request may be sent. The answer is a reservation, so that callers are served in the order in which they
-- came, in one round trip, and sleep until their turn.
--
-- MoySklad counts a request when it arrives (md/_restrictions.md: 45 units in 3 s, 5 parallel per principal,
-- 20 per account): at the latest p_lag after its start, or when it is over, if that is sooner. So its units
-- are out of every window of MoySklad's p_window after that moment, `leaves_at`, and a start is granted when
-- those still in it leave room. Starts never go back in time, so what was granted later is no surprise.
-- The first window is free; once it is full, starts are spaced evenly.
create function limiter_acquire(
    p_principal text, p_account uuid, p_units integer, p_budget integer, p_window double precision,
    p_lag double precision, p_parallel integer, p_account_parallel integer, p_longest double precision,
    p_worker bigint, p_ttl double precision,
    out grant_id bigint, out wait double precision, out reason text
) language plpgsql as $$
declare
    state limiter_principals;
    moment timestamptz;
    start timestamptz;
    room timestamptz;
    span interval := p_window * interval '1 second';
begin
    insert into limiter_principals (principal) values (p_principal) on conflict do nothing;
    select * into state from limiter_principals where principal = p_principal for update;
    -- Tokens of one account share its slots. Always after the principal's lock, so that there is no deadlock.
    perform pg_advisory_xact_lock(hashtextextended('limiter:' || p_account, 0));
    moment := clock_timestamp();        -- after the locks: a waiter must not use the time of its arrival

    delete from limiter_grants
    where principal = p_principal and leaves_at <= moment
      and (done_at is not null or starts_at <= moment - p_ttl * interval '1 second');

    if (select count(*) >= p_parallel from limiter_grants where principal = p_principal and done_at is null)
       or (select count(*) >= p_account_parallel from limiter_grants
           where account_id = p_account and done_at is null
             and starts_at > moment - p_ttl * interval '1 second') then
        wait := 0.02;
        reason := 'parallel';
        return;
    end if;

    start := greatest(moment, state.last_start, state.paused_until);
    -- The moment when enough units have left, in the order in which they leave.
    select max(leaves_at) into room from (
        select leaves_at, sum(units) over (order by leaves_at desc, id desc) as after
        from limiter_grants where principal = p_principal and leaves_at > start) g
    where after + p_units > p_budget;
    if room is not null then
        start := greatest(room, state.last_start + span * p_units / p_budget);
    end if;

    wait := extract(epoch from start - moment);
    if wait > p_longest then
        reason := case when state.paused_until > moment then 'paused' else 'window' end;
        return;
    end if;
    insert into limiter_grants (principal, account_id, units, worker, starts_at, leaves_at)
    values (p_principal, p_account, p_units, p_worker, start, start + span + p_lag * interval '1 second')
    returning id into grant_id;
    update limiter_principals set last_start = start where principal = p_principal;
end
$$;
