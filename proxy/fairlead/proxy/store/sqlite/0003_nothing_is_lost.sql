-- The current attempt moves into its run (one row less for every run that succeeds at once); lineages, ordering keys,
-- priorities, schedules, cancellation; dead letters and their replay; callbacks; the controls that runbooks name.

ALTER TABLE runs RENAME TO runs_old;
DROP INDEX runs_pending;
DROP INDEX runs_held;
DROP INDEX runs_deadline;
DROP INDEX runs_finished;
DROP INDEX runs_parent;
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
        CHECK (status IN ('PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')),
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
    children_failed     INTEGER NOT NULL DEFAULT 0
);
INSERT INTO runs (
    seq, run_id, root_id, parent_id, tenant, command, effect, args_json, target, target_node, identity_json,
    correlation_id, idempotency_key, status, accepted_at_ms, due_at_ms, not_before_ms, ready, deadline_at_ms, timeout_ms,
    finished_at_ms, attempts_max, attempts_failed, fence, node_id, incarnation, claimed_at_ms, lease_until_ms,
    started_at_ms, node_finished_at_ms, value_json, reason, detail, children_open, children_failed
) SELECT
    r.seq, r.run_id, r.run_id, r.parent_id, r.tenant, r.command, r.effect, r.args_json, r.target, r.target_node,
    r.identity_json, r.correlation_id, r.idempotency_key, r.status, r.accepted_at_ms, MAX(r.accepted_at_ms, r.not_before_ms), 0,
    r.not_before_ms = 0, r.deadline_at_ms, r.timeout_ms, r.finished_at_ms, r.attempts_max, r.attempts_failed, r.fence, r.node_id, r.incarnation,
    COALESCE(a.claimed_at_ms, 0), r.lease_until_ms, COALESCE(a.started_at_ms, 0), COALESCE(a.finished_at_ms, 0),
    r.value_json, r.reason, r.detail, r.children_open, r.children_failed
  FROM runs_old r LEFT JOIN attempts a ON a.run_id = r.run_id AND a.fence = r.fence;
DELETE FROM attempts WHERE outcome IN ('', 'completed', 'failed') AND EXISTS (
    SELECT 1 FROM runs r WHERE r.run_id = attempts.run_id AND r.fence = attempts.fence AND r.status <> 'PENDING'
);
DROP TABLE runs_old;
ALTER TABLE attempts ADD COLUMN owner TEXT NOT NULL DEFAULT '';

CREATE INDEX runs_pending ON runs (target_node, priority DESC, seq, due_at_ms) WHERE status = 'PENDING' AND ready = 1;
CREATE INDEX runs_delayed ON runs (due_at_ms) WHERE status = 'PENDING' AND ready = 0;
CREATE INDEX runs_held ON runs (node_id, seq) WHERE status = 'RUNNING';
CREATE INDEX runs_deadline ON runs (deadline_at_ms) WHERE status IN ('PENDING', 'RUNNING');
CREATE INDEX runs_finished ON runs (finished_at_ms) WHERE finished_at_ms IS NOT NULL;
CREATE INDEX runs_parent ON runs (parent_id) WHERE parent_id <> '';
CREATE INDEX runs_lineage ON runs (root_id) WHERE retry_of_run_id <> '';
CREATE INDEX runs_ordered ON runs (tenant, ordering_key, seq)
    WHERE ordering_key <> '' AND status IN ('PENDING', 'RUNNING');

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

-- How many ended, by who counted: counting a million rows for a status page is no answer.
CREATE TABLE run_totals (
    owner  TEXT NOT NULL,
    status TEXT NOT NULL,
    runs   INTEGER NOT NULL,
    PRIMARY KEY (owner, status)
) WITHOUT ROWID;
INSERT INTO run_totals (owner, status, runs)
    SELECT '', status, count(*) FROM runs WHERE finished_at_ms IS NOT NULL GROUP BY status;

