-- Spot checks after a deployment (runbook 001), for psql against the store's PostgreSQL:
--
--     psql "$DATABASE_URL" -X -q -f docs/sql/post-deploy-checks.sql
--
-- Prints what there is, then each check with its verdict. Exit status 0: all is in order; 3: something is not, and the
-- error names it; anything else: it could not be looked at. Reads only, in one transaction. Needs a role that may read
-- the tables: fairlead_reader is enough. `-v except_flag=KEY`: that flag has to be there, and may be off.

\set ON_ERROR_STOP on
\if :{?except_flag}
\else
\set except_flag ''
\endif
BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL fairlead.tenant = '*';
SET LOCAL statement_timeout = '30s';

\echo '== 1. Idempotency: what keeps a second one from being made'
SELECT c.conrelid::regclass AS relation, c.conname, pg_get_constraintdef(c.oid) AS definition
  FROM pg_constraint AS c
 WHERE c.conrelid IN ('replay_runs'::regclass, 'idempotency'::regclass, 'replay_guards'::regclass)
   AND c.contype IN ('p', 'u')
 ORDER BY 1, 2;

\echo '== 2. Rate limits: the windows that moved last'
SELECT key, count, window_start FROM edge_rate_limits WHERE key LIKE 'replay:%' ORDER BY window_start DESC LIMIT 5;

\echo '== 3. Audit trail: the latest replays'
SELECT action, created_at, scope, target_count, success_count, failure_count
  FROM audit_logs WHERE action LIKE 'dlq_replay%' ORDER BY at_ms DESC LIMIT 10;

\echo '== 4. Feature flags'
SELECT key, enabled, rollout_percentage, owner, expired FROM feature_flags_status ORDER BY key;

\echo '== 5. Replay budgets'
SELECT company_id, daily_used, daily_limit, monthly_used, monthly_limit, custom FROM replay_budgets_status ORDER BY 1 LIMIT 20;

\echo '== Checks'
WITH clock AS (
    SELECT floor(extract(epoch FROM now()) * 1000)::bigint AS now_ms
), trail AS (
    SELECT count(*) AS kept, min(seq) AS first, max(seq) AS last FROM audit_logs WHERE seq > 0
), waiting AS (
    SELECT count(*) AS runs, coalesce(max(now_ms - due_at_ms), 0) AS oldest_ms
      FROM runs, clock WHERE status = 'PENDING' AND ready = 1 AND due_at_ms <= now_ms
), checks (name, good, detail) AS (
    SELECT 'replays are made once', count(*) = 1, 'replay_runs is unique by (company_id, idempotency_key)'
      FROM pg_constraint WHERE conrelid = 'replay_runs'::regclass AND contype = 'u'
       AND pg_get_constraintdef(oid) = 'UNIQUE (company_id, idempotency_key)'
    UNION ALL
    SELECT 'submissions are made once', count(*) = 1, 'idempotency has the key (tenant, key)'
      FROM pg_constraint WHERE conrelid = 'idempotency'::regclass AND contype = 'p'
       AND pg_get_constraintdef(oid) = 'PRIMARY KEY (tenant, key)'
    UNION ALL
    SELECT 'signatures are taken once', count(*) = 1, 'replay_guards has the key (key)'
      FROM pg_constraint WHERE conrelid = 'replay_guards'::regclass AND contype = 'p'
       AND pg_get_constraintdef(oid) = 'PRIMARY KEY (key)'
    UNION ALL
    SELECT 'what ended cannot change', count(*) = 1, 'the trigger runs_terminal_immutable is there and enabled'
      FROM pg_trigger WHERE tgrelid = 'runs'::regclass AND tgname = 'runs_terminal_immutable' AND tgenabled <> 'D'
    UNION ALL
    SELECT 'tenants are kept apart', count(*) = 0,
           coalesce('without forced row level security: ' || string_agg(relname, ', ' ORDER BY relname), 'on every table')
      FROM pg_class
     WHERE relkind IN ('r', 'p') AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'runs'::regclass)
       AND NOT relforcerowsecurity AND relname <> 'fairlead_schema'
    UNION ALL
    SELECT 'rate limit windows move', count(*) = 0, count(*) || ' windows begin in the future'
      FROM edge_rate_limits, clock WHERE window_start_ms > now_ms + 60000
    UNION ALL
    SELECT 'the audit trail has no gap', kept = coalesce(last - first + 1, 0) AND last IS NOT DISTINCT FROM head.seq,
           kept || ' rows from ' || coalesce(first, 0) || ' to ' || coalesce(last, 0) || ', head ' || coalesce(head.seq, 0)
      FROM trail LEFT JOIN (SELECT nullif(max(seq), 0) AS seq FROM audit_head) AS head ON true
    UNION ALL
    SELECT 'replays are in the audit trail', count(*) = 0, count(*) || ' replays of a day without an event'
      FROM replay_runs AS r, clock
     WHERE r.created_at_ms > now_ms - 86400000
       AND NOT EXISTS (
           SELECT 1 FROM audit_logs AS a
            WHERE a.action LIKE 'dlq_replay%' AND a.at_ms BETWEEN r.created_at_ms - 60000 AND r.created_at_ms + 60000)
    UNION ALL
    SELECT 'flag ' || wanted.key, coalesce((f.enabled OR f.key = :'except_flag') AND NOT f.expired, false),
           CASE WHEN f.key IS NULL THEN 'there is none' WHEN f.expired THEN 'expired' WHEN f.enabled
                THEN 'on for ' || f.rollout_percentage || ' %' ELSE 'off' END
      FROM (VALUES ('outbox.enabled'), ('dlq.replay.enabled')) AS wanted (key)
      LEFT JOIN feature_flags_status AS f ON f.key = wanted.key
    UNION ALL
    SELECT 'replay budgets hold', count(*) = 0, count(*) || ' tenants are over theirs'
      FROM replay_budgets_status WHERE daily_used > daily_limit OR monthly_used > monthly_limit
    UNION ALL
    SELECT 'the outbox keeps up', oldest_ms < 5000, runs || ' runs wait, the oldest for ' || oldest_ms || ' ms'
      FROM waiting
    UNION ALL
    SELECT 'few dead letters wait', count(*) < 10, count(*) || ' are queued (less than 10)'
      FROM dead_letters WHERE state = 'queued'
    UNION ALL
    SELECT 'the schema is there', count(*) > 0, coalesce('version ' || max(version), 'no migration was applied')
      FROM fairlead_schema
), told AS (
    SELECT name, CASE WHEN good THEN 'ok' ELSE 'FAILED' END AS verdict, detail FROM checks
)
SELECT coalesce(string_agg(rpad(verdict, 8) || rpad(name, 34) || detail, E'\n'), '') AS lines,
       coalesce(string_agg(name || ' (' || detail || ')', '; ') FILTER (WHERE verdict = 'FAILED'), '') AS failed
  FROM told
\gset
\echo :lines

SELECT set_config('fairlead.failed', :'failed', true) AS ignored
\gset
DO $$
BEGIN
    IF current_setting('fairlead.failed') <> '' THEN
        RAISE EXCEPTION 'post-deploy checks failed: %', current_setting('fairlead.failed');
    END IF;
END $$;
ROLLBACK;
