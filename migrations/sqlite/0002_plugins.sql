-- Components, which of them are deployed, and what the nodes say of that.

-- Components, so that every node gets them.
CREATE TABLE laneway_plugin (
    -- What it is called.
    name TEXT NOT NULL,
    -- Which version.
    version TEXT NOT NULL,
    -- SHA-256 of the component, in hexadecimal.
    digest TEXT NOT NULL,
    -- What it asks for, as JSON.
    manifest TEXT,
    -- Its signature, in minisign's format.
    signature TEXT,
    -- When it was stored.
    pushed_at INTEGER NOT NULL,
    -- Size of the component, in bytes.
    bytes INTEGER NOT NULL,
    -- The component. The last column, so that a list does not read through it.
    component BLOB NOT NULL,

    PRIMARY KEY (name, version),
    CONSTRAINT "bytes: the component's" CHECK (bytes = length(component))
);

-- Versions put to work, as they came and went.
CREATE TABLE laneway_deployment (
    -- In the order in which they were staged.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The plugin.
    plugin TEXT NOT NULL,
    -- Which version of it.
    version TEXT NOT NULL,
    -- SHA-256 of the component. Stays when the component is removed.
    digest TEXT NOT NULL,
    -- Where it stands.
    state TEXT NOT NULL,
    -- How it is tried first, as JSON; NULL if it is not.
    canary TEXT,
    -- Why it came to its state.
    reason TEXT,
    -- Whether it has ever been active.
    was_active INTEGER NOT NULL DEFAULT 0,
    -- The deployment to which it went back; NULL if it did not.
    back_to INTEGER,
    -- When it was staged.
    staged_at INTEGER NOT NULL,
    -- When it came to its state.
    changed_at INTEGER NOT NULL,

    CONSTRAINT "state: staged, validated, canary, active, draining, retired or failed" CHECK (
        state IN ('staged', 'validated', 'canary', 'active', 'draining', 'retired', 'failed')),
    CONSTRAINT "was_active: 0 or 1" CHECK (was_active IN (0, 1)),
    CONSTRAINT "canary: only with a trial" CHECK (state <> 'canary' OR canary IS NOT NULL)
);
-- One version of a plugin is active, and one on trial.
CREATE UNIQUE INDEX laneway_deployment_at_work ON laneway_deployment (plugin, state) WHERE state IN ('active', 'canary');
CREATE INDEX laneway_deployment_under_way ON laneway_deployment (id) WHERE state NOT IN ('retired', 'failed');
CREATE INDEX laneway_deployment_of ON laneway_deployment (plugin, id);

-- Whoever moves a deployment, and how, leaves a row.
CREATE TRIGGER laneway_note_staged AFTER INSERT ON laneway_deployment
BEGIN
    INSERT INTO laneway_audit (at, action, detail) VALUES (new.staged_at, 'deployment.' || new.state, json_object(
        'deployment', new.id, 'name', new.plugin, 'version', new.version, 'digest', new.digest,
        'from', NULL, 'reason', new.reason));
END;
CREATE TRIGGER laneway_note_moved AFTER UPDATE OF state ON laneway_deployment WHEN new.state <> old.state
BEGIN
    INSERT INTO laneway_audit (at, action, detail) VALUES (new.changed_at, 'deployment.' || new.state, json_object(
        'deployment', new.id, 'name', new.plugin, 'version', new.version, 'digest', new.digest,
        'from', old.state, 'reason', new.reason));
END;

-- What nodes say of deployments.
CREATE TABLE laneway_node_report (
    -- Which deployment.
    deployment_id INTEGER NOT NULL,
    -- The node.
    node TEXT NOT NULL,
    -- Whether attempts run there, or more may begin.
    at_work INTEGER NOT NULL,
    -- All that it says, as JSON.
    report TEXT NOT NULL,
    -- When.
    reported_at INTEGER NOT NULL,

    PRIMARY KEY (deployment_id, node),
    CONSTRAINT "at_work: 0 or 1" CHECK (at_work IN (0, 1))
) WITHOUT ROWID;

-- What subscriptions granted their plugins when that was noted last, so that changes are seen.
CREATE TABLE laneway_noted_grants (
    -- The subscription.
    subscription TEXT PRIMARY KEY NOT NULL,
    -- What it granted, as JSON.
    grants TEXT NOT NULL
);
