-- What operators ask of workers, and what all processes have counted.

-- An operator's word: end after the batch under way. A worker reads it with its heartbeat.
alter table workers add column restart boolean not null default false;

-- Counters and histograms of processes that come and go, summed up; /metrics tells them.
create table counters (
    name text not null,
    labels jsonb not null,
    value double precision not null,
    primary key (name, labels)
) with (fillfactor = 50);
