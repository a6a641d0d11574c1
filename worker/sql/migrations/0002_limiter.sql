-- The limiter's one decision, made on the server's clock under the principal's row lock.
--
-- A request's units count from its grant until `p_window` after its end. MoySklad counts a request at
-- some moment between the two, so no window of MoySklad's can hold more than p_budget units, whatever
-- the network does in between (md/_restrictions.md: 45 units per 3 s, 5 parallel per principal, 20 per
-- account).
create function limiter_acquire(
    p_principal text, p_account uuid, p_units integer, p_budget integer, p_window double precision,
    p_parallel integer, p_account_parallel integer, p_worker bigint, p_ttl double precision,
    out grant_id bigint, out wait double precision, out reason text
) language plpgsql as $$
declare
    paused timestamptz;
    moment timestamptz;
    span interval := p_window * interval '1 second';
    used integer;
    free_at timestamptz;
begin
    insert into limiter_principals (principal) values (p_principal) on conflict do nothing;
    select paused_until into paused from limiter_principals where principal = p_principal for update;
    moment := clock_timestamp();        -- after the lock: a waiter must not use the time of its arrival
    if paused > moment then
        wait := extract(epoch from paused - moment);
        reason := 'paused';
        return;
    end if;

    delete from limiter_grants
    where principal = p_principal
      and (done_at <= moment - span or granted_at <= moment - span - p_ttl * interval '1 second');

    if (select count(*) >= p_parallel from limiter_grants where principal = p_principal and done_at is null)
       or (select count(*) >= p_account_parallel from limiter_grants
           where account_id = p_account and done_at is null) then
        wait := 0.02;
        reason := 'parallel';
        return;
    end if;

    select coalesce(sum(units), 0) into used from limiter_grants where principal = p_principal;
    if used + p_units > p_budget then
        -- When enough of the oldest have left. Those under way leave p_window after their end at best.
        select max(leaves) into free_at from (
            select coalesce(done_at, moment) + span as leaves,
                   sum(units) over (order by coalesce(done_at, moment), id) - units as before
            from limiter_grants where principal = p_principal) g
        where before < used + p_units - p_budget;
        wait := greatest(extract(epoch from free_at - moment), 0.005);
        reason := 'window';
        return;
    end if;

    insert into limiter_grants (principal, account_id, units, worker, granted_at)
    values (p_principal, p_account, p_units, p_worker, moment)
    returning id into grant_id;
    wait := 0;
end
$$;
