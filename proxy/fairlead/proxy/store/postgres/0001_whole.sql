-- The whole schema as it stands when PostgreSQL joins; what it means is written beside the SQLite one.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE runs (
    seq                 BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id              TEXT NOT NULL UNIQUE,
    root_id             TEXT NOT NULL,
    retry_of_run_id     TEXT NOT NULL DEFAULT '',
    parent_id           TEXT NOT NULL DEFAULT '',
    tenant              TEXT NOT NULL,
    command             TEXT NOT NULL,
    effect              TEXT NOT NULL CHECK (effect IN ('idempotent', 'transactional', 'once')),
    args_json           BYTEA NOT NULL,
    target              TEXT NOT NULL,
    target_node         TEXT NOT NULL,
    identity_json       BYTEA NOT NULL,
    correlation_id      TEXT NOT NULL,
    idempotency_key     TEXT NOT NULL DEFAULT '',
    ordering_key        TEXT NOT NULL DEFAULT '',
    priority            BIGINT NOT NULL DEFAULT 5,
    callback_url        TEXT NOT NULL DEFAULT '',
    status              TEXT NOT NULL
        CHECK (status IN ('PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')),
    accepted_at_ms      BIGINT NOT NULL,
    accepted_by         TEXT NOT NULL DEFAULT '',
    due_at_ms           BIGINT NOT NULL,
    not_before_ms       BIGINT NOT NULL DEFAULT 0,
    ready               BIGINT NOT NULL DEFAULT 1,
    deadline_at_ms      BIGINT NOT NULL,
    timeout_ms          BIGINT NOT NULL,
    finished_at_ms      BIGINT,
    attempts_max        BIGINT NOT NULL DEFAULT 0,
    attempts_failed     BIGINT NOT NULL DEFAULT 0,
    fence               BIGINT NOT NULL DEFAULT 0,
    node_id             TEXT NOT NULL DEFAULT '',
    incarnation         TEXT NOT NULL DEFAULT '',
    owner               TEXT NOT NULL DEFAULT '',
    claimed_at_ms       BIGINT NOT NULL DEFAULT 0,
    lease_until_ms      BIGINT NOT NULL DEFAULT 0,
    started_at_ms       BIGINT NOT NULL DEFAULT 0,
    node_finished_at_ms BIGINT NOT NULL DEFAULT 0,
    cancel_at_ms        BIGINT NOT NULL DEFAULT 0,
    cancel_by           TEXT NOT NULL DEFAULT '',
    value_json          BYTEA,
    reason              TEXT NOT NULL DEFAULT '',
    detail              TEXT NOT NULL DEFAULT '',
    children_open       BIGINT NOT NULL DEFAULT 0,
    children_failed     BIGINT NOT NULL DEFAULT 0
);

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
CREATE FUNCTION runs_terminal_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'terminal state is immutable' USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER runs_terminal_immutable BEFORE UPDATE ON runs FOR EACH ROW
    WHEN (OLD.status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')) EXECUTE FUNCTION runs_terminal_immutable();

CREATE TABLE attempts (
    run_id         TEXT NOT NULL,
    fence          BIGINT NOT NULL,
    node_id        TEXT NOT NULL,
    incarnation    TEXT NOT NULL,
    claimed_at_ms  BIGINT NOT NULL,
    ended_at_ms    BIGINT,
    outcome        TEXT NOT NULL DEFAULT '',
    reason         TEXT NOT NULL DEFAULT '',
    detail         TEXT NOT NULL DEFAULT '',
    started_at_ms  BIGINT,
    finished_at_ms BIGINT,
    retry_at_ms    BIGINT,
    owner          TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (run_id, fence)
);

CREATE TABLE idempotency (
    tenant        TEXT NOT NULL,
    key           TEXT NOT NULL,
    payload_hash  BYTEA NOT NULL,
    run_id        TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (tenant, key)
);
CREATE INDEX idempotency_run ON idempotency (run_id);

CREATE TABLE descriptors (
    name          TEXT PRIMARY KEY,
    canonical     BYTEA NOT NULL,
    source        TEXT NOT NULL,
    changed_at_ms BIGINT NOT NULL
);

CREATE TABLE node_overrides (
    node_id       TEXT PRIMARY KEY,
    paused        BOOLEAN NOT NULL,
    draining      BOOLEAN NOT NULL,
    changed_at_ms BIGINT NOT NULL,
    changed_by    TEXT NOT NULL
);

CREATE TABLE key_epochs (
    role          BIGINT NOT NULL,
    identity      TEXT NOT NULL,
    epoch         BIGINT NOT NULL,
    changed_at_ms BIGINT NOT NULL,
    changed_by    TEXT NOT NULL,
    PRIMARY KEY (role, identity)
);

-- How many ended, by who counted: counting a million rows for a status page is no answer.
CREATE TABLE run_totals (
    owner  TEXT NOT NULL,
    status TEXT NOT NULL,
    runs   BIGINT NOT NULL,
    PRIMARY KEY (owner, status)
);

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
    transient          BOOLEAN NOT NULL,
    fingerprint        TEXT NOT NULL,
    replay_count       BIGINT NOT NULL DEFAULT 0,
    first_failed_at_ms BIGINT NOT NULL,
    last_failed_at_ms  BIGINT NOT NULL,
    last_replay_at_ms  BIGINT NOT NULL DEFAULT 0,
    replay_id          TEXT NOT NULL DEFAULT '',
    replay_run_id      TEXT NOT NULL DEFAULT '',
    requested_at_ms    BIGINT NOT NULL DEFAULT 0,
    requested_by       TEXT NOT NULL DEFAULT '',
    forced             BOOLEAN NOT NULL DEFAULT false,
    deferred_reason    TEXT NOT NULL DEFAULT '',
    changed_at_ms      BIGINT NOT NULL
);
CREATE INDEX dead_letters_newest ON dead_letters (state, last_failed_at_ms DESC);
CREATE INDEX dead_letters_tenant ON dead_letters (tenant, last_failed_at_ms DESC);
CREATE INDEX dead_letters_group ON dead_letters (fingerprint, last_failed_at_ms DESC, first_failed_at_ms, state, tenant);
CREATE INDEX dead_letters_failed ON dead_letters (last_failed_at_ms DESC);
CREATE INDEX dead_letters_requested ON dead_letters (requested_at_ms) WHERE state = 'replay_requested';
CREATE INDEX dead_letters_replay ON dead_letters (replay_id) WHERE replay_id <> '';

