-- Trust: runs that wait for approval, seals over what grants authority, approvals, operator keys, an audit trail that is
-- a chain.

-- -- runs

ALTER TABLE runs RENAME TO runs_old;
DROP INDEX runs_pending;
DROP INDEX runs_delayed;
DROP INDEX runs_held;
DROP INDEX runs_deadline;
DROP INDEX runs_finished;
DROP INDEX runs_parent;
DROP INDEX runs_lineage;
DROP INDEX runs_ordered;
DROP TRIGGER runs_terminal_immutable;
DROP TRIGGER runs_terminal_not_replaced;

CREATE TABLE runs (
    seq                 INTEGER PRIMARY KEY,
    run_id              TEXT NOT NULL UNIQUE,
    root_id             TEXT NOT NULL,
    retry_of_run_id     TEXT NOT NULL DEFAULT '',
    parent_id           TEXT NOT NULL DEFAULT '',
    tenant              TEXT NOT NULL,
    command             TEXT NOT NULL,
    effect              TEXT NOT NULL CHECK (effect IN ('idempotent', 'transactional', 'once')),
    args_json           BLOB NOT NULL,
    target              TEXT NOT NULL,
    target_node         TEXT NOT NULL,
    identity_json       BLOB NOT NULL,
    correlation_id      TEXT NOT NULL,
    idempotency_key     TEXT NOT NULL DEFAULT '',
    ordering_key        TEXT NOT NULL DEFAULT '',
    priority            INTEGER NOT NULL DEFAULT 5,
    callback_url        TEXT NOT NULL DEFAULT '',
    status              TEXT NOT NULL
        CHECK (status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')),
    accepted_at_ms      INTEGER NOT NULL,
    accepted_by         TEXT NOT NULL DEFAULT '',
    due_at_ms           INTEGER NOT NULL,
    not_before_ms       INTEGER NOT NULL DEFAULT 0,
    ready               INTEGER NOT NULL DEFAULT 1,
    deadline_at_ms      INTEGER NOT NULL,
    timeout_ms          INTEGER NOT NULL,
    finished_at_ms      INTEGER,
    attempts_max        INTEGER NOT NULL DEFAULT 0,
    attempts_failed     INTEGER NOT NULL DEFAULT 0,
    fence               INTEGER NOT NULL DEFAULT 0,
    node_id             TEXT NOT NULL DEFAULT '',
    incarnation         TEXT NOT NULL DEFAULT '',
    owner               TEXT NOT NULL DEFAULT '',
    claimed_at_ms       INTEGER NOT NULL DEFAULT 0,
    lease_until_ms      INTEGER NOT NULL DEFAULT 0,
    started_at_ms       INTEGER NOT NULL DEFAULT 0,
    node_finished_at_ms INTEGER NOT NULL DEFAULT 0,
    cancel_at_ms        INTEGER NOT NULL DEFAULT 0,
    cancel_by           TEXT NOT NULL DEFAULT '',
    value_json          BLOB,
    reason              TEXT NOT NULL DEFAULT '',
    detail              TEXT NOT NULL DEFAULT '',
    children_open       INTEGER NOT NULL DEFAULT 0,
    children_failed     INTEGER NOT NULL DEFAULT 0,
    principal           TEXT NOT NULL DEFAULT '',
    approval_id         TEXT NOT NULL DEFAULT '',
    seal                BLOB NOT NULL DEFAULT x'',
    delivery_seal       BLOB NOT NULL DEFAULT x''
);
INSERT INTO runs (
    seq, run_id, root_id, retry_of_run_id, parent_id, tenant, command, effect, args_json, target, target_node,
    identity_json, correlation_id, idempotency_key, ordering_key, priority, callback_url, status, accepted_at_ms,
    accepted_by, due_at_ms, not_before_ms, ready, deadline_at_ms, timeout_ms, finished_at_ms, attempts_max,
    attempts_failed, fence, node_id, incarnation, owner, claimed_at_ms, lease_until_ms, started_at_ms,
    node_finished_at_ms, cancel_at_ms, cancel_by, value_json, reason, detail, children_open, children_failed
) SELECT
    seq, run_id, root_id, retry_of_run_id, parent_id, tenant, command, effect, args_json, target, target_node,
    identity_json, correlation_id, idempotency_key, ordering_key, priority, callback_url, status, accepted_at_ms,
    accepted_by, due_at_ms, not_before_ms, ready, deadline_at_ms, timeout_ms, finished_at_ms, attempts_max,
    attempts_failed, fence, node_id, incarnation, owner, claimed_at_ms, lease_until_ms, started_at_ms,
    node_finished_at_ms, cancel_at_ms, cancel_by, value_json, reason, detail, children_open, children_failed
  FROM runs_old;
DROP TABLE runs_old;

CREATE INDEX runs_pending ON runs (target_node, priority DESC, seq, due_at_ms) WHERE status = 'PENDING' AND ready = 1;
CREATE INDEX runs_delayed ON runs (due_at_ms) WHERE status = 'PENDING' AND ready = 0;
CREATE INDEX runs_held ON runs (node_id, seq) WHERE status = 'RUNNING';
CREATE INDEX runs_deadline ON runs (deadline_at_ms) WHERE status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING');
CREATE INDEX runs_finished ON runs (finished_at_ms) WHERE finished_at_ms IS NOT NULL;
CREATE INDEX runs_parent ON runs (parent_id) WHERE parent_id <> '';
CREATE INDEX runs_lineage ON runs (root_id) WHERE retry_of_run_id <> '';
CREATE INDEX runs_ordered ON runs (tenant, ordering_key, seq)
    WHERE ordering_key <> '' AND status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING');

-- What ended stays as it ended, whoever asks. Its seals may be renewed under another key, and say nothing new.
CREATE TRIGGER runs_terminal_immutable BEFORE UPDATE OF
    run_id, root_id, retry_of_run_id, parent_id, tenant, command, effect, args_json, target, target_node,
    identity_json, correlation_id, idempotency_key, ordering_key, priority, callback_url, status, accepted_at_ms,
    accepted_by, due_at_ms, not_before_ms, ready, deadline_at_ms, timeout_ms, finished_at_ms, attempts_max,
    attempts_failed, fence, node_id, incarnation, owner, claimed_at_ms, lease_until_ms, started_at_ms,
    node_finished_at_ms, cancel_at_ms, cancel_by, value_json, reason, detail, children_open, children_failed,
    principal, approval_id
ON runs
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
CREATE INDEX runs_approval ON runs (approval_id) WHERE approval_id <> '' AND status = 'PENDING_APPROVAL';

-- -- seals: of a row, and of a whole table whose rows take authority away

ALTER TABLE descriptors ADD COLUMN seal BLOB NOT NULL DEFAULT x'';
ALTER TABLE node_overrides ADD COLUMN seal BLOB NOT NULL DEFAULT x'';
ALTER TABLE key_epochs ADD COLUMN seal BLOB NOT NULL DEFAULT x'';
ALTER TABLE replay_budgets ADD COLUMN seal BLOB NOT NULL DEFAULT x'';
ALTER TABLE feature_flags ADD COLUMN seal BLOB NOT NULL DEFAULT x'';
ALTER TABLE agent_controls ADD COLUMN seal BLOB NOT NULL DEFAULT x'';
ALTER TABLE replay_runs ADD COLUMN seal BLOB NOT NULL DEFAULT x'';
ALTER TABLE dead_letters ADD COLUMN seal BLOB NOT NULL DEFAULT x'';
-- A row that nobody set says what the program says anyway.
DELETE FROM agent_controls WHERE company_id = '*' AND changed_at_ms = 0;
DELETE FROM feature_flags WHERE changed_at_ms = 0;
CREATE TABLE sealed_tables (
    name          TEXT PRIMARY KEY,
    rows_count    INTEGER NOT NULL,
    manifest      BLOB NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    seal          BLOB NOT NULL
) WITHOUT ROWID;

-- -- operator keys

CREATE TABLE operator_keys (
    id              TEXT PRIMARY KEY,
    hash            BLOB NOT NULL UNIQUE,
    role            TEXT NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    scopes_json     TEXT NOT NULL DEFAULT '[]',
    tenant          TEXT NOT NULL DEFAULT '',
    read_scope      TEXT NOT NULL DEFAULT 'any' CHECK (read_scope IN ('self', 'tenant', 'any')),
    subject_type    TEXT NOT NULL DEFAULT 'service' CHECK (subject_type IN ('human', 'service', 'agent')),
    note            TEXT NOT NULL DEFAULT '',
    created_at_ms   INTEGER NOT NULL,
    created_by      TEXT NOT NULL,
    expires_at_ms   INTEGER NOT NULL DEFAULT 0,
    revoked_at_ms   INTEGER NOT NULL DEFAULT 0,
    last_used_at_ms INTEGER NOT NULL DEFAULT 0,
    seal            BLOB NOT NULL DEFAULT x''
) WITHOUT ROWID;

-- -- approvals

CREATE TABLE approvals (
    id              TEXT PRIMARY KEY,
    kind            TEXT NOT NULL CHECK (kind IN ('run', 'replay')),
    subject_id      TEXT NOT NULL,
    tenant          TEXT NOT NULL,
    command         TEXT NOT NULL DEFAULT '',
    plan_hash       TEXT NOT NULL,
    requested_by    TEXT NOT NULL,
    requested_at_ms INTEGER NOT NULL,
    needed          INTEGER NOT NULL,
    expires_at_ms   INTEGER NOT NULL,
    status          TEXT NOT NULL CHECK (status IN ('PENDING', 'APPROVED', 'REJECTED', 'EXPIRED', 'CANCELLED')),
    decided_at_ms   INTEGER,
    detail_json     TEXT NOT NULL DEFAULT '{}',
    correlation_id  TEXT NOT NULL DEFAULT '',
    seal            BLOB NOT NULL DEFAULT x''
) WITHOUT ROWID;
CREATE INDEX approvals_newest ON approvals (requested_at_ms DESC);
CREATE INDEX approvals_open ON approvals (expires_at_ms) WHERE status = 'PENDING';
CREATE INDEX approvals_subject ON approvals (subject_id);

CREATE TABLE approval_votes (
    approval_id TEXT NOT NULL,
    principal   TEXT NOT NULL,
    decision    TEXT NOT NULL CHECK (decision IN ('approve', 'reject')),
    at_ms       INTEGER NOT NULL,
    why         TEXT NOT NULL DEFAULT '',
    plan_hash   TEXT NOT NULL,
    seal        BLOB NOT NULL DEFAULT x'',
    PRIMARY KEY (approval_id, principal)
) WITHOUT ROWID;

-- Seals may be renewed under another key, and say nothing new.
CREATE TRIGGER approvals_terminal_immutable BEFORE UPDATE OF
    id, kind, subject_id, tenant, command, plan_hash, requested_by, requested_at_ms, needed, expires_at_ms, status,
    decided_at_ms, detail_json, correlation_id
ON approvals
WHEN OLD.status <> 'PENDING'
BEGIN
    SELECT RAISE(ABORT, 'terminal state is immutable');
END;
CREATE TRIGGER approvals_not_replaced BEFORE INSERT ON approvals
WHEN EXISTS (SELECT 1 FROM approvals WHERE id = NEW.id AND status <> 'PENDING')
BEGIN
    SELECT RAISE(ABORT, 'terminal state is immutable');
END;
CREATE TRIGGER approval_votes_immutable BEFORE UPDATE OF approval_id, principal, decision, at_ms, why, plan_hash
ON approval_votes
BEGIN
    SELECT RAISE(ABORT, 'a vote is immutable');
END;
CREATE TRIGGER approval_votes_not_replaced BEFORE INSERT ON approval_votes
WHEN EXISTS (SELECT 1 FROM approval_votes WHERE approval_id = NEW.approval_id AND principal = NEW.principal)
BEGIN
    SELECT RAISE(ABORT, 'a vote is immutable');
END;

-- A replay may wait for approval too.
ALTER TABLE replay_runs RENAME TO replay_runs_old;
DROP INDEX replay_runs_newest;
DROP INDEX replay_runs_open;
CREATE TABLE replay_runs (
    id              TEXT PRIMARY KEY,
    company_id      TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    payload_hash    BLOB NOT NULL,
    status          TEXT NOT NULL
        CHECK (status IN ('pending_approval', 'running', 'completed', 'stopped', 'rejected', 'expired')),
    requested_by    TEXT NOT NULL,
    why             TEXT NOT NULL,
    plan_hash       TEXT NOT NULL,
    forced          INTEGER NOT NULL,
    total           INTEGER NOT NULL,
    started         INTEGER NOT NULL DEFAULT 0,
    succeeded       INTEGER NOT NULL DEFAULT 0,
    failed          INTEGER NOT NULL DEFAULT 0,
    skipped         INTEGER NOT NULL DEFAULT 0,
    stage           INTEGER NOT NULL DEFAULT 0,
    created_at_ms   INTEGER NOT NULL,
    finished_at_ms  INTEGER,
    seal            BLOB NOT NULL DEFAULT x'',
    approval_id     TEXT NOT NULL DEFAULT '',
    UNIQUE (company_id, idempotency_key)
) WITHOUT ROWID;
INSERT INTO replay_runs (
    id, company_id, idempotency_key, payload_hash, status, requested_by, why, plan_hash, forced, total, started,
    succeeded, failed, skipped, stage, created_at_ms, finished_at_ms, seal
) SELECT
    id, company_id, idempotency_key, payload_hash, status, requested_by, why, plan_hash, forced, total, started,
    succeeded, failed, skipped, stage, created_at_ms, finished_at_ms, seal
  FROM replay_runs_old;
DROP TABLE replay_runs_old;
CREATE INDEX replay_runs_newest ON replay_runs (created_at_ms DESC);
CREATE INDEX replay_runs_open ON replay_runs (created_at_ms) WHERE status = 'running';

-- -- rate limits: when the next request would be on time (GCRA); count and window_start stay for people who look

ALTER TABLE edge_rate_limits ADD COLUMN next_at_us INTEGER NOT NULL DEFAULT 0;
CREATE INDEX edge_rate_limits_next ON edge_rate_limits (next_at_us);

-- -- replay guards: who reserved a nonce, and how many there are without counting them

ALTER TABLE replay_guards ADD COLUMN reserved_by TEXT NOT NULL DEFAULT '';
CREATE TABLE replay_guard_totals (
    shard  INTEGER PRIMARY KEY,
    nonces INTEGER NOT NULL
);
INSERT INTO replay_guard_totals (shard, nonces) SELECT 0, count(*) FROM replay_guards;
CREATE TRIGGER replay_guards_counted AFTER INSERT ON replay_guards
BEGIN
    UPDATE replay_guard_totals SET nonces = nonces + 1 WHERE shard = 0;
END;
CREATE TRIGGER replay_guards_discounted AFTER DELETE ON replay_guards
BEGIN
    UPDATE replay_guard_totals SET nonces = nonces - 1 WHERE shard = 0;
END;

-- -- audit: each row holds the hash of the one before it

ALTER TABLE audit_logs ADD COLUMN auth TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN address TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN why TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN result TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN before_hash TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN after_hash TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN event_id TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE audit_logs ADD COLUMN previous_hash BLOB NOT NULL DEFAULT x'';
ALTER TABLE audit_logs ADD COLUMN hash BLOB NOT NULL DEFAULT x'';
CREATE UNIQUE INDEX audit_logs_seq ON audit_logs (seq) WHERE seq > 0;
CREATE UNIQUE INDEX audit_logs_event ON audit_logs (event_id) WHERE event_id <> '';
CREATE TABLE audit_head (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    seq  INTEGER NOT NULL,
    hash BLOB NOT NULL
);
CREATE TABLE audit_checkpoints (
    seq       INTEGER PRIMARY KEY,
    hash      BLOB NOT NULL,
    at_ms     INTEGER NOT NULL,
    fleet_id  TEXT NOT NULL,
    key_id    TEXT NOT NULL,
    signature BLOB NOT NULL
);
CREATE TRIGGER audit_logs_immutable BEFORE UPDATE ON audit_logs
BEGIN
    SELECT RAISE(ABORT, 'an audit record is immutable');
END;
