-- The object store: what SQLite's migration 0007 makes, and whose entries they are. Run in one transaction, which also adds
-- number 7 to `migration`.

-- What a row knows of its replica on OBJECT: bytes in the store, how they are compressed (as the contract numbers it), and
-- the store's tag of this version.
ALTER TABLE payload_manager.payload
    ADD COLUMN object_stored bigint,
    ADD COLUMN object_compression bigint,
    ADD COLUMN object_etag text;

-- What a node put, or is about to put, into the store and no row vouches for. One entry a payload: an upload (`removal`
-- false) or an object that is to be deleted (true).
CREATE TABLE payload_manager.object_upload (
    payload     uuid    NOT NULL PRIMARY KEY,
    owner       integer NOT NULL,  -- the node
    removal     boolean NOT NULL,
    generation  bigint  NOT NULL,
    size        bigint  NOT NULL,  -- of the payload, in bytes
    part_bytes  bigint  NOT NULL,
    compression bigint  NOT NULL,
    upload      text               -- the store's name for an upload in parts
);

CREATE TABLE payload_manager.object_part (
    payload uuid   NOT NULL REFERENCES payload_manager.object_upload ON DELETE CASCADE,
    number  bigint NOT NULL,  -- 0, 1, ...
    tag     text   NOT NULL,  -- what completes the upload
    hash    bigint NOT NULL,  -- XXH3-64 of its bytes as stored, as a signed number
    PRIMARY KEY (payload, number)
);

-- A row that names an object settles its upload, and one that is removed leaves an entry to delete it, each in the row's own
-- transaction.
CREATE FUNCTION payload_manager.object_named() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM payload_manager.object_upload WHERE payload = new.id AND NOT removal;
    RETURN NULL;
END $$;
CREATE FUNCTION payload_manager.object_unnamed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO payload_manager.object_upload (payload, owner, removal, generation, size, part_bytes, compression)
    VALUES (old.id, old.owner, true, old.object >> 1, old.size, 0, 0)
    ON CONFLICT (payload) DO UPDATE SET removal = true;
    RETURN NULL;
END $$;
CREATE TRIGGER object_named AFTER INSERT OR UPDATE OF object ON payload_manager.payload
    FOR EACH ROW WHEN (new.object IS NOT NULL) EXECUTE FUNCTION payload_manager.object_named();
CREATE TRIGGER object_unnamed AFTER DELETE ON payload_manager.payload
    FOR EACH ROW WHEN (old.object IS NOT NULL) EXECUTE FUNCTION payload_manager.object_unnamed();
