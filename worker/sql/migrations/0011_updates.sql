-- Updates without an answer are remembered like creates, so that one executed late does not outlive a newer one.

-- Of an update: what was sent; empty where several differing ones were.
alter table intents add column hash text;
