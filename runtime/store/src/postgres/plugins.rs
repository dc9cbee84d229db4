//! Plugins and deployments.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use laneway_core::{
    Canary, Deployment, DeploymentState, Name, NewDeployment, NewPlugin, NodeReport, NodeReportView, PluginDigest,
    PluginVersion, PluginView, Plugins, StoreError, StoredPlugin,
};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::PostgresStore;
use super::connection::{
    Database, Instant, Outcome, Session, Transaction, classify, count, microseconds, span, unreadable,
};
use super::wake::DEPLOYMENTS;
use crate::refusal::{
    GRANTS_CHANGED, NODE_REPORTS_KEPT, RETIRE_AFTER, changed_grants, not_stored, other_bytes, other_signature,
    still_deployed, was_deployed,
};

/// Name and version, from two columns side by side.
fn plugin_version(row: &PgRow, column: usize) -> Outcome<PluginVersion> {
    let name = Name::parse(row.try_get(column)?).map_err(unreadable)?;
    PluginVersion::new(name, row.try_get(column + 1)?).map_err(unreadable)
}

#[async_trait]
impl Plugins for PostgresStore {
    async fn push_plugin(&self, plugin: &NewPlugin) -> Result<bool, StoreError> {
        push(self.database(), plugin).await.map_err(classify)?.map_err(StoreError::Refused)
    }

    async fn plugins(&self) -> Result<Vec<PluginView>, StoreError> {
        list(self.database()).await.map_err(classify)
    }

    async fn plugin(&self, plugin: &PluginVersion) -> Result<Option<StoredPlugin>, StoreError> {
        component(self.database(), plugin).await.map_err(classify)
    }

    async fn remove_plugin(&self, plugin: &PluginVersion) -> Result<bool, StoreError> {
        remove(self.database(), plugin).await.map_err(classify)?.map_err(StoreError::Refused)
    }

    async fn stage(&self, deployment: &NewDeployment) -> Result<i64, StoreError> {
        stage(self.database(), deployment).await.map_err(classify)?.map_err(StoreError::Refused)
    }

    async fn advance(
        &self,
        deployment: i64,
        from: DeploymentState,
        to: DeploymentState,
        reason: Option<&str>,
    ) -> Result<bool, StoreError> {
        if !to.predecessors().contains(&from) {
            return Ok(false);
        }
        advance(self.database(), deployment, from, to, reason).await.map_err(classify)
    }

    async fn deployments(&self, plugin: Option<&Name>, ended: u32) -> Result<Vec<Deployment>, StoreError> {
        deployments(self.database(), plugin, ended).await.map_err(classify)
    }

    async fn deployments_changed(&self) {
        self.0.wakes.woken_by_deployments().await;
    }

    async fn report(&self, node: &Name, reports: &[NodeReport], alive_for: Duration) -> Result<(), StoreError> {
        report(self.database(), node, reports, alive_for).await.map_err(classify)
    }

    async fn reports(&self, deployments: &[i64], alive_for: Duration) -> Result<Vec<NodeReportView>, StoreError> {
        reports(self.database(), deployments, alive_for).await.map_err(classify)
    }

    async fn nodes_alive(&self, alive_for: Duration) -> Result<Vec<Name>, StoreError> {
        nodes_alive(self.database(), alive_for).await.map_err(classify)
    }

    async fn note_grants(&self, node: &Name, grants: &[(Name, String)]) -> Result<u32, StoreError> {
        note_grants(self.database(), node, grants).await.map_err(classify)?
    }
}