CREATE TABLE dead_letters (
    id                 TEXT PRIMARY KEY,
    root_id            TEXT NOT NULL UNIQUE,
    run_id             TEXT NOT NULL,
    tenant             TEXT NOT NULL,
    command            TEXT NOT NULL,
    node_id            TEXT NOT NULL,
    target             TEXT NOT NULL,
    effect             TEXT NOT NULL,
    state              TEXT NOT NULL CHECK (state IN ('queued', 'replay_requested', 'replayed')),
    outcome            TEXT NOT NULL DEFAULT '',
    reason             TEXT NOT NULL,
    detail             TEXT NOT NULL,
    transient          INTEGER NOT NULL,
    fingerprint        TEXT NOT NULL,
    replay_count       INTEGER NOT NULL DEFAULT 0,
    first_failed_at_ms INTEGER NOT NULL,
    last_failed_at_ms  INTEGER NOT NULL,
    last_replay_at_ms  INTEGER NOT NULL DEFAULT 0,
    replay_id          TEXT NOT NULL DEFAULT '',
    replay_run_id      TEXT NOT NULL DEFAULT '',
    requested_at_ms    INTEGER NOT NULL DEFAULT 0,
    requested_by       TEXT NOT NULL DEFAULT '',
    forced             INTEGER NOT NULL DEFAULT 0,
    deferred_reason    TEXT NOT NULL DEFAULT '',
    changed_at_ms      INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX dead_letters_newest ON dead_letters (state, last_failed_at_ms DESC);
CREATE INDEX dead_letters_tenant ON dead_letters (tenant, last_failed_at_ms DESC);
CREATE INDEX dead_letters_group ON dead_letters (fingerprint, last_failed_at_ms DESC, first_failed_at_ms, state, tenant);
CREATE INDEX dead_letters_failed ON dead_letters (last_failed_at_ms DESC);
CREATE INDEX dead_letters_requested ON dead_letters (requested_at_ms) WHERE state = 'replay_requested';
CREATE INDEX dead_letters_replay ON dead_letters (replay_id) WHERE replay_id <> '';

-- What failed before there were dead letters is one now; what varies in its detail was not worked out for it.
INSERT INTO dead_letters (
    id, root_id, run_id, tenant, command, node_id, target, effect, state, outcome, reason, detail, transient, fingerprint,
    first_failed_at_ms, last_failed_at_ms, changed_at_ms
) SELECT
    'dlq-' || run_id, run_id, run_id, tenant, command, node_id, target, effect, 'queued', status, reason, detail, 0,
    command || ' ' || reason, finished_at_ms, finished_at_ms, finished_at_ms
  FROM runs r WHERE status IN ('FAILED', 'EXPIRED')
    AND NOT EXISTS (SELECT 1 FROM runs c WHERE c.parent_id = r.run_id AND c.parent_id <> '');

CREATE TABLE replay_runs (
    id              TEXT PRIMARY KEY,
    company_id      TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    payload_hash    BLOB NOT NULL,
    status          TEXT NOT NULL CHECK (status IN ('running', 'completed', 'stopped')),
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
    UNIQUE (company_id, idempotency_key)
) WITHOUT ROWID;
CREATE INDEX replay_runs_newest ON replay_runs (created_at_ms DESC);
CREATE INDEX replay_runs_open ON replay_runs (created_at_ms) WHERE status = 'running';

-- A limit that is NULL is the configured one, of which daily_default and monthly_default are what a spend last saw.
CREATE TABLE replay_budgets (
    company_id      TEXT PRIMARY KEY,
    daily_limit     INTEGER,
    monthly_limit   INTEGER,
    daily_default   INTEGER NOT NULL DEFAULT 0,
    monthly_default INTEGER NOT NULL DEFAULT 0,
    daily_used      INTEGER NOT NULL DEFAULT 0,
    daily_window    INTEGER NOT NULL DEFAULT 0,
    monthly_used    INTEGER NOT NULL DEFAULT 0,
    monthly_window  INTEGER NOT NULL DEFAULT 0,
    changed_at_ms   INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
-- A window that is over has nothing used.
CREATE VIEW replay_budgets_status AS SELECT
    company_id, daily_limit, daily_used, daily_limit - daily_used AS daily_left, monthly_limit, monthly_used,
    monthly_limit - monthly_used AS monthly_left, custom
  FROM (SELECT
    company_id,
    COALESCE(daily_limit, daily_default) AS daily_limit,
    CASE WHEN daily_window = strftime('%s', 'now') / 86400 THEN daily_used ELSE 0 END AS daily_used,
    COALESCE(monthly_limit, monthly_default) AS monthly_limit,
    CASE WHEN monthly_window = CAST(strftime('%Y%m', 'now') AS INTEGER) THEN monthly_used ELSE 0 END AS monthly_used,
    daily_limit IS NOT NULL AS custom
  FROM replay_budgets) AS held;

CREATE TABLE feature_flags (
    key                TEXT PRIMARY KEY,
    enabled            INTEGER NOT NULL DEFAULT 0,
    rollout_percentage INTEGER NOT NULL DEFAULT 100 CHECK (rollout_percentage BETWEEN 0 AND 100),
    owner              TEXT NOT NULL DEFAULT '',
    changed_at_ms      INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
INSERT INTO feature_flags (key, enabled, owner) VALUES ('dlq.replay.enabled', 1, 'fairlead');
INSERT INTO feature_flags (key, enabled, owner) VALUES ('outbox.enabled', 1, 'fairlead');
CREATE VIEW feature_flags_status AS SELECT
    key, enabled, rollout_percentage, owner, changed_at_ms FROM feature_flags;

CREATE TABLE agent_controls (
    company_id    TEXT PRIMARY KEY,
    agents_paused INTEGER NOT NULL DEFAULT 0,
    draining      INTEGER NOT NULL DEFAULT 0,
    changed_at_ms INTEGER NOT NULL DEFAULT 0,
    changed_by    TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
INSERT INTO agent_controls (company_id) VALUES ('*');

CREATE TABLE edge_rate_limits (
    key             TEXT PRIMARY KEY,
    count           INTEGER NOT NULL,
    window_start_ms INTEGER NOT NULL,
    window_start    TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%SZ', window_start_ms / 1000, 'unixepoch')) VIRTUAL
);

CREATE TABLE audit_logs (
    id             INTEGER PRIMARY KEY,
    action         TEXT NOT NULL,
    at_ms          INTEGER NOT NULL,
    created_at     TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%SZ', at_ms / 1000, 'unixepoch')) VIRTUAL,
    principal      TEXT NOT NULL,
    company_id     TEXT NOT NULL DEFAULT '',
    scope          TEXT NOT NULL DEFAULT '',
    target_count   INTEGER NOT NULL DEFAULT 0,
    success_count  INTEGER NOT NULL DEFAULT 0,
    failure_count  INTEGER NOT NULL DEFAULT 0,
    detail_json    TEXT NOT NULL DEFAULT '{}',
    correlation_id TEXT NOT NULL DEFAULT ''
);
CREATE INDEX audit_logs_time ON audit_logs (at_ms);

CREATE TABLE replay_guards (
    key           TEXT PRIMARY KEY,
    created_at_ms INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX replay_guards_expiry ON replay_guards (expires_at);

CREATE TABLE callbacks (
    event_id       TEXT PRIMARY KEY,
    run_id         TEXT NOT NULL,
    tenant         TEXT NOT NULL,
    url            TEXT NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
    attempts       INTEGER NOT NULL DEFAULT 0,
    next_at_ms     INTEGER NOT NULL,
    lease_until_ms INTEGER NOT NULL DEFAULT 0,
    detail         TEXT NOT NULL DEFAULT '',
    created_at_ms  INTEGER NOT NULL,
    changed_at_ms  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX callbacks_due ON callbacks (next_at_ms) WHERE state = 'pending';
CREATE INDEX callbacks_dead ON callbacks (changed_at_ms) WHERE state = 'dead';
CREATE INDEX callbacks_run ON callbacks (run_id);

CREATE TABLE job_source_callback_events (
    event_id       TEXT PRIMARY KEY,
    run_id         TEXT NOT NULL,
    body_hash      BLOB NOT NULL,
    received_at_ms INTEGER NOT NULL,
    expires_at_ms  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX job_source_callback_events_expiry ON job_source_callback_events (expires_at_ms);
