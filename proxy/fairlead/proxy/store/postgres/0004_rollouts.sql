-- Roll out, watch, stop, roll back: what is measured, what is told, and what steers.

-- -- telemetry: samples of a minute or an hour, by series; alerts, and what is to be told of them

CREATE TABLE slo_samples (
    at_ms    BIGINT NOT NULL,
    width_ms BIGINT NOT NULL,
    owner    TEXT NOT NULL,
    metric   TEXT NOT NULL,
    name     TEXT NOT NULL,
    tenant   TEXT NOT NULL,
    version  TEXT NOT NULL,
    total    BIGINT NOT NULL,
    errors   BIGINT NOT NULL,
    amount   DOUBLE PRECISION NOT NULL,
    most     DOUBLE PRECISION NOT NULL,
    sketch   BYTEA NOT NULL,
    PRIMARY KEY (at_ms, width_ms, owner, metric, name, tenant, version)
);
CREATE INDEX slo_samples_metric ON slo_samples (metric, at_ms);

CREATE TABLE alert_states (
    name           TEXT PRIMARY KEY,
    phase          TEXT NOT NULL CHECK (phase IN ('inactive', 'pending', 'firing')),
    since_ms       BIGINT NOT NULL,
    false_since_ms BIGINT,
    told_at_ms     BIGINT,
    value          DOUBLE PRECISION,
    detail         TEXT NOT NULL,
    changed_at_ms  BIGINT NOT NULL
);

CREATE TABLE alert_events (
    event_id       TEXT PRIMARY KEY,
    alert          TEXT NOT NULL,
    kind           TEXT NOT NULL,
    event_type     TEXT NOT NULL,
    body           BYTEA NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'dead', 'kept')),
    attempts       BIGINT NOT NULL DEFAULT 0,
    next_at_ms     BIGINT NOT NULL,
    lease_until_ms BIGINT NOT NULL DEFAULT 0,
    detail         TEXT NOT NULL DEFAULT '',
    created_at_ms  BIGINT NOT NULL,
    changed_at_ms  BIGINT NOT NULL
);
CREATE INDEX alert_events_due ON alert_events (next_at_ms) WHERE state = 'pending';
CREATE INDEX alert_events_created ON alert_events (created_at_ms);

CREATE TABLE alert_silences (
    rule          TEXT PRIMARY KEY,
    until_ms      BIGINT NOT NULL,
    owner         TEXT NOT NULL,
    why           TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    seal          BYTEA NOT NULL DEFAULT ''
);

-- Who evaluates the alerts of all proxies that share this database.
CREATE TABLE alert_lease (
    id       BIGINT PRIMARY KEY CHECK (id = 1),
    owner    TEXT NOT NULL,
    until_ms BIGINT NOT NULL
);

-- -- what steers: flags with an owner, an end and tenants of their own; overrides of dispatch; rollouts. All sealed.

ALTER TABLE feature_flags ADD COLUMN description TEXT NOT NULL DEFAULT '';
ALTER TABLE feature_flags ADD COLUMN subject TEXT NOT NULL DEFAULT 'tenant';
ALTER TABLE feature_flags ADD COLUMN expires_at_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE feature_flags ADD COLUMN changed_by TEXT NOT NULL DEFAULT '';

CREATE TABLE feature_flag_tenants (
    key           TEXT NOT NULL,
    company_id    TEXT NOT NULL,
    enabled       BOOLEAN NOT NULL,
    expires_at_ms BIGINT NOT NULL DEFAULT 0,
    changed_at_ms BIGINT NOT NULL,
    changed_by    TEXT NOT NULL,
    seal          BYTEA NOT NULL DEFAULT '',
    PRIMARY KEY (key, company_id)
);

DROP VIEW feature_flags_status;
CREATE VIEW feature_flags_status AS SELECT
    key, enabled, rollout_percentage, owner, changed_at_ms, description, subject, expires_at_ms,
    expires_at_ms > 0 AND expires_at_ms <= floor(extract(epoch FROM now()) * 1000) AS expired,
    (SELECT count(*) FROM feature_flag_tenants AS t WHERE t.key = f.key AND t.enabled) AS tenants_on,
    (SELECT count(*) FROM feature_flag_tenants AS t WHERE t.key = f.key AND NOT t.enabled) AS tenants_off
  FROM feature_flags AS f;

CREATE TABLE control_overrides (
    name          TEXT PRIMARY KEY,
    value_json    TEXT NOT NULL,
    changed_at_ms BIGINT NOT NULL,
    changed_by    TEXT NOT NULL,
    why           TEXT NOT NULL,
    seal          BYTEA NOT NULL DEFAULT ''
);

CREATE TABLE rollouts (
    id            TEXT PRIMARY KEY,
    plan_json     TEXT NOT NULL,
    progress_json TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    created_by    TEXT NOT NULL,
    changed_at_ms BIGINT NOT NULL,
    seal          BYTEA NOT NULL DEFAULT ''
);

-- Who leads the rollouts of all proxies that share this database.
CREATE TABLE rollout_lease (
    id       BIGINT PRIMARY KEY CHECK (id = 1),
    owner    TEXT NOT NULL,
    until_ms BIGINT NOT NULL
);

-- -- the wall: rows of the fleet, which no tenant has to see; and as whom a proxy works (see 0003)

DO $$
DECLARE
    held TEXT;
    writes BOOLEAN := EXISTS (
        SELECT 1 FROM pg_roles WHERE rolname = 'fairlead_writer' AND pg_has_role(current_user, oid, 'MEMBER'));
    reads BOOLEAN := EXISTS (
        SELECT 1 FROM pg_roles WHERE rolname = 'fairlead_reader' AND pg_has_role(current_user, oid, 'MEMBER'));
BEGIN
    FOREACH held IN ARRAY ARRAY[
        'slo_samples', 'alert_states', 'alert_events', 'alert_silences', 'alert_lease', 'feature_flag_tenants',
        'control_overrides', 'rollouts', 'rollout_lease'
    ]
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', held);
        IF held IN ('slo_samples', 'feature_flag_tenants') THEN -- rows of a tenant
            EXECUTE format(
                'CREATE POLICY tenant ON %I USING (CASE (SELECT nullif(current_setting(''fairlead.tenant'', true), ''''))'
                ' WHEN ''*'' THEN true WHEN %I THEN true ELSE false END)',
                held, CASE held WHEN 'slo_samples' THEN 'tenant' ELSE 'company_id' END
            );
        ELSE
            EXECUTE format(
                'CREATE POLICY fleet ON %I USING ((SELECT current_setting(''fairlead.tenant'', true)) = ''*'')', held
            );
        END IF;
        IF writes THEN
            EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO fairlead_writer', held);
        END IF;
        IF reads THEN
            EXECUTE format('GRANT SELECT ON %I TO fairlead_reader', held);
        END IF;
    END LOOP;
    IF current_setting('server_version_num')::integer >= 150000 THEN
        ALTER VIEW feature_flags_status SET (security_invoker = true);
        IF writes THEN
            GRANT SELECT ON feature_flags_status TO fairlead_writer;
        END IF;
        IF reads THEN
            GRANT SELECT ON feature_flags_status TO fairlead_reader;
        END IF;
    END IF;
END $$;
