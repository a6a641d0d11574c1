-- Tasks move between PostgreSQL and Redis while runs are under way.

-- Whether tasks of the run are in Redis, so that only who sees both may end it: null: none ever was; {}: there may be
-- open ones; else there are none left, and so many had ended there.
alter table runs add column in_redis jsonb;

-- A moment as Redis has it.
create function microseconds(at timestamptz) returns bigint language sql stable as $$
    select (extract(epoch from at) * 1000000)::bigint
$$;
