-- Finding payloads by their metadata: what SQLite's migration 0005 makes. Run in one transaction, which also adds number 5
-- to `migration` and fills in the terms of the metadata that are there already (postgres/terms.rs).

-- The terms of a payload's current metadata, so that they are taken away whatever made them.
ALTER TABLE payload_manager.history ADD COLUMN terms bigint[] NOT NULL DEFAULT '{}';

-- A term is a hash of a schema, of a field with its value, or of a tag (catalog/src/records/terms.rs), its 64 bits as a
-- signed number.
CREATE TABLE payload_manager.metadata_term (
    namespace bigint NOT NULL,
    term      bigint NOT NULL,
    payload   uuid   NOT NULL,
    PRIMARY KEY (namespace, term, payload)
);