async fn push(database: &Database, plugin: &NewPlugin) -> Outcome<Result<bool, String>> {
    let NewPlugin { plugin: PluginVersion { name, version }, digest, component, manifest, signature } = plugin;
    let mut transaction = database.begin().await?;
    // One at a time, and none beside a change of deployments: each looks at what is there.
    lock(&mut transaction).await?;
    if let Err(refused) = may_push(&mut transaction, plugin).await? {
        transaction.roll_back().await?;
        return Ok(Err(refused));
    }
    let query = "-- plugin.push
        INSERT INTO laneway.plugin AS p (name, version, digest, manifest, signature, component)
        VALUES ($1, $2, $3, $4::text::jsonb, $5, $6)
        ON CONFLICT (name, version) DO UPDATE SET signature = excluded.signature
            WHERE p.digest = excluded.digest AND p.signature IS NULL AND excluded.signature IS NOT NULL
        RETURNING 1";
    let statement = sqlx::query(query)
        .bind(name.as_str())
        .bind(&**version)
        .bind(digest.as_str())
        .bind(manifest)
        .bind(signature)
        .bind(&component[..]);
    let changed = transaction.optional(statement).await?.is_some();
    if changed {
        let detail = serde_json::json!({
            "name": name, "version": version, "digest": digest, "bytes": component.len(),
            "signed": signature.is_some(),
        });
        note(&mut transaction, "plugin.push", &detail).await?;
    }
    transaction.commit().await?;
    Ok(Ok(changed))
}

/// Why a component may not be stored, if it may not.
async fn may_push(transaction: &mut Transaction, new: &NewPlugin) -> Outcome<Result<(), String>> {
    let NewPlugin { plugin, digest, signature, .. } = new;
    let query = "-- plugin.found
        SELECT digest, signature FROM laneway.plugin WHERE name = $1 AND version = $2";
    let statement = sqlx::query(query).bind(plugin.name.as_str()).bind(&*plugin.version);
    if let Some(row) = transaction.optional(statement).await? {
        let (found, signed): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        if found != digest.as_str() {
            return Ok(Err(other_bytes(plugin, &found)));
        }
        if signature.is_some() && signed.is_some() && *signature != signed {
            return Ok(Err(other_signature(plugin)));
        }
        return Ok(Ok(()));
    }
    let query = "-- plugin.was_deployed
        SELECT digest FROM laneway.deployment WHERE plugin = $1 AND version = $2 AND digest <> $3 LIMIT 1";
    let statement = sqlx::query(query).bind(plugin.name.as_str()).bind(&*plugin.version).bind(digest.as_str());
    match transaction.optional(statement).await? {
        Some(row) => Ok(Err(was_deployed(plugin, row.try_get(0)?))),
        None => Ok(Ok(())),
    }
}

async fn list(database: &Database) -> Outcome<Vec<PluginView>> {
    let query = "-- plugin.list
        SELECT name, version, digest, octet_length(component)::bigint, signature IS NOT NULL, manifest::text, pushed_at
        FROM laneway.plugin ORDER BY name, pushed_at DESC, version DESC";
    let rows = database.connection().await?.all(sqlx::query(query)).await?;
    rows.iter()
        .map(|row| {
            Ok(PluginView {
                plugin: plugin_version(row, 0)?,
                digest: PluginDigest::from_hex(row.try_get(2)?),
                bytes: count(row, 3)?,
                signed: row.try_get(4)?,
                manifest: row.try_get(5)?,
                pushed_at: row.try_get::<Instant, _>(6)?.timestamp()?,
            })
        })
        .collect()
}

async fn component(database: &Database, plugin: &PluginVersion) -> Outcome<Option<StoredPlugin>> {
    let query = "-- plugin.component
        SELECT digest, component, signature FROM laneway.plugin WHERE name = $1 AND version = $2";
    let statement = sqlx::query(query).bind(plugin.name.as_str()).bind(&*plugin.version);
    let row = database.connection().await?.optional(statement).await?;
    row.map(|row| {
        Ok(StoredPlugin {
            plugin: plugin.clone(),
            digest: PluginDigest::from_hex(row.try_get(0)?),
            component: Bytes::from(row.try_get::<Vec<u8>, _>(1)?),
            signature: row.try_get(2)?,
        })
    })
    .transpose()
}

async fn remove(database: &Database, plugin: &PluginVersion) -> Outcome<Result<bool, String>> {
    let mut transaction = database.begin().await?;
    lock(&mut transaction).await?;
    let query = "-- plugin.in_use
        SELECT state FROM laneway.deployment
        WHERE plugin = $1 AND version = $2 AND state NOT IN ('retired', 'failed') LIMIT 1";
    let statement = sqlx::query(query).bind(plugin.name.as_str()).bind(&*plugin.version);
    if let Some(row) = transaction.optional(statement).await? {
        let state: String = row.try_get(0)?;
        transaction.roll_back().await?;
        return Ok(Err(still_deployed(plugin, &state)));
    }
    let query = "-- plugin.remove
        DELETE FROM laneway.plugin WHERE name = $1 AND version = $2 RETURNING 1";
    let statement = sqlx::query(query).bind(plugin.name.as_str()).bind(&*plugin.version);
    let removed = transaction.optional(statement).await?.is_some();
    if removed {
        note(&mut transaction, "plugin.remove", &serde_json::json!(plugin)).await?;
    }
    transaction.commit().await?;
    Ok(Ok(removed))
}

