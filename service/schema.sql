-- The database of graft. Numbered migrations, forward only, each applied in one transaction;
-- PRAGMA user_version is the number of the last one. A released migration is never edited.
-- Times are unix milliseconds, except lease_until and run_at (boot clock, see queue.h).

-- migration 1

CREATE TABLE blobs (
    sha256     TEXT PRIMARY KEY CHECK (length(sha256) = 64),
    bytes      INTEGER NOT NULL CHECK (bytes >= 0),
    git_sha1   TEXT CHECK (length(git_sha1) = 40),
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE files (
    seq            INTEGER PRIMARY KEY,
    id             TEXT NOT NULL UNIQUE,
    created_at     INTEGER NOT NULL,
    expires_at     INTEGER,
    filename       TEXT NOT NULL,
    purpose        TEXT NOT NULL,
    sha256         TEXT NOT NULL REFERENCES blobs (sha256),
    status         TEXT NOT NULL CHECK (status IN ('uploaded', 'processed', 'error')),
    status_details TEXT
) STRICT;
CREATE INDEX files_sha256 ON files (sha256);

-- seq orders jobs by creation; events refer to it.
CREATE TABLE jobs (
    seq              INTEGER PRIMARY KEY,
    id               TEXT NOT NULL UNIQUE,
    created_at       INTEGER NOT NULL,
    -- What was asked. Never changes.
    model            TEXT NOT NULL,
    training_file    TEXT NOT NULL,
    validation_file  TEXT,
    method           TEXT NOT NULL,
    settings         TEXT NOT NULL,
    method_echo      TEXT NOT NULL,
    seed             INTEGER NOT NULL,
    suffix           TEXT,
    metadata         TEXT,
    integrations     TEXT,
    priority         INTEGER NOT NULL,
    max_attempts     INTEGER NOT NULL CHECK (max_attempts >= 1),
    result_id        TEXT NOT NULL UNIQUE,
    -- The state machine (queue.h).
    state            TEXT NOT NULL CHECK (state IN ('validating', 'queued', 'retrying', 'running',
                         'paused', 'succeeded', 'failed', 'cancelled')),
    want             TEXT NOT NULL DEFAULT 'none' CHECK (want IN ('none', 'pause', 'cancel')),
    attempt          INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    crashes          INTEGER NOT NULL DEFAULT 0,
    losses           INTEGER NOT NULL DEFAULT 0,
    crash_step       INTEGER,
    crash_signal     INTEGER,
    run_at           INTEGER NOT NULL DEFAULT 0,
    lease_until      INTEGER,
    boot_id          TEXT NOT NULL DEFAULT '',
    -- What the worker said.
    started_at       INTEGER,
    phase            TEXT,
    step             INTEGER NOT NULL DEFAULT 0,
    progress         TEXT,
    events_offset    INTEGER NOT NULL DEFAULT 0,
    -- How it ended.
    finished_at      INTEGER,
    error            TEXT,
    fine_tuned_model TEXT,
    result_files     TEXT,
    trained_tokens   INTEGER,
    CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))),
    CHECK ((lease_until IS NOT NULL) = (state = 'running')),
    CHECK (want = 'none' OR state = 'running'),
    CHECK ((fine_tuned_model IS NOT NULL) = (state = 'succeeded')),
    CHECK ((error IS NOT NULL) = (state = 'failed'))
) STRICT;

-- Claiming costs the same however long the history is.
CREATE INDEX jobs_ready ON jobs (priority DESC, run_at, seq)
    WHERE state IN ('queued', 'retrying');
CREATE INDEX jobs_open ON jobs (state)
    WHERE state NOT IN ('succeeded', 'failed', 'cancelled');

CREATE TRIGGER jobs_final BEFORE UPDATE ON jobs
    WHEN OLD.state IN ('succeeded', 'failed', 'cancelled')
BEGIN SELECT RAISE(ABORT, 'a job that has ended does not change'); END;

CREATE TRIGGER jobs_legal BEFORE UPDATE OF state ON jobs
    WHEN NEW.state <> OLD.state AND OLD.state || '>' || NEW.state NOT IN (
        'validating>queued', 'validating>failed', 'validating>cancelled',
        'queued>running', 'queued>paused', 'queued>cancelled',
        'retrying>running', 'retrying>paused', 'retrying>cancelled',
        'running>succeeded', 'running>failed', 'running>cancelled', 'running>paused',
        'running>retrying',
        'paused>queued', 'paused>cancelled')
BEGIN SELECT RAISE(ABORT, 'no such transition'); END;

CREATE TRIGGER jobs_attempt BEFORE UPDATE OF attempt ON jobs
    WHEN NEW.attempt < OLD.attempt
BEGIN SELECT RAISE(ABORT, 'attempts only count up'); END;

CREATE TABLE events (
    job        INTEGER NOT NULL REFERENCES jobs (seq),
    n          INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    level      TEXT NOT NULL CHECK (level IN ('info', 'warn', 'error')),
    type       TEXT NOT NULL CHECK (type IN ('message', 'metrics')),
    message    TEXT NOT NULL,
    data       TEXT,
    state      TEXT, -- the state that this event reports
    PRIMARY KEY (job, n)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER events_gapless BEFORE INSERT ON events
    WHEN NEW.n <> (SELECT coalesce(max(n), 0) + 1 FROM events WHERE job = NEW.job)
BEGIN SELECT RAISE(ABORT, 'events are numbered without gaps'); END;
CREATE TRIGGER events_no_update BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;

-- dir is absolute for folders of users, else relative to the data folder.
CREATE TABLE models (
    seq         INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    kind        TEXT NOT NULL CHECK (kind IN ('base', 'merged', 'adapter')),
    parent      TEXT,
    job         INTEGER REFERENCES jobs (seq),
    commit_sha  TEXT NOT NULL CHECK (length(commit_sha) = 40),
    dir         TEXT NOT NULL,
    bytes       INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    info        TEXT NOT NULL,
    CHECK ((kind = 'base') = (job IS NULL))
) STRICT;

CREATE TABLE model_files (
    model    INTEGER NOT NULL REFERENCES models (seq) ON DELETE CASCADE,
    path     TEXT NOT NULL,
    bytes    INTEGER NOT NULL CHECK (bytes >= 0),
    sha256   TEXT NOT NULL CHECK (length(sha256) = 64),
    git_sha1 TEXT CHECK (length(git_sha1) = 40),
    PRIMARY KEY (model, path)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    key        TEXT PRIMARY KEY,
    request    TEXT NOT NULL,
    reply      TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_age ON idempotency (created_at);
