-- The first schema: what SQLite's migrations 0001 and 0002 make, and who wrote a row. Run in one transaction, which
-- also adds number 1 to `migration`. A schema of its own, so that the database may hold other programs' tables.
-- Text that clients give is `bytea`: `text` cannot hold a NUL.
CREATE SCHEMA payload_manager;

CREATE TABLE payload_manager.migration (
    number integer PRIMARY KEY,
    made_at timestamptz NOT NULL DEFAULT now()
);

-- One row a server's name. `epoch` is the number of its latest start; numbers are shared by all names. Every write
-- names the epoch and the session that it belongs to, and is refused when either has moved on: a later start under this
-- name moves the first, a connection made anew the second. `last_group` is the last group of changes that was
-- committed: what tells, after a connection broke, whether a group was.
-- A quarter full, so that the update of each group finds room in its own page.
CREATE TABLE payload_manager.node (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text   NOT NULL UNIQUE,
    epoch      bigint NOT NULL,
    session    bigint NOT NULL,
    last_group bigint NOT NULL,
    heartbeat  timestamptz,             -- when it was last known to run; NULL: it has stopped
    address    text   NOT NULL,         -- host:port of its gRPC
    disk_root  text                     -- the id of the disk root that its rows speak of
) WITH (fillfactor = 25);

CREATE TABLE payload_manager.namespace (
    id   bigint PRIMARY KEY,
    name text NOT NULL UNIQUE
);
INSERT INTO payload_manager.namespace (id, name) VALUES (1, 'default');

-- Committed payloads. Neither `owner` nor `namespace` has an enforced foreign key: one change of a batch must never
-- fail the others, and each check costs a lock.
CREATE TABLE payload_manager.payload (
    namespace       bigint   NOT NULL,
    id              uuid     NOT NULL,
    size            bigint   NOT NULL,  -- bytes
    version         bigint   NOT NULL,
    epoch           bigint   NOT NULL,  -- the start in which the row was written
    created_at      bigint   NOT NULL,  -- milliseconds since 1970
    owner           integer  NOT NULL,  -- the node whose tiers hold the replicas
    state           smallint NOT NULL,
    no_evict        smallint NOT NULL,
    priority        smallint NOT NULL,
    require_durable smallint NOT NULL,
    health          smallint NOT NULL,  -- 0 good, 1 lost, 2 damaged
    unsound         smallint NOT NULL,  -- replicas whose bytes were found damaged: 2^tier each
    spill_target    smallint,           -- tier, 5: VOID
    min_residency   smallint,           -- tier
    expires_at      bigint,             -- milliseconds since 1970; NULL: never
    checksum        bigint,             -- XXH3-64, its 64 bits as a signed number
    pinned_until    bigint,             -- milliseconds since 1970; 2^63-1: until Unpin; NULL: not pinned
    -- The replica on each tier, if the row vouches for one: generation * 2 + (1 if on stable storage).
    gpu             bigint,
    ram             bigint,
    disk            bigint,
    object          bigint,
    extent          bigint,             -- of the replica on DISK: number of its file * 2^32 + first page
    PRIMARY KEY (namespace, id)
);