/// Changes of deployments come one after the other: they are rare, and each looks at what the others left.
async fn lock(transaction: &mut Transaction) -> Outcome<()> {
    let query = "-- deployment.lock
        LOCK TABLE laneway.deployment IN SHARE ROW EXCLUSIVE MODE";
    transaction.execute(sqlx::query(query)).await
}

async fn stage(database: &Database, deployment: &NewDeployment) -> Outcome<Result<i64, String>> {
    let NewDeployment { plugin, canary, back_to } = deployment;
    let canary =
        canary.as_ref().map(serde_json::to_string).transpose().map_err(|e| sqlx::Error::Encode(e.into()))?;
    let mut transaction = database.begin().await?;
    lock(&mut transaction).await?;
    let query = "-- deployment.supersede
        UPDATE laneway.deployment SET state = 'failed', reason = 'another deployment was begun', changed_at = now()
        WHERE plugin = $1 AND state IN ('staged', 'validated')";
    transaction.execute(sqlx::query(query).bind(plugin.name.as_str())).await?;
    // Locked, so that nobody removes it meanwhile.
    let query = "-- deployment.stage
        WITH p AS (SELECT name, version, digest FROM laneway.plugin WHERE name = $1 AND version = $2 FOR UPDATE)
        INSERT INTO laneway.deployment (plugin, version, digest, state, canary, back_to)
        SELECT p.name, p.version, p.digest, 'staged', $3::text::jsonb, $4 FROM p
        RETURNING id";
    let statement = sqlx::query(query).bind(plugin.name.as_str()).bind(&*plugin.version).bind(canary).bind(back_to);
    let Some(row) = transaction.optional(statement).await? else {
        transaction.roll_back().await?;
        return Ok(Err(not_stored(plugin)));
    };
    let id: i64 = row.try_get(0)?;
    tell(&mut transaction).await?;
    transaction.commit().await?;
    Ok(Ok(id))
}

async fn advance(
    database: &Database,
    deployment: i64,
    from: DeploymentState,
    to: DeploymentState,
    reason: Option<&str>,
) -> Outcome<bool> {
    let mut transaction = database.begin().await?;
    lock(&mut transaction).await?;
    let query = "-- deployment.state
        SELECT plugin FROM laneway.deployment WHERE id = $1 AND state = $2";
    let Some(row) = transaction.optional(sqlx::query(query).bind(deployment).bind(from.as_str())).await? else {
        transaction.roll_back().await?;
        return Ok(false);
    };
    let plugin: String = row.try_get(0)?;
    if matches!(to, DeploymentState::Active | DeploymentState::Canary) {
        let query = "-- deployment.replace
            UPDATE laneway.deployment
            SET state = 'draining', reason = 'replaced by deployment ' || $1::bigint, changed_at = now()
            WHERE plugin = $2 AND id <> $1 AND (state = 'canary' OR (state = 'active' AND $3))";
        let statement = sqlx::query(query).bind(deployment).bind(plugin).bind(to == DeploymentState::Active);
        transaction.execute(statement).await?;
    }
    let query = "-- deployment.advance
        UPDATE laneway.deployment
        SET state = $1, reason = $2, changed_at = now(), was_active = was_active OR $1 = 'active' WHERE id = $3";
    transaction.execute(sqlx::query(query).bind(to.as_str()).bind(reason).bind(deployment)).await?;
    tell(&mut transaction).await?;
    transaction.commit().await?;
    Ok(true)
}

/// A query of deployments as far as its conditions. `$name` is the query's.
macro_rules! deployment_columns {
    ($name:literal) => {
        concat!(
            "-- ",
            $name,
            "\nSELECT id, plugin, version, digest, state, canary::text, reason, was_active, back_to, staged_at, \
             changed_at, (extract(epoch FROM now() - changed_at) * 1000000)::bigint FROM laneway.deployment"
        )
    };
}

