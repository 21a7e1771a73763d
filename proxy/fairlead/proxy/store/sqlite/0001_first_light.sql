-- Runs, attempts, idempotency, registry, operators' decisions about nodes, key epochs.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE runs (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id          TEXT NOT NULL UNIQUE,
    parent_id       TEXT NOT NULL DEFAULT '',
    tenant          TEXT NOT NULL,
    command         TEXT NOT NULL,
    effect          TEXT NOT NULL CHECK (effect IN ('idempotent', 'transactional', 'once')),
    args_json       BLOB NOT NULL,
    target          TEXT NOT NULL,
    target_node     TEXT NOT NULL,
    identity_json   BLOB NOT NULL,
    correlation_id  TEXT NOT NULL,
    idempotency_key TEXT NOT NULL DEFAULT '',
    status          TEXT NOT NULL
        CHECK (status IN ('PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')),
    accepted_at_ms  INTEGER NOT NULL,
    deadline_at_ms  INTEGER NOT NULL,
    timeout_ms      INTEGER NOT NULL,
    finished_at_ms  INTEGER,
    fence           INTEGER NOT NULL DEFAULT 0,
    node_id         TEXT NOT NULL DEFAULT '',
    incarnation     TEXT NOT NULL DEFAULT '',
    lease_until_ms  INTEGER NOT NULL DEFAULT 0,
    value_json      BLOB,
    reason          TEXT NOT NULL DEFAULT '',
    detail          TEXT NOT NULL DEFAULT '',
    children_open   INTEGER NOT NULL DEFAULT 0,
    children_failed INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX runs_pending ON runs (target_node, seq) WHERE status = 'PENDING';
CREATE INDEX runs_held ON runs (node_id, seq) WHERE status = 'RUNNING';
CREATE INDEX runs_deadline ON runs (deadline_at_ms) WHERE status IN ('PENDING', 'RUNNING');
CREATE INDEX runs_finished ON runs (finished_at_ms) WHERE finished_at_ms IS NOT NULL;
CREATE INDEX runs_parent ON runs (parent_id) WHERE parent_id <> '';

-- What ended stays as it ended, whoever asks.
CREATE TRIGGER runs_terminal_immutable BEFORE UPDATE ON runs
WHEN OLD.status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')
BEGIN
    SELECT RAISE(ABORT, 'terminal state is immutable');
END;

-- INSERT OR REPLACE would be a way around: it deletes the old row without firing triggers.
CREATE TRIGGER runs_terminal_not_replaced BEFORE INSERT ON runs
WHEN EXISTS (
    SELECT 1 FROM runs WHERE run_id = NEW.run_id AND status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')
)
BEGIN
    SELECT RAISE(ABORT, 'terminal state is immutable');
END;

CREATE TABLE attempts (
    run_id         TEXT NOT NULL,
    fence          INTEGER NOT NULL,
    node_id        TEXT NOT NULL,
    incarnation    TEXT NOT NULL,
    claimed_at_ms  INTEGER NOT NULL,
    ended_at_ms    INTEGER,
    outcome        TEXT NOT NULL DEFAULT '',
    reason         TEXT NOT NULL DEFAULT '',
    detail         TEXT NOT NULL DEFAULT '',
    started_at_ms  INTEGER,
    finished_at_ms INTEGER,
    PRIMARY KEY (run_id, fence)
) WITHOUT ROWID;

CREATE TABLE idempotency (
    tenant        TEXT NOT NULL,
    key           TEXT NOT NULL,
    payload_hash  BLOB NOT NULL,
    run_id        TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_run ON idempotency (run_id);

CREATE TABLE descriptors (
    name          TEXT PRIMARY KEY,
    canonical     BLOB NOT NULL,
    source        TEXT NOT NULL,
    changed_at_ms INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE node_overrides (
    node_id       TEXT PRIMARY KEY,
    paused        INTEGER NOT NULL,
    draining      INTEGER NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    changed_by    TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE key_epochs (
    role          INTEGER NOT NULL,
    identity      TEXT NOT NULL,
    epoch         INTEGER NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    changed_by    TEXT NOT NULL,
    PRIMARY KEY (role, identity)
) WITHOUT ROWID;