CREATE TABLE replay_runs (
    id              TEXT PRIMARY KEY,
    company_id      TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    payload_hash    BYTEA NOT NULL,
    status          TEXT NOT NULL CHECK (status IN ('running', 'completed', 'stopped')),
    requested_by    TEXT NOT NULL,
    why             TEXT NOT NULL,
    plan_hash       TEXT NOT NULL,
    forced          BOOLEAN NOT NULL,
    total           BIGINT NOT NULL,
    started         BIGINT NOT NULL DEFAULT 0,
    succeeded       BIGINT NOT NULL DEFAULT 0,
    failed          BIGINT NOT NULL DEFAULT 0,
    skipped         BIGINT NOT NULL DEFAULT 0,
    stage           BIGINT NOT NULL DEFAULT 0,
    created_at_ms   BIGINT NOT NULL,
    finished_at_ms  BIGINT,
    UNIQUE (company_id, idempotency_key)
);
CREATE INDEX replay_runs_newest ON replay_runs (created_at_ms DESC);
CREATE INDEX replay_runs_open ON replay_runs (created_at_ms) WHERE status = 'running';

-- A limit that is NULL is the configured one, of which daily_default and monthly_default are what a spend last saw.
CREATE TABLE replay_budgets (
    company_id      TEXT PRIMARY KEY,
    daily_limit     BIGINT,
    monthly_limit   BIGINT,
    daily_default   BIGINT NOT NULL DEFAULT 0,
    monthly_default BIGINT NOT NULL DEFAULT 0,
    daily_used      BIGINT NOT NULL DEFAULT 0,
    daily_window    BIGINT NOT NULL DEFAULT 0,
    monthly_used    BIGINT NOT NULL DEFAULT 0,
    monthly_window  BIGINT NOT NULL DEFAULT 0,
    changed_at_ms   BIGINT NOT NULL DEFAULT 0
);
-- A window that is over has nothing used.
CREATE VIEW replay_budgets_status AS SELECT
    company_id, daily_limit, daily_used, daily_limit - daily_used AS daily_left, monthly_limit, monthly_used,
    monthly_limit - monthly_used AS monthly_left, custom
  FROM (SELECT
    company_id,
    COALESCE(daily_limit, daily_default) AS daily_limit,
    CASE WHEN daily_window = floor(extract(epoch FROM now()) / 86400) THEN daily_used ELSE 0 END AS daily_used,
    COALESCE(monthly_limit, monthly_default) AS monthly_limit,
    CASE WHEN monthly_window = to_char(now() AT TIME ZONE 'UTC', 'YYYYMM')::bigint THEN monthly_used ELSE 0 END AS monthly_used,
    daily_limit IS NOT NULL AS custom
  FROM replay_budgets) AS held;

