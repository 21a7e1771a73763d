-- The second wall between tenants. The first one is in the queries; where one of them forgets its tenant, the database
-- does not.
--
-- Every transaction says for whom it is, in `fairlead.tenant`: a tenant's name; `*` for the proxy's own work, which is
-- everybody's; nothing at all: then it sees nothing and writes nothing. Forced, so that it holds for the owner of the
-- tables too. (CASE, because the planner then guesses that half of the rows pass, and keeps the order of an index.)

-- -- rows of a tenant

DO $$
DECLARE
    held RECORD;
BEGIN
    FOR held IN SELECT * FROM (VALUES
        ('runs', 'tenant'), ('idempotency', 'tenant'), ('dead_letters', 'tenant'), ('callbacks', 'tenant'),
        ('approvals', 'tenant'), ('operator_keys', 'tenant'), ('replay_runs', 'company_id'),
        ('replay_budgets', 'company_id'), ('agent_controls', 'company_id'), ('audit_logs', 'company_id')
    ) AS named (relation, tenant)
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', held.relation);
        EXECUTE format(
            'CREATE POLICY tenant ON %I USING (CASE (SELECT nullif(current_setting(''fairlead.tenant'', true), ''''))'
            ' WHEN ''*'' THEN true WHEN %I THEN true ELSE false END)', held.relation, held.tenant
        );
    END LOOP;
END $$;

-- -- rows that belong to such a row

DO $$
DECLARE
    held RECORD;
BEGIN
    FOR held IN SELECT * FROM (VALUES
        ('attempts', 'run_id', 'runs', 'run_id'), ('job_source_callback_events', 'run_id', 'runs', 'run_id'),
        ('approval_votes', 'approval_id', 'approvals', 'id')
    ) AS named (relation, reference, whole, key)
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', held.relation);
        EXECUTE format(
            'CREATE POLICY tenant ON %1$I USING (CASE (SELECT nullif(current_setting(''fairlead.tenant'', true), ''''))'
            ' WHEN ''*'' THEN true ELSE EXISTS (SELECT 1 FROM %3$I WHERE %3$I.%4$I = %1$I.%2$I) END)',
            held.relation, held.reference, held.whole, held.key
        );
    END LOOP;
END $$;

-- -- rows of the fleet, which no tenant has to see

DO $$
DECLARE
    held TEXT;
BEGIN
    FOREACH held IN ARRAY ARRAY[
        'meta', 'descriptors', 'node_overrides', 'key_epochs', 'run_totals', 'feature_flags', 'edge_rate_limits',
        'replay_guards', 'replay_guard_totals', 'sealed_tables', 'audit_head', 'audit_checkpoints'
    ]
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', held);
        EXECUTE format(
            'CREATE POLICY fleet ON %I USING ((SELECT current_setting(''fairlead.tenant'', true)) = ''*'')', held
        );
    END LOOP;
END $$;

-- A view shows what its owner may see, unless it is told to ask for whoever looks.
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 150000 THEN
        ALTER VIEW replay_budgets_status SET (security_invoker = true);
        ALTER VIEW feature_flags_status SET (security_invoker = true);
    END IF;
END $$;

-- -- as whom a proxy works: never as the owner of the tables, who could take the wall down

-- Group roles, which a login is made a member of. Roles are the whole server's: another database may have made them
-- already, and this role may not be allowed to make any. Then the wall holds for whoever connects, as it is forced.
DO $$
DECLARE
    worker TEXT;
BEGIN
    FOREACH worker IN ARRAY ARRAY['fairlead_writer', 'fairlead_reader'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = worker) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', worker);
                IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                    EXECUTE format('GRANT %I TO %I', worker, current_user);
                END IF;
            EXCEPTION WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
        -- Not to roles that somebody else made for something else.
        IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = worker AND pg_has_role(current_user, oid, 'MEMBER')) THEN
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), worker);
        END IF;
    END LOOP;
END $$;
DO $$
DECLARE
    held TEXT;
    writes BOOLEAN := EXISTS (
        SELECT 1 FROM pg_roles WHERE rolname = 'fairlead_writer' AND pg_has_role(current_user, oid, 'MEMBER'));
    reads BOOLEAN := EXISTS (
        SELECT 1 FROM pg_roles WHERE rolname = 'fairlead_reader' AND pg_has_role(current_user, oid, 'MEMBER'));
BEGIN
    FOREACH held IN ARRAY ARRAY[
        'meta', 'runs', 'attempts', 'idempotency', 'descriptors', 'node_overrides', 'key_epochs', 'run_totals',
        'dead_letters', 'replay_runs', 'replay_budgets', 'feature_flags', 'agent_controls', 'edge_rate_limits',
        'audit_logs', 'replay_guards', 'callbacks', 'job_source_callback_events', 'sealed_tables', 'operator_keys',
        'approvals', 'approval_votes', 'replay_guard_totals', 'audit_head', 'audit_checkpoints'
    ]
    LOOP
        IF writes THEN
            EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO fairlead_writer', held);
        END IF;
        IF reads THEN
            EXECUTE format('GRANT SELECT ON %I TO fairlead_reader', held);
        END IF;
    END LOOP;
    IF writes THEN
        GRANT SELECT ON fairlead_schema TO fairlead_writer;
    END IF;
    IF reads THEN
        GRANT SELECT ON fairlead_schema TO fairlead_reader;
    END IF;
    IF current_setting('server_version_num')::integer >= 150000 THEN
        IF writes THEN
            GRANT SELECT ON replay_budgets_status, feature_flags_status TO fairlead_writer;
        END IF;
        IF reads THEN
            GRANT SELECT ON replay_budgets_status, feature_flags_status TO fairlead_reader;
        END IF;
    END IF;
END $$;
