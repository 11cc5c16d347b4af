-- Streams that retain payloads: what their entries refer to stays until every group has passed it. Run in one transaction
-- together with `PRAGMA user_version = 4`.
ALTER TABLE stream ADD COLUMN retains INTEGER NOT NULL DEFAULT 0;  -- 1: it does
CREATE INDEX stream_retains ON stream (id) WHERE retains = 1;

-- The group that is furthest behind: what it wants next is held.
CREATE INDEX stream_group_next ON stream_group (stream, next);
