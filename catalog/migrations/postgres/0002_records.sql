-- Metadata, lineage and streams: what SQLite's migration 0003 makes. Run in one transaction, which also adds number 2 to
-- `migration`. Texts that clients chose are bytea: any UTF-8, NULs included, compared byte for byte.

-- A payload's metadata: how many events there are, and which of them holds what is current (0: none was set). A number
-- is never used again, so that events of a removed payload can go later.
CREATE TABLE payload_manager.history (
    namespace bigint NOT NULL,
    payload   uuid   NOT NULL,
    id        bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    events    bigint NOT NULL,
    current   bigint NOT NULL,
    PRIMARY KEY (namespace, payload)
);

-- `source` is the actor of an update or the source of a note; `kind` 1 replaced, 2 merged, 3 noted.
CREATE TABLE payload_manager.event (
    history bigint   NOT NULL,
    number  bigint   NOT NULL,  -- 1, 2, ... without a gap
    at      bigint   NOT NULL,  -- milliseconds since 1970
    kind    smallint NOT NULL,
    data    bytea    NOT NULL,
    schema  bytea    NOT NULL,
    source  bytea    NOT NULL,
    reason  bytea    NOT NULL,
    version bytea    NOT NULL,
    PRIMARY KEY (history, number)
);

-- `digest` is SHA-256 of operation and role, which together may be longer than the 2,704 bytes of an index entry.
CREATE TABLE payload_manager.lineage (
    namespace  bigint NOT NULL,
    child      uuid   NOT NULL,
    parent     uuid   NOT NULL,
    digest     bytea  NOT NULL,
    operation  bytea  NOT NULL,
    role       bytea  NOT NULL,
    parameters bytea  NOT NULL,
    PRIMARY KEY (namespace, child, parent, digest)
);
CREATE INDEX lineage_down ON payload_manager.lineage (namespace, parent);

-- Removed payloads that had edges, until a sweep has looked whether anything living is connected with them.
CREATE TABLE payload_manager.lineage_dirty (
    namespace bigint NOT NULL,
    payload   uuid   NOT NULL,
    PRIMARY KEY (namespace, payload)
);

-- The dead payloads that such a look has met so far. One node sweeps at a time.
CREATE TABLE payload_manager.lineage_walk (
    namespace bigint  NOT NULL,
    payload   uuid    NOT NULL,
    expanded  boolean NOT NULL,  -- true: its neighbours are in the walk, too
    PRIMARY KEY (namespace, payload)
);
CREATE INDEX lineage_walk_next ON payload_manager.lineage_walk (expanded, namespace, payload);

-- A stream keeps the entries from `first` on; `next` is the offset of the next one. An id is never used again: a stream
-- that is made anew under an old name never meets what is left of the old one.
CREATE TABLE payload_manager.stream (
    id          bigint NOT NULL GENERATED ALWAYS AS IDENTITY UNIQUE,
    namespace   bytea  NOT NULL,
    name        bytea  NOT NULL,
    entries_max bigint,            -- NULL: no limit
    age_ms_max  bigint,            -- NULL: no limit
    first       bigint NOT NULL,
    next        bigint NOT NULL,
    last_at     bigint NOT NULL,   -- milliseconds since 1970: the last append, 0 for none
    due_at      bigint,            -- milliseconds since 1970: when a sweep may find something to remove
    created_at  bigint NOT NULL,   -- milliseconds since 1970
    PRIMARY KEY (namespace, name)
) WITH (fillfactor = 50);
CREATE INDEX stream_due ON payload_manager.stream (due_at, id) WHERE due_at IS NOT NULL;

-- Entries that were appended together, packed (catalog/src/records/codec.rs).
CREATE TABLE payload_manager.stream_batch (
    stream      bigint NOT NULL,
    first       bigint NOT NULL,  -- the offset of the first entry
    count       bigint NOT NULL,
    appended_at bigint NOT NULL,  -- milliseconds since 1970; never less than that of the batch before
    entries     bytea  NOT NULL,
    PRIMARY KEY (stream, first)
);
-- Ids do not compress: trying would cost more than the rest of an append.
ALTER TABLE payload_manager.stream_batch ALTER COLUMN entries SET STORAGE EXTERNAL;

-- The offset that a consumer group wants next.
CREATE TABLE payload_manager.stream_group (
    stream bigint NOT NULL,
    name   bytea  NOT NULL,
    next   bigint NOT NULL,
    at     bigint NOT NULL,  -- milliseconds since 1970
    PRIMARY KEY (stream, name)
);

-- What is named no more, and is removed bit by bit: 1 a stream's batches and groups, 2 a history's events.
CREATE TABLE payload_manager.garbage (
    kind smallint NOT NULL,
    id   bigint   NOT NULL,
    PRIMARY KEY (kind, id)
);
