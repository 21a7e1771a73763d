-- The alert thresholds of runbook 001, for psql against the store's PostgreSQL:
--
--     psql "$DATABASE_URL" -X -q -f docs/sql/alerting-thresholds.sql
--     psql "$DATABASE_URL" -X -q -v fail_on=WARN -f docs/sql/alerting-thresholds.sql
--
-- Prints each alert with its value. Exit status 0: none of those that fail_on names fires (PAGE unless said otherwise;
-- WARN: those too; INVESTIGATE: all); 3: one does, and the error names it; anything else: it could not be looked at.
-- Reads only. The proxies' own alerts (`fairlead ctl alerts`) judge the same, with `for`, cooldown and silences; this is
-- for a pipeline, and for when no proxy answers. What is not in rows (rates of refusals) comes from slo_samples, which
-- proxies write once a minute. A share of too few says nothing, and does not fire.

\set ON_ERROR_STOP on
\if :{?fail_on}
\else
\set fail_on PAGE
\endif
BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL fairlead.tenant = '*';
SET LOCAL statement_timeout = '60s';

WITH clock AS (
    SELECT floor(extract(epoch FROM now()) * 1000)::bigint AS now_ms
), replays AS (  -- five minutes: runs that repeat a failed one
    SELECT count(*) AS ended, count(*) FILTER (WHERE status <> 'COMPLETED') AS failed
      FROM runs, clock WHERE finished_at_ms > now_ms - 300000 AND retry_of_run_id <> ''
), lags AS (  -- ten minutes: how long runs were due before they were claimed, and how long others have been due
    SELECT claimed_at_ms - due_at_ms AS lag_ms FROM runs, clock
     WHERE finished_at_ms > now_ms - 600000 AND claimed_at_ms > 0
    UNION ALL
    SELECT claimed_at_ms - due_at_ms FROM runs, clock
     WHERE status = 'RUNNING' AND claimed_at_ms > now_ms - 600000
    UNION ALL
    SELECT now_ms - due_at_ms FROM runs, clock WHERE status = 'PENDING' AND ready = 1 AND due_at_ms <= now_ms
), lag AS (
    SELECT count(*) AS runs, coalesce(percentile_cont(0.95) WITHIN GROUP (ORDER BY greatest(lag_ms, 0)), 0) AS p95_ms
      FROM lags
), agents AS (  -- ten minutes
    SELECT count(*) AS ended, count(*) FILTER (WHERE status = 'COMPLETED') AS completed
      FROM runs, clock WHERE finished_at_ms > now_ms - 600000 AND status IN ('COMPLETED', 'FAILED', 'EXPIRED')
), resources AS (
    SELECT 100.0 * count(*) / current_setting('max_connections')::int AS percent FROM pg_stat_activity
), letters AS (  -- ten minutes, and what is usual for as long in the six hours before
    SELECT count(*) FILTER (WHERE first_failed_at_ms > now_ms - 600000) AS lately,
           count(*) FILTER (WHERE first_failed_at_ms <= now_ms - 600000) / 35.0 AS usual
      FROM dead_letters, clock WHERE last_failed_at_ms > now_ms - 21600000
), refusals AS (  -- of whole minutes, as proxies counted them
    SELECT coalesce(sum(total) FILTER (WHERE metric = 'rejects' AND name LIKE '%RATE_LIMIT%' AND at_ms > now_ms - 360000
                                             AND width_ms = 60000), 0) AS limited,
           coalesce(sum(total) FILTER (WHERE metric = 'rejects' AND name = 'IDEMPOTENCY_KEY_REUSED'), 0) AS collisions,
           coalesce(sum(total) FILTER (WHERE metric = 'accepted'), 0) AS accepted
      FROM slo_samples, clock WHERE metric IN ('rejects', 'accepted') AND at_ms > now_ms - 86400000
), trail AS (
    SELECT coalesce(max(seq) - min(seq) + 1, 0) - count(*) AS missing FROM audit_logs WHERE seq > 0
), speed AS (  -- an hour, and the day before it
    SELECT count(*) FILTER (WHERE finished_at_ms > now_ms - 3600000) AS lately,
           count(*) FILTER (WHERE finished_at_ms <= now_ms - 3600000) AS before,
           coalesce(percentile_cont(0.95) WITHIN GROUP (ORDER BY finished_at_ms - due_at_ms)
                    FILTER (WHERE finished_at_ms > now_ms - 3600000), 0) AS lately_ms,
           coalesce(percentile_cont(0.95) WITHIN GROUP (ORDER BY finished_at_ms - due_at_ms)
                    FILTER (WHERE finished_at_ms <= now_ms - 3600000), 0) AS before_ms
      FROM runs, clock WHERE finished_at_ms > now_ms - 90000000 AND status = 'COMPLETED'
), alerts (severity, name, value, threshold, samples, fires) AS (
    SELECT 'PAGE', 'replay failure rate, 5 min, %', round(100.0 * failed / greatest(ended, 1), 1), '> 40', ended,
           ended >= 3 AND failed > 0.4 * ended FROM replays
    UNION ALL SELECT 'PAGE', 'outbox lag p95, 10 min, ms', round(p95_ms::numeric), '> 5000', runs, p95_ms > 5000 FROM lag
    UNION ALL SELECT 'PAGE', 'agents'' success, 10 min, %', round(100.0 * completed / greatest(ended, 1), 1), '< 98',
           ended, ended >= 50 AND completed < 0.98 * ended FROM agents
    UNION ALL SELECT 'PAGE', 'connections to the database, %', round(percent, 1), '> 90', 1, percent > 90 FROM resources
    UNION ALL SELECT 'WARN', 'replay failure rate, 5 min, %', round(100.0 * failed / greatest(ended, 1), 1), '> 20',
           ended, ended >= 5 AND failed > 0.2 * ended FROM replays
    UNION ALL SELECT 'WARN', 'new dead letters, 10 min, x usual', round(lately / greatest(usual, 1), 1), '> 3', lately,
           lately >= 10 AND lately > 3 * greatest(usual, 1) FROM letters
    UNION ALL SELECT 'WARN', 'outbox lag p95, 10 min, ms', round(p95_ms::numeric), '> 2000', runs, p95_ms > 2000 FROM lag
    UNION ALL SELECT 'WARN', 'rate limit violations, 5 min', limited, '> 10', limited, limited > 10 FROM refusals
    UNION ALL SELECT 'INVESTIGATE', 'idempotency collisions, a day, %',
           round(100.0 * collisions / greatest(accepted + collisions, 1), 2), '> 1', accepted + collisions,
           accepted + collisions >= 100 AND collisions > 0.01 * (accepted + collisions) FROM refusals
    UNION ALL SELECT 'INVESTIGATE', 'audit events missing', missing, '> 0', 1, missing > 0 FROM trail
    UNION ALL SELECT 'INVESTIGATE', 'p95 of an hour, x that of the day', round((lately_ms / greatest(before_ms, 1))::numeric, 1),
           '> 2', lately, lately >= 50 AND before >= 50 AND lately_ms > 2 * greatest(before_ms, 1) FROM speed
), told AS (
    SELECT *, array_position(ARRAY['PAGE', 'WARN', 'INVESTIGATE'], severity) AS place,
           array_position(ARRAY['PAGE', 'WARN', 'INVESTIGATE'], upper(:'fail_on')) AS fails_to
      FROM alerts
)
SELECT string_agg(rpad(CASE WHEN fires THEN 'FIRES' ELSE 'ok' END, 7) || rpad(severity, 13) || rpad(name, 38)
                  || lpad(value::text, 9) || '  (' || threshold || ')  of ' || samples, E'\n' ORDER BY place) AS lines,
       coalesce(string_agg(severity || ' ' || name || ': ' || value || ' ' || threshold, '; ' ORDER BY place)
                FILTER (WHERE fires AND place <= fails_to), '') AS firing,
       CASE WHEN bool_or(fails_to IS NULL) THEN 'fail_on must be PAGE, WARN or INVESTIGATE' ELSE '' END AS misused
  FROM told
\gset
\echo :lines

SELECT set_config('fairlead.failed', CASE WHEN :'misused' <> '' THEN :'misused' WHEN :'firing' <> ''
                  THEN 'alerts fire: ' || :'firing' ELSE '' END, true) AS ignored
\gset
DO $$
BEGIN
    IF current_setting('fairlead.failed') <> '' THEN
        RAISE EXCEPTION '%', current_setting('fairlead.failed');
    END IF;
END $$;
ROLLBACK;
