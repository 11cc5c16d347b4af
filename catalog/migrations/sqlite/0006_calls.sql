-- What calls made that clients may send again (`x-request-id`), so that a repeat after a restart makes nothing twice. Run in
-- one transaction together with `PRAGMA user_version = 6`.
CREATE TABLE call_note (
    call    BLOB    NOT NULL PRIMARY KEY,  -- the method and the client's id
    request INTEGER NOT NULL,              -- a hash of what was asked
    at      INTEGER NOT NULL,              -- milliseconds since 1970
    about   INTEGER NOT NULL,              -- the stream, or the history
    first   INTEGER NOT NULL,              -- the first offset, or the number of the event
    last    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX call_note_at ON call_note (at);
