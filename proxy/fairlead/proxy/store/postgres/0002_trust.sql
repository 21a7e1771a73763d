-- Trust: runs that wait for approval, seals over what grants authority, approvals, operator keys, an audit trail that is
-- a chain.

-- -- runs

ALTER TABLE runs DROP CONSTRAINT runs_status_check;
ALTER TABLE runs ADD CONSTRAINT runs_status_check
    CHECK (status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED'));
ALTER TABLE runs ADD COLUMN principal TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN approval_id TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN seal BYTEA NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN delivery_seal BYTEA NOT NULL DEFAULT '';
DROP INDEX runs_deadline;
CREATE INDEX runs_deadline ON runs (deadline_at_ms) WHERE status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING');
DROP INDEX runs_ordered;
CREATE INDEX runs_ordered ON runs (tenant, ordering_key, seq)
    WHERE ordering_key <> '' AND status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING');
-- What ended stays as it ended, whoever asks. Its seals may be renewed under another key, and say nothing new.
DROP TRIGGER runs_terminal_immutable ON runs;
CREATE TRIGGER runs_terminal_immutable BEFORE UPDATE OF
    run_id, root_id, retry_of_run_id, parent_id, tenant, command, effect, args_json, target, target_node,
    identity_json, correlation_id, idempotency_key, ordering_key, priority, callback_url, status, accepted_at_ms,
    accepted_by, due_at_ms, not_before_ms, ready, deadline_at_ms, timeout_ms, finished_at_ms, attempts_max,
    attempts_failed, fence, node_id, incarnation, owner, claimed_at_ms, lease_until_ms, started_at_ms,
    node_finished_at_ms, cancel_at_ms, cancel_by, value_json, reason, detail, children_open, children_failed,
    principal, approval_id
ON runs FOR EACH ROW
    WHEN (OLD.status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')) EXECUTE FUNCTION runs_terminal_immutable();
CREATE INDEX runs_approval ON runs (approval_id) WHERE approval_id <> '' AND status = 'PENDING_APPROVAL';

-- -- seals: of a row, and of a whole table whose rows take authority away

ALTER TABLE descriptors ADD COLUMN seal BYTEA NOT NULL DEFAULT '';
ALTER TABLE node_overrides ADD COLUMN seal BYTEA NOT NULL DEFAULT '';
ALTER TABLE key_epochs ADD COLUMN seal BYTEA NOT NULL DEFAULT '';
ALTER TABLE replay_budgets ADD COLUMN seal BYTEA NOT NULL DEFAULT '';
ALTER TABLE feature_flags ADD COLUMN seal BYTEA NOT NULL DEFAULT '';
ALTER TABLE agent_controls ADD COLUMN seal BYTEA NOT NULL DEFAULT '';
ALTER TABLE replay_runs ADD COLUMN seal BYTEA NOT NULL DEFAULT '';
ALTER TABLE dead_letters ADD COLUMN seal BYTEA NOT NULL DEFAULT '';
-- A row that nobody set says what the program says anyway.
DELETE FROM agent_controls WHERE company_id = '*' AND changed_at_ms = 0;
DELETE FROM feature_flags WHERE changed_at_ms = 0;
CREATE TABLE sealed_tables (
    name          TEXT PRIMARY KEY,
    rows_count    BIGINT NOT NULL,
    manifest      BYTEA NOT NULL,
    changed_at_ms BIGINT NOT NULL,
    seal          BYTEA NOT NULL
);

-- -- operator keys

CREATE TABLE operator_keys (
    id              TEXT PRIMARY KEY,
    hash            BYTEA NOT NULL UNIQUE,
    role            TEXT NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    scopes_json     TEXT NOT NULL DEFAULT '[]',
    tenant          TEXT NOT NULL DEFAULT '',
    read_scope      TEXT NOT NULL DEFAULT 'any' CHECK (read_scope IN ('self', 'tenant', 'any')),
    subject_type    TEXT NOT NULL DEFAULT 'service' CHECK (subject_type IN ('human', 'service', 'agent')),
    note            TEXT NOT NULL DEFAULT '',
    created_at_ms   BIGINT NOT NULL,
    created_by      TEXT NOT NULL,
    expires_at_ms   BIGINT NOT NULL DEFAULT 0,
    revoked_at_ms   BIGINT NOT NULL DEFAULT 0,
    last_used_at_ms BIGINT NOT NULL DEFAULT 0,
    seal            BYTEA NOT NULL DEFAULT ''
);

-- -- approvals

CREATE TABLE approvals (
    id              TEXT PRIMARY KEY,
    kind            TEXT NOT NULL CHECK (kind IN ('run', 'replay')),
    subject_id      TEXT NOT NULL,
    tenant          TEXT NOT NULL,
    command         TEXT NOT NULL DEFAULT '',
    plan_hash       TEXT NOT NULL,
    requested_by    TEXT NOT NULL,
    requested_at_ms BIGINT NOT NULL,
    needed          BIGINT NOT NULL,
    expires_at_ms   BIGINT NOT NULL,
    status          TEXT NOT NULL CHECK (status IN ('PENDING', 'APPROVED', 'REJECTED', 'EXPIRED', 'CANCELLED')),
    decided_at_ms   BIGINT,
    detail_json     TEXT NOT NULL DEFAULT '{}',
    correlation_id  TEXT NOT NULL DEFAULT '',
    seal            BYTEA NOT NULL DEFAULT ''
);
CREATE INDEX approvals_newest ON approvals (requested_at_ms DESC);
CREATE INDEX approvals_open ON approvals (expires_at_ms) WHERE status = 'PENDING';
CREATE INDEX approvals_subject ON approvals (subject_id);

CREATE TABLE approval_votes (
    approval_id TEXT NOT NULL,
    principal   TEXT NOT NULL,
    decision    TEXT NOT NULL CHECK (decision IN ('approve', 'reject')),
    at_ms       BIGINT NOT NULL,
    why         TEXT NOT NULL DEFAULT '',
    plan_hash   TEXT NOT NULL,
    seal        BYTEA NOT NULL DEFAULT '',
    PRIMARY KEY (approval_id, principal)
);

CREATE FUNCTION approvals_terminal_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'terminal state is immutable' USING ERRCODE = 'integrity_constraint_violation';
END $$;
-- Seals may be renewed under another key, and say nothing new.
CREATE TRIGGER approvals_terminal_immutable BEFORE UPDATE OF
    id, kind, subject_id, tenant, command, plan_hash, requested_by, requested_at_ms, needed, expires_at_ms, status,
    decided_at_ms, detail_json, correlation_id
ON approvals FOR EACH ROW
    WHEN (OLD.status <> 'PENDING') EXECUTE FUNCTION approvals_terminal_immutable();
CREATE FUNCTION approval_votes_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a vote is immutable' USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER approval_votes_immutable BEFORE UPDATE OF approval_id, principal, decision, at_ms, why, plan_hash
    ON approval_votes FOR EACH ROW EXECUTE FUNCTION approval_votes_immutable();

-- A replay may wait for approval too.
ALTER TABLE replay_runs ADD COLUMN approval_id TEXT NOT NULL DEFAULT '';
ALTER TABLE replay_runs DROP CONSTRAINT replay_runs_status_check;
ALTER TABLE replay_runs ADD CONSTRAINT replay_runs_status_check
    CHECK (status IN ('pending_approval', 'running', 'completed', 'stopped', 'rejected', 'expired'));

-- -- rate limits: when the next request would be on time (GCRA); count and window_start stay for people who look

ALTER TABLE edge_rate_limits ADD COLUMN next_at_us BIGINT NOT NULL DEFAULT 0;
CREATE INDEX edge_rate_limits_next ON edge_rate_limits (next_at_us);

-- -- replay guards: who reserved a nonce, and how many there are without counting them

ALTER TABLE replay_guards ADD COLUMN reserved_by TEXT NOT NULL DEFAULT '';
-- Each connection counts in a row of its own, so that proxies do not wait for each other's commits.
CREATE TABLE replay_guard_totals (
    shard  BIGINT PRIMARY KEY,
    nonces BIGINT NOT NULL
);
INSERT INTO replay_guard_totals (shard, nonces) SELECT 0, count(*) FROM replay_guards;
CREATE FUNCTION replay_guards_count() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    change BIGINT;
BEGIN
    SELECT count(*) INTO change FROM changed;
    IF TG_OP = 'DELETE' THEN
        change := -change;
    END IF;
    IF change <> 0 THEN
        INSERT INTO replay_guard_totals AS t (shard, nonces) VALUES (pg_backend_pid() % 64, change)
            ON CONFLICT (shard) DO UPDATE SET nonces = t.nonces + excluded.nonces;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER replay_guards_counted AFTER INSERT ON replay_guards
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION replay_guards_count();
CREATE TRIGGER replay_guards_discounted AFTER DELETE ON replay_guards
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION replay_guards_count();
CREATE FUNCTION replay_guards_emptied() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM replay_guard_totals;
    RETURN NULL;
END $$;
CREATE TRIGGER replay_guards_emptied AFTER TRUNCATE ON replay_guards
    FOR EACH STATEMENT EXECUTE FUNCTION replay_guards_emptied();

-- -- audit: each row holds the hash of the one before it

ALTER TABLE audit_logs ADD COLUMN auth TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN address TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN why TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN result TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN before_hash TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN after_hash TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN event_id TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN seq BIGINT NOT NULL DEFAULT 0;
ALTER TABLE audit_logs ADD COLUMN previous_hash BYTEA NOT NULL DEFAULT '';
ALTER TABLE audit_logs ADD COLUMN hash BYTEA NOT NULL DEFAULT '';
CREATE UNIQUE INDEX audit_logs_seq ON audit_logs (seq) WHERE seq > 0;
CREATE UNIQUE INDEX audit_logs_event ON audit_logs (event_id) WHERE event_id <> '';
CREATE TABLE audit_head (
    id   BIGINT PRIMARY KEY CHECK (id = 1),
    seq  BIGINT NOT NULL,
    hash BYTEA NOT NULL
);
CREATE TABLE audit_checkpoints (
    seq       BIGINT PRIMARY KEY,
    hash      BYTEA NOT NULL,
    at_ms     BIGINT NOT NULL,
    fleet_id  TEXT NOT NULL,
    key_id    TEXT NOT NULL,
    signature BYTEA NOT NULL
);
CREATE FUNCTION audit_logs_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'an audit record is immutable';
END $$;
CREATE TRIGGER audit_logs_immutable BEFORE UPDATE ON audit_logs FOR EACH ROW
    EXECUTE FUNCTION audit_logs_immutable();