async fn deployments(database: &Database, plugin: Option<&Name>, ended: u32) -> Outcome<Vec<Deployment>> {
    // Two queries: with one for both, the index of the few that are under way is of no use.
    let under_way = concat!(
        deployment_columns!("deployment.under_way"),
        " WHERE state NOT IN ('retired', 'failed') AND ($1::text IS NULL OR plugin = $1) ORDER BY id DESC"
    );
    let of_plugin = concat!(
        deployment_columns!("deployment.ended"),
        " WHERE plugin = $1 AND state IN ('retired', 'failed') ORDER BY id DESC LIMIT $2"
    );
    let of_all = concat!(
        deployment_columns!("deployment.ended"),
        " WHERE state IN ('retired', 'failed') ORDER BY id DESC LIMIT $1"
    );
    let mut session = database.connection().await?;
    let mut rows = session.all(sqlx::query(under_way).bind(plugin.map(Name::as_str))).await?;
    if ended > 0 {
        let ended = i64::from(ended);
        let statement = match plugin {
            Some(plugin) => sqlx::query(of_plugin).bind(plugin.as_str()).bind(ended),
            None => sqlx::query(of_all).bind(ended),
        };
        rows.extend(session.all(statement).await?);
    }
    let mut deployments = rows.iter().map(deployment).collect::<Outcome<Vec<Deployment>>>()?;
    // One may have ended between the two.
    deployments.sort_by_key(|deployment| std::cmp::Reverse(deployment.id));
    deployments.dedup_by_key(|deployment| deployment.id);
    Ok(deployments)
}

fn deployment(row: &PgRow) -> Outcome<Deployment> {
    let state: &str = row.try_get(4)?;
    let canary: Option<&str> = row.try_get(5)?;
    Ok(Deployment {
        id: row.try_get(0)?,
        plugin: plugin_version(row, 1)?,
        digest: PluginDigest::from_hex(row.try_get(3)?),
        state: DeploymentState::parse(state).ok_or_else(|| unreadable(format_args!("state {state}")))?,
        canary: canary.map(serde_json::from_str::<Canary>).transpose().map_err(unreadable)?,
        reason: row.try_get(6)?,
        was_active: row.try_get(7)?,
        back_to: row.try_get(8)?,
        staged_at: row.try_get::<Instant, _>(9)?.timestamp()?,
        changed_at: row.try_get::<Instant, _>(10)?.timestamp()?,
        in_state_for: span(row.try_get(11)?),
    })
}

