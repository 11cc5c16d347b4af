-- Streams that retain payloads: what their entries refer to stays until every group has passed it; what SQLite's migration
-- 0004 makes. Run in one transaction, which also adds number 4 to `migration`.
ALTER TABLE payload_manager.stream ADD COLUMN retains boolean NOT NULL DEFAULT false;
CREATE INDEX stream_retains ON payload_manager.stream (id) WHERE retains;

-- The group that is furthest behind: what it wants next is held.
CREATE INDEX stream_group_next ON payload_manager.stream_group (stream, next);
