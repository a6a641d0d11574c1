-- Workers behind a pooler, whose session holds no lock.
alter table workers add column pooled boolean not null default false;
