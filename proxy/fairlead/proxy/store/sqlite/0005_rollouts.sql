-- Roll out, watch, stop, roll back: what is measured, what is told, and what steers.

-- -- telemetry: samples of a minute or an hour, by series; alerts, and what is to be told of them

CREATE TABLE slo_samples (
    at_ms    INTEGER NOT NULL,
    width_ms INTEGER NOT NULL,
    owner    TEXT NOT NULL,
    metric   TEXT NOT NULL,
    name     TEXT NOT NULL,
    tenant   TEXT NOT NULL,
    version  TEXT NOT NULL,
    total    INTEGER NOT NULL,
    errors   INTEGER NOT NULL,
    amount   REAL NOT NULL,
    most     REAL NOT NULL,
    sketch   BLOB NOT NULL,
    PRIMARY KEY (at_ms, width_ms, owner, metric, name, tenant, version)
) WITHOUT ROWID;
CREATE INDEX slo_samples_metric ON slo_samples (metric, at_ms);

CREATE TABLE alert_states (
    name           TEXT PRIMARY KEY,
    phase          TEXT NOT NULL CHECK (phase IN ('inactive', 'pending', 'firing')),
    since_ms       INTEGER NOT NULL,
    false_since_ms INTEGER,
    told_at_ms     INTEGER,
    value          REAL,
    detail         TEXT NOT NULL,
    changed_at_ms  INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE alert_events (
    event_id       TEXT PRIMARY KEY,
    alert          TEXT NOT NULL,
    kind           TEXT NOT NULL,
    event_type     TEXT NOT NULL,
    body           BLOB NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'dead', 'kept')),
    attempts       INTEGER NOT NULL DEFAULT 0,
    next_at_ms     INTEGER NOT NULL,
    lease_until_ms INTEGER NOT NULL DEFAULT 0,
    detail         TEXT NOT NULL DEFAULT '',
    created_at_ms  INTEGER NOT NULL,
    changed_at_ms  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX alert_events_due ON alert_events (next_at_ms) WHERE state = 'pending';
CREATE INDEX alert_events_created ON alert_events (created_at_ms);

CREATE TABLE alert_silences (
    rule          TEXT PRIMARY KEY,
    until_ms      INTEGER NOT NULL,
    owner         TEXT NOT NULL,
    why           TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    seal          BLOB NOT NULL DEFAULT x''
) WITHOUT ROWID;

-- Who evaluates the alerts of all proxies that share this database.
CREATE TABLE alert_lease (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    owner    TEXT NOT NULL,
    until_ms INTEGER NOT NULL
);

-- -- what steers: flags with an owner, an end and tenants of their own; overrides of dispatch; rollouts. All sealed.

ALTER TABLE feature_flags ADD COLUMN description TEXT NOT NULL DEFAULT '';
ALTER TABLE feature_flags ADD COLUMN subject TEXT NOT NULL DEFAULT 'tenant';
ALTER TABLE feature_flags ADD COLUMN expires_at_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE feature_flags ADD COLUMN changed_by TEXT NOT NULL DEFAULT '';

CREATE TABLE feature_flag_tenants (
    key           TEXT NOT NULL,
    company_id    TEXT NOT NULL,
    enabled       INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL DEFAULT 0,
    changed_at_ms INTEGER NOT NULL,
    changed_by    TEXT NOT NULL,
    seal          BLOB NOT NULL DEFAULT x'',
    PRIMARY KEY (key, company_id)
) WITHOUT ROWID;

DROP VIEW feature_flags_status;
CREATE VIEW feature_flags_status AS SELECT
    key, enabled, rollout_percentage, owner, changed_at_ms, description, subject, expires_at_ms,
    expires_at_ms > 0 AND expires_at_ms <= CAST(strftime('%s', 'now') AS INTEGER) * 1000 AS expired,
    (SELECT count(*) FROM feature_flag_tenants AS t WHERE t.key = f.key AND t.enabled) AS tenants_on,
    (SELECT count(*) FROM feature_flag_tenants AS t WHERE t.key = f.key AND NOT t.enabled) AS tenants_off
  FROM feature_flags AS f;

CREATE TABLE control_overrides (
    name          TEXT PRIMARY KEY,
    value_json    TEXT NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    changed_by    TEXT NOT NULL,
    why           TEXT NOT NULL,
    seal          BLOB NOT NULL DEFAULT x''
) WITHOUT ROWID;

CREATE TABLE rollouts (
    id            TEXT PRIMARY KEY,
    plan_json     TEXT NOT NULL,
    progress_json TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    created_by    TEXT NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    seal          BLOB NOT NULL DEFAULT x''
) WITHOUT ROWID;

-- Who leads the rollouts of all proxies that share this database.
CREATE TABLE rollout_lease (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    owner    TEXT NOT NULL,
    until_ms INTEGER NOT NULL
);
