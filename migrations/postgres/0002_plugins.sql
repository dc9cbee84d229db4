-- Components, which of them are deployed, and what the nodes say of that.

CREATE TABLE laneway.plugin (
    name text COLLATE "C" NOT NULL,
    version text COLLATE "C" NOT NULL,
    digest text COLLATE "C" NOT NULL,
    manifest jsonb,
    signature text,
    pushed_at timestamptz NOT NULL DEFAULT now(),
    component bytea NOT NULL,
    PRIMARY KEY (name, version)
);
-- Machine code of another kind: it does not compress well, and is read whole.
ALTER TABLE laneway.plugin ALTER COLUMN component SET STORAGE EXTERNAL;
COMMENT ON TABLE laneway.plugin IS 'Components, so that every node gets them.';
COMMENT ON COLUMN laneway.plugin.name IS 'What it is called.';
COMMENT ON COLUMN laneway.plugin.version IS 'Which version.';
COMMENT ON COLUMN laneway.plugin.digest IS 'SHA-256 of the component, in hexadecimal.';
COMMENT ON COLUMN laneway.plugin.manifest IS 'What it asks for.';
COMMENT ON COLUMN laneway.plugin.signature IS 'Its signature, in minisign''s format.';
COMMENT ON COLUMN laneway.plugin.pushed_at IS 'When it was stored.';
COMMENT ON COLUMN laneway.plugin.component IS 'The component.';

CREATE TABLE laneway.deployment (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    plugin text COLLATE "C" NOT NULL,
    version text COLLATE "C" NOT NULL,
    digest text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL
        CHECK (state IN ('staged', 'validated', 'canary', 'active', 'draining', 'retired', 'failed')),
    canary jsonb,
    reason text,
    was_active boolean NOT NULL DEFAULT false,
    back_to bigint,
    staged_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT "canary: only with a trial" CHECK (state <> 'canary' OR canary IS NOT NULL)
);
-- One version of a plugin is active, and one on trial.
CREATE UNIQUE INDEX deployment_at_work ON laneway.deployment (plugin, state) WHERE state IN ('active', 'canary');
CREATE INDEX deployment_under_way ON laneway.deployment (id) WHERE state NOT IN ('retired', 'failed');
CREATE INDEX deployment_of ON laneway.deployment (plugin, id);
COMMENT ON TABLE laneway.deployment IS 'Versions put to work, as they came and went.';
COMMENT ON COLUMN laneway.deployment.id IS 'In the order in which they were staged.';
COMMENT ON COLUMN laneway.deployment.plugin IS 'The plugin.';
COMMENT ON COLUMN laneway.deployment.version IS 'Which version of it.';
COMMENT ON COLUMN laneway.deployment.digest IS 'SHA-256 of the component. Stays when the component is removed.';
COMMENT ON COLUMN laneway.deployment.state IS 'Where it stands.';
COMMENT ON COLUMN laneway.deployment.canary IS 'How it is tried first; NULL if it is not.';
COMMENT ON COLUMN laneway.deployment.reason IS 'Why it came to its state.';
COMMENT ON COLUMN laneway.deployment.was_active IS 'Whether it has ever been active.';
COMMENT ON COLUMN laneway.deployment.back_to IS 'The deployment to which it went back; NULL if it did not.';
COMMENT ON COLUMN laneway.deployment.staged_at IS 'When it was staged.';
COMMENT ON COLUMN laneway.deployment.changed_at IS 'When it came to its state.';

-- Whoever moves a deployment, and how, leaves a row.
CREATE FUNCTION laneway.note_deployment() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO laneway.audit (action, detail) VALUES ('deployment.' || new.state, jsonb_build_object(
        'deployment', new.id, 'name', new.plugin, 'version', new.version, 'digest', new.digest,
        'from', CASE WHEN tg_op = 'UPDATE' THEN old.state END, 'reason', new.reason));
    RETURN NULL;
END;
$$;
CREATE TRIGGER note_staged AFTER INSERT ON laneway.deployment
    FOR EACH ROW EXECUTE FUNCTION laneway.note_deployment();
CREATE TRIGGER note_moved AFTER UPDATE OF state ON laneway.deployment
    FOR EACH ROW WHEN (new.state IS DISTINCT FROM old.state) EXECUTE FUNCTION laneway.note_deployment();

CREATE TABLE laneway.node_report (
    deployment_id bigint NOT NULL,
    node text COLLATE "C" NOT NULL,
    at_work boolean NOT NULL,
    report jsonb NOT NULL,
    reported_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (deployment_id, node)
);
COMMENT ON TABLE laneway.node_report IS 'What nodes say of deployments.';
COMMENT ON COLUMN laneway.node_report.deployment_id IS 'Which deployment.';
COMMENT ON COLUMN laneway.node_report.node IS 'The node.';
COMMENT ON COLUMN laneway.node_report.at_work IS 'Whether attempts run there, or more may begin.';
COMMENT ON COLUMN laneway.node_report.report IS 'All that it says.';
COMMENT ON COLUMN laneway.node_report.reported_at IS 'When.';

CREATE TABLE laneway.noted_grants (
    subscription text COLLATE "C" PRIMARY KEY,
    grants jsonb NOT NULL
);
COMMENT ON TABLE laneway.noted_grants IS 'What subscriptions granted their plugins when that was noted last, so that changes are seen.';
COMMENT ON COLUMN laneway.noted_grants.subscription IS 'The subscription.';
COMMENT ON COLUMN laneway.noted_grants.grants IS 'What it granted.';
