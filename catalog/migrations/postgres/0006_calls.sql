-- What calls made that clients may send again (`x-request-id`): what SQLite's migration 0006 makes. Run in one transaction,
-- which also adds number 6 to `migration`.
CREATE TABLE payload_manager.call_note (
    call    bytea  NOT NULL PRIMARY KEY,  -- the method and the client's id
    request bigint NOT NULL,              -- a hash of what was asked
    at      bigint NOT NULL,              -- milliseconds since 1970
    about   bigint NOT NULL,              -- the stream, or the history
    first   bigint NOT NULL,              -- the first offset, or the number of the event
    last    bigint NOT NULL
);

CREATE INDEX call_note_at ON payload_manager.call_note (at);