async fn report(database: &Database, node: &Name, reports: &[NodeReport], alive_for: Duration) -> Outcome<()> {
    let (mut deployments, mut at_work, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    for report in reports {
        deployments.push(report.deployment);
        at_work.push(report.is_at_work());
        texts.push(serde_json::to_string(report).map_err(|error| sqlx::Error::Encode(error.into()))?);
    }
    let query = "-- deployment.report
        WITH forgotten AS (
            DELETE FROM laneway.node_report WHERE reported_at < now() - $5::bigint * interval '1 microsecond'
            -- A statement must not touch a row twice: these are written anew.
            AND NOT (node = $1 AND deployment_id = ANY ($2)))
        INSERT INTO laneway.node_report (deployment_id, node, at_work, report)
        SELECT r.deployment, $1, r.at_work, r.report::jsonb
        FROM unnest($2::bigint[], $3::boolean[], $4::text[]) r (deployment, at_work, report)
        ON CONFLICT (deployment_id, node) DO UPDATE SET at_work = excluded.at_work, report = excluded.report,
            reported_at = excluded.reported_at";
    let statement = sqlx::query(query)
        .bind(node.as_str())
        .bind(deployments)
        .bind(at_work)
        .bind(texts)
        .bind(microseconds(NODE_REPORTS_KEPT));
    let mut session = database.connection().await?;
    session.execute(statement).await?;
    let query = "-- deployment.retire
        UPDATE laneway.deployment d SET state = 'retired', changed_at = now()
        WHERE d.state = 'draining' AND d.changed_at < now() - $1::bigint * interval '1 microsecond' AND NOT EXISTS (
            SELECT FROM laneway.node_report r JOIN laneway.node n ON n.name = r.node
            WHERE r.deployment_id = d.id AND r.at_work
            AND n.seen_at > now() - $2::bigint * interval '1 microsecond')";
    session.execute(sqlx::query(query).bind(microseconds(RETIRE_AFTER)).bind(microseconds(alive_for))).await
}

async fn reports(database: &Database, deployments: &[i64], alive_for: Duration) -> Outcome<Vec<NodeReportView>> {
    let query = "-- deployment.reports
        SELECT r.node, coalesce(n.seen_at > now() - $1::bigint * interval '1 microsecond', false), r.reported_at,
            r.report::text
        FROM laneway.node_report r LEFT JOIN laneway.node n ON n.name = r.node
        WHERE r.deployment_id = ANY ($2) ORDER BY r.deployment_id, r.node";
    let statement = sqlx::query(query).bind(microseconds(alive_for)).bind(deployments);
    let rows = database.connection().await?.all(statement).await?;
    rows.iter()
        .map(|row| {
            Ok(NodeReportView {
                node: Name::parse(row.try_get(0)?).map_err(unreadable)?,
                alive: row.try_get(1)?,
                reported_at: row.try_get::<Instant, _>(2)?.timestamp()?,
                report: serde_json::from_str(row.try_get(3)?).map_err(unreadable)?,
            })
        })
        .collect()
}

async fn nodes_alive(database: &Database, alive_for: Duration) -> Outcome<Vec<Name>> {
    let query = "-- deployment.nodes
        SELECT name FROM laneway.node WHERE seen_at > now() - $1::bigint * interval '1 microsecond' ORDER BY name";
    let rows = database.connection().await?.all(sqlx::query(query).bind(microseconds(alive_for))).await?;
    rows.iter().map(|row| Name::parse(row.try_get(0)?).map_err(unreadable)).collect()
}

const NOTE: &str = "-- plugin.note
    INSERT INTO laneway.audit (action, detail) VALUES ($1, $2::text::jsonb)";

async fn note_grants(
    database: &Database,
    node: &Name,
    grants: &[(Name, String)],
) -> Outcome<Result<u32, StoreError>> {
    let mut transaction = database.begin().await?;
    let query = "-- grants.lock
        LOCK TABLE laneway.noted_grants IN SHARE ROW EXCLUSIVE MODE";
    transaction.execute(sqlx::query(query)).await?;
    let query = "-- grants.noted
        SELECT subscription, grants::text FROM laneway.noted_grants WHERE subscription = ANY ($1)";
    let names: Vec<&str> = grants.iter().map(|(subscription, _)| subscription.as_str()).collect();
    let rows = transaction.all(sqlx::query(query).bind(names)).await?;
    let noted =
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Outcome<HashMap<&str, &str>>>()?;
    let mut changed = 0;
    for (subscription, now) in grants {
        let before = noted.get(subscription.as_str()).copied();
        let detail = match changed_grants(node, subscription, before, now) {
            Ok(Some(detail)) => detail,
            Ok(None) => continue,
            Err(error) => {
                transaction.roll_back().await?;
                return Ok(Err(error));
            }
        };
        let query = "-- grants.note
            INSERT INTO laneway.noted_grants (subscription, grants) VALUES ($1, $2::text::jsonb)
            ON CONFLICT (subscription) DO UPDATE SET grants = excluded.grants";
        transaction.execute(sqlx::query(query).bind(subscription.as_str()).bind(now)).await?;
        note(&mut transaction, GRANTS_CHANGED, &detail).await?;
        changed += 1;
    }
    transaction.commit().await?;
    Ok(Ok(changed))
}

async fn note(transaction: &mut Transaction, action: &str, detail: &serde_json::Value) -> Outcome<()> {
    transaction.execute(sqlx::query(NOTE).bind(action).bind(detail.to_string())).await
}

/// Wakes the nodes when the transaction is committed.
async fn tell(transaction: &mut Transaction) -> Outcome<()> {
    let query = "-- deployment.tell
        SELECT pg_notify('laneway', $1)";
    transaction.optional(sqlx::query(query).bind(DEPLOYMENTS)).await.map(drop)
}
