-- Room that pruned and changed tasks leave is found again as fast as tasks come.
-- expand: nothing but a setting of the table.

-- At PostgreSQL's own pace (some 40 MB/s) a vacuum of this table takes longer than it takes busy workers to leave more
-- behind than it finds: it reads a table that grows by what accrues meanwhile, and so each takes longer than the one
-- before. Measured at 25,000 tasks a second: 1.7 GB after 5 million tasks, 2.9 GB after 10 million, with 600,000 rows.
-- At three times the pace it has done before the next one is due. At ten times a vacuum that a forgotten transaction
-- makes futile is felt: a worker beside it lost a fifth of its rate.
alter table sync_queue set (autovacuum_vacuum_cost_limit = 600);