CREATE TABLE feature_flags (
    key                TEXT PRIMARY KEY,
    enabled            BOOLEAN NOT NULL DEFAULT false,
    rollout_percentage BIGINT NOT NULL DEFAULT 100 CHECK (rollout_percentage BETWEEN 0 AND 100),
    owner              TEXT NOT NULL DEFAULT '',
    changed_at_ms      BIGINT NOT NULL DEFAULT 0
);
INSERT INTO feature_flags (key, enabled, owner) VALUES ('dlq.replay.enabled', true, 'fairlead');
INSERT INTO feature_flags (key, enabled, owner) VALUES ('outbox.enabled', true, 'fairlead');
CREATE VIEW feature_flags_status AS SELECT
    key, enabled, rollout_percentage, owner, changed_at_ms FROM feature_flags;

CREATE TABLE agent_controls (
    company_id    TEXT PRIMARY KEY,
    agents_paused BOOLEAN NOT NULL DEFAULT false,
    draining      BOOLEAN NOT NULL DEFAULT false,
    changed_at_ms BIGINT NOT NULL DEFAULT 0,
    changed_by    TEXT NOT NULL DEFAULT ''
);
INSERT INTO agent_controls (company_id) VALUES ('*');

CREATE TABLE edge_rate_limits (
    key             TEXT PRIMARY KEY,
    count           BIGINT NOT NULL,
    window_start_ms BIGINT NOT NULL,
    window_start    TIMESTAMPTZ GENERATED ALWAYS AS (to_timestamp(window_start_ms / 1000.0)) STORED
);

CREATE TABLE audit_logs (
    id             BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action         TEXT NOT NULL,
    at_ms          BIGINT NOT NULL,
    created_at     TIMESTAMPTZ GENERATED ALWAYS AS (to_timestamp(at_ms / 1000.0)) STORED,
    principal      TEXT NOT NULL,
    company_id     TEXT NOT NULL DEFAULT '',
    scope          TEXT NOT NULL DEFAULT '',
    target_count   BIGINT NOT NULL DEFAULT 0,
    success_count  BIGINT NOT NULL DEFAULT 0,
    failure_count  BIGINT NOT NULL DEFAULT 0,
    detail_json    TEXT NOT NULL DEFAULT '{}',
    correlation_id TEXT NOT NULL DEFAULT ''
);
CREATE INDEX audit_logs_time ON audit_logs (at_ms);

CREATE TABLE replay_guards (
    key           TEXT PRIMARY KEY,
    created_at_ms BIGINT NOT NULL,
    expires_at    BIGINT NOT NULL
);
CREATE INDEX replay_guards_expiry ON replay_guards (expires_at);

CREATE TABLE callbacks (
    event_id       TEXT PRIMARY KEY,
    run_id         TEXT NOT NULL,
    tenant         TEXT NOT NULL,
    url            TEXT NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
    attempts       BIGINT NOT NULL DEFAULT 0,
    next_at_ms     BIGINT NOT NULL,
    lease_until_ms BIGINT NOT NULL DEFAULT 0,
    detail         TEXT NOT NULL DEFAULT '',
    created_at_ms  BIGINT NOT NULL,
    changed_at_ms  BIGINT NOT NULL
);
CREATE INDEX callbacks_due ON callbacks (next_at_ms) WHERE state = 'pending';
CREATE INDEX callbacks_dead ON callbacks (changed_at_ms) WHERE state = 'dead';
CREATE INDEX callbacks_run ON callbacks (run_id);

CREATE TABLE job_source_callback_events (
    event_id       TEXT PRIMARY KEY,
    run_id         TEXT NOT NULL,
    body_hash      BYTEA NOT NULL,
    received_at_ms BIGINT NOT NULL,
    expires_at_ms  BIGINT NOT NULL
);
CREATE INDEX job_source_callback_events_expiry ON job_source_callback_events (expires_at_ms);
