-- Enqueue at less cost: twins are found by what tells tasks apart.

-- The id before the type: the account's tasks are of few types, and each insert compares with some twenty entries.
drop index sync_queue_coalesce;
create unique index sync_queue_coalesce on sync_queue (account_id, entity_id, entity_type, operation)
    where status = 'pending';
