//! Plugins and deployments.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use laneway_core::{
    Canary, Deployment, DeploymentState, Name, NewDeployment, NewPlugin, NodeReport, NodeReportView, PluginDigest,
    PluginVersion, PluginView, Plugins, StoreError, StoredPlugin,
};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::SqliteStore;
use super::connection::{json, millis, now_ms};
use super::writer::{Durability, Transaction};
use crate::refusal::{
    GRANTS_CHANGED, NODE_REPORTS_KEPT, RETIRE_AFTER, changed_grants, not_stored, other_bytes, other_signature,
    still_deployed, was_deployed,
};

fn unreadable(error: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(error.to_string().into())
}

fn timestamp(row: &SqliteRow, column: usize) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_millisecond(row.try_get(column)?).map_err(unreadable)
}

/// Name and version, from two columns side by side.
fn plugin_version(row: &SqliteRow, column: usize) -> Result<PluginVersion, sqlx::Error> {
    let name = Name::parse(row.try_get(column)?).map_err(unreadable)?;
    PluginVersion::new(name, row.try_get(column + 1)?).map_err(unreadable)
}

/// A query of deployments as far as its conditions. `$name` is the query's.
macro_rules! deployment_columns {
    ($name:literal) => {
        concat!(
            "-- ",
            $name,
            "\nSELECT id, plugin, version, digest, state, canary, reason, was_active, back_to, staged_at, changed_at, ",
            now_ms!(),
            " - changed_at FROM laneway_deployment"
        )
    };
}

#[async_trait]
impl Plugins for SqliteStore {
    async fn push_plugin(&self, plugin: &NewPlugin) -> Result<bool, StoreError> {
        let NewPlugin { plugin: PluginVersion { name, version }, digest, component, manifest, signature } = plugin;
        let mut transaction = self.connections().begin(Durability::Flushed).await?;
        if let Err(refused) = may_push(&mut transaction, plugin).await? {
            transaction.roll_back().await?;
            return Err(StoreError::Refused(refused));
        }
        let query = concat!(
            "-- plugin.push
            INSERT INTO laneway_plugin AS p (name, version, digest, manifest, signature, pushed_at, bytes, component)
            VALUES (?, ?, ?, ?, ?, ",
            now_ms!(),
            ", ?, ?)
            ON CONFLICT (name, version) DO UPDATE SET signature = excluded.signature
                WHERE p.signature IS NULL AND excluded.signature IS NOT NULL"
        );
        let statement = sqlx::query(query)
            .bind(name.as_str())
            .bind(&**version)
            .bind(digest.as_str())
            .bind(manifest)
            .bind(signature)
            .bind(i64::try_from(component.len()).unwrap_or(i64::MAX))
            .bind(&component[..]);
        let changed = transaction.execute(statement).await?.rows_affected() > 0;
        if changed {
            let detail = serde_json::json!({
                "name": name, "version": version, "digest": digest, "bytes": component.len(),
                "signed": signature.is_some(),
            });
            note(&mut transaction, "plugin.push", &detail).await?;
        }
        transaction.commit().await?;
        Ok(changed)
    }

    async fn plugins(&self) -> Result<Vec<PluginView>, StoreError> {
        let query = "-- plugin.list
            SELECT name, version, digest, bytes, signature IS NOT NULL, manifest, pushed_at
            FROM laneway_plugin ORDER BY name, pushed_at DESC, version DESC";
        let mut reader = self.connections().reader().await?;
        reader
            .all(sqlx::query(query), |row| {
                Ok(PluginView {
                    plugin: plugin_version(row, 0)?,
                    digest: PluginDigest::from_hex(row.try_get(2)?),
                    bytes: u64::try_from(row.try_get::<i64, _>(3)?).unwrap_or_default(),
                    signed: row.try_get(4)?,
                    manifest: row.try_get(5)?,
                    pushed_at: timestamp(row, 6)?,
                })
            })
            .await
    }

    async fn plugin(&self, plugin: &PluginVersion) -> Result<Option<StoredPlugin>, StoreError> {
        let query = "-- plugin.component
            SELECT digest, component, signature FROM laneway_plugin WHERE name = ? AND version = ?";
        let statement = sqlx::query(query).bind(plugin.name.as_str()).bind(&*plugin.version);
        let mut reader = self.connections().reader().await?;
        reader
            .optional(statement, |row| {
                Ok(StoredPlugin {
                    plugin: plugin.clone(),
                    digest: PluginDigest::from_hex(row.try_get(0)?),
                    component: Bytes::from(row.try_get::<Vec<u8>, _>(1)?),
                    signature: row.try_get(2)?,
                })
            })
            .await
    }

    async fn remove_plugin(&self, plugin: &PluginVersion) -> Result<bool, StoreError> {
        let mut transaction = self.connections().begin(Durability::Flushed).await?;
        let query = "-- plugin.in_use
            SELECT state FROM laneway_deployment
            WHERE plugin = ? AND version = ? AND state NOT IN ('retired', 'failed') LIMIT 1";
        let statement = sqlx::query(query).bind(plugin.name.as_str()).bind(&*plugin.version);
        let state: Option<String> = transaction.optional(statement, |row| row.try_get(0)).await?;
        if let Some(state) = state {
            transaction.roll_back().await?;
            return Err(StoreError::Refused(still_deployed(plugin, &state)));
        }
        let query = "-- plugin.remove
            DELETE FROM laneway_plugin WHERE name = ? AND version = ?";
        let statement = sqlx::query(query).bind(plugin.name.as_str()).bind(&*plugin.version);
        let removed = transaction.execute(statement).await?.rows_affected() > 0;
        if removed {
            note(&mut transaction, "plugin.remove", &serde_json::json!(plugin)).await?;
        }
        transaction.commit().await?;
        Ok(removed)
    }

    async fn stage(&self, deployment: &NewDeployment) -> Result<i64, StoreError> {
        let NewDeployment { plugin, canary, back_to } = deployment;
        let canary = canary.as_ref().map(json).transpose()?;
        // Whoever announces it goes on to other steps, or fails: a loss of power here loses nothing that was at work.
        let mut transaction = self.connections().begin(Durability::Buffered).await?;
        let query = concat!(
            "-- deployment.supersede
            UPDATE laneway_deployment SET state = 'failed', reason = 'another deployment was begun', changed_at = ",
            now_ms!(),
            " WHERE plugin = ? AND state IN ('staged', 'validated')"
        );
        transaction.execute(sqlx::query(query).bind(plugin.name.as_str())).await?;
        let query = concat!(
            "-- deployment.stage
            INSERT INTO laneway_deployment (plugin, version, digest, state, canary, back_to, staged_at, changed_at)
            SELECT p.name, p.version, p.digest, 'staged', ?, ?, c.now, c.now
            FROM laneway_plugin p, (SELECT ",
            now_ms!(),
            " AS now) c WHERE p.name = ? AND p.version = ?"
        );
        let statement =
            sqlx::query(query).bind(canary).bind(back_to).bind(plugin.name.as_str()).bind(&*plugin.version);
        let staged = transaction.execute(statement).await?;
        if staged.rows_affected() == 0 {
            transaction.roll_back().await?;
            return Err(StoreError::Refused(not_stored(plugin)));
        }
        let id = staged.last_insert_rowid();
        tell(&mut transaction).await?;
        transaction.commit().await?;
        self.0.wakes.deployments_changed();
        Ok(id)
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
        // The same of what was only checked.
        let is_at_work = !matches!(to, DeploymentState::Validated | DeploymentState::Failed);
        let durability = if is_at_work { Durability::Flushed } else { Durability::Buffered };
        let mut transaction = self.connections().begin(durability).await?;
        let query = "-- deployment.state
            SELECT plugin FROM laneway_deployment WHERE id = ? AND state = ?";
        let plugin: Option<String> = transaction
            .optional(sqlx::query(query).bind(deployment).bind(from.as_str()), |row| row.try_get(0))
            .await?;
        let Some(plugin) = plugin else {
            transaction.roll_back().await?;
            return Ok(false);
        };
        let query = concat!(
            "-- deployment.replace
            UPDATE laneway_deployment SET state = 'draining', reason = 'replaced by deployment ' || ?, changed_at = ",
            now_ms!(),
            " WHERE plugin = ? AND id <> ? AND (state = 'canary' OR (state = 'active' AND ?))"
        );
        if matches!(to, DeploymentState::Active | DeploymentState::Canary) {
            let statement = sqlx::query(query)
                .bind(deployment)
                .bind(&plugin)
                .bind(deployment)
                .bind(to == DeploymentState::Active);
            transaction.execute(statement).await?;
        }
        let query = concat!(
            "-- deployment.advance
            UPDATE laneway_deployment SET state = ?1, reason = ?2, changed_at = ",
            now_ms!(),
            ", was_active = was_active OR ?1 = 'active' WHERE id = ?3"
        );
        transaction.execute(sqlx::query(query).bind(to.as_str()).bind(reason).bind(deployment)).await?;
        tell(&mut transaction).await?;
        transaction.commit().await?;
        self.0.wakes.deployments_changed();
        Ok(true)
    }

    async fn deployments(&self, plugin: Option<&Name>, ended: u32) -> Result<Vec<Deployment>, StoreError> {
        // Two queries: with one for both, the index of the few that are under way is of no use.
        let under_way = concat!(
            deployment_columns!("deployment.under_way"),
            " WHERE state NOT IN ('retired', 'failed') AND (?1 IS NULL OR plugin = ?1) ORDER BY id DESC"
        );
        let of_plugin = concat!(
            deployment_columns!("deployment.ended"),
            " WHERE plugin = ? AND state IN ('retired', 'failed') ORDER BY id DESC LIMIT ?"
        );
        let of_all = concat!(
            deployment_columns!("deployment.ended"),
            " WHERE state IN ('retired', 'failed') ORDER BY id DESC LIMIT ?"
        );
        let mut reader = self.connections().reader().await?;
        let statement = sqlx::query(under_way).bind(plugin.map(Name::as_str));
        let mut deployments = reader.all(statement, deployment).await?;
        if ended > 0 {
            let statement = match plugin {
                Some(plugin) => sqlx::query(of_plugin).bind(plugin.as_str()).bind(ended),
                None => sqlx::query(of_all).bind(ended),
            };
            deployments.extend(reader.all(statement, deployment).await?);
            // One may have ended between the two.
            deployments.sort_by_key(|deployment| std::cmp::Reverse(deployment.id));
            deployments.dedup_by_key(|deployment| deployment.id);
        }
        Ok(deployments)
    }

    async fn deployments_changed(&self) {
        self.0.wakes.woken_by_deployments().await;
    }

    async fn report(&self, node: &Name, reports: &[NodeReport], alive_for: Duration) -> Result<(), StoreError> {
        let reports = reports
            .iter()
            .map(|report| Ok((report.deployment, report.is_at_work(), json(report)?)))
            .collect::<Result<Vec<_>, StoreError>>()?;
        let node = node.clone();
        let noted = self.connections().write(Durability::Buffered, move |native| {
            let note = concat!(
                "-- deployment.report
                INSERT INTO laneway_node_report (deployment_id, node, at_work, report, reported_at)
                VALUES (?, ?, ?, ?, ",
                now_ms!(),
                ")
                ON CONFLICT (deployment_id, node) DO UPDATE SET at_work = excluded.at_work,
                    report = excluded.report, reported_at = excluded.reported_at"
            );
            for (deployment, is_at_work, report) in reports {
                let values = [deployment.into(), node.as_str().into(), is_at_work.into(), report.as_str().into()];
                native.run(note, &values)?;
            }
            let retire = concat!(
                "-- deployment.retire
                UPDATE laneway_deployment SET state = 'retired', changed_at = ",
                now_ms!(),
                "
                WHERE state = 'draining' AND changed_at < ",
                now_ms!(),
                " - ? AND NOT EXISTS (
                    SELECT 1 FROM laneway_node_report r JOIN laneway_node n ON n.name = r.node
                    WHERE r.deployment_id = laneway_deployment.id AND r.at_work = 1 AND n.seen_at > ",
                now_ms!(),
                " - ?)"
            );
            native.run(retire, &[millis(RETIRE_AFTER).into(), millis(alive_for).into()])?;
            let forget = concat!(
                "-- deployment.forget_reports
                DELETE FROM laneway_node_report WHERE reported_at < ",
                now_ms!(),
                " - ?"
            );
            native.run(forget, &[millis(NODE_REPORTS_KEPT).into()]).map(Some)
        });
        noted.await.map(drop)
    }

    async fn reports(&self, deployments: &[i64], alive_for: Duration) -> Result<Vec<NodeReportView>, StoreError> {
        let query = concat!(
            "-- deployment.reports
            SELECT r.node, coalesce(n.seen_at > ",
            now_ms!(),
            " - ?, 0), r.reported_at, r.report
            FROM laneway_node_report r LEFT JOIN laneway_node n ON n.name = r.node
            WHERE r.deployment_id IN (SELECT value FROM json_each(?)) ORDER BY r.deployment_id, r.node"
        );
        let statement = sqlx::query(query).bind(millis(alive_for)).bind(json(deployments)?);
        let mut reader = self.connections().reader().await?;
        reader
            .all(statement, |row| {
                Ok(NodeReportView {
                    node: Name::parse(row.try_get(0)?).map_err(unreadable)?,
                    alive: row.try_get(1)?,
                    reported_at: timestamp(row, 2)?,
                    report: serde_json::from_str(row.try_get(3)?).map_err(unreadable)?,
                })
            })
            .await
    }

    async fn nodes_alive(&self, alive_for: Duration) -> Result<Vec<Name>, StoreError> {
        let query = concat!(
            "-- deployment.nodes\nSELECT name FROM laneway_node WHERE seen_at > ",
            now_ms!(),
            " - ? ORDER BY name"
        );
        let mut reader = self.connections().reader().await?;
        let statement = sqlx::query(query).bind(millis(alive_for));
        reader.all(statement, |row| Name::parse(row.try_get(0)?).map_err(unreadable)).await
    }

    async fn note_grants(&self, node: &Name, grants: &[(Name, String)]) -> Result<u32, StoreError> {
        let mut transaction = self.connections().begin(Durability::Flushed).await?;
        let query = "-- grants.noted
            SELECT subscription, grants FROM laneway_noted_grants";
        let mut noted: HashMap<String, String> = HashMap::new();
        let note_row = |row: &SqliteRow| {
            noted.insert(row.try_get(0)?, row.try_get(1)?);
            Ok(())
        };
        transaction.each(sqlx::query(query), note_row).await?;
        let mut changed = 0;
        for (subscription, now) in grants {
            let before = noted.get(subscription.as_str()).map(String::as_str);
            let Some(detail) = changed_grants(node, subscription, before, now)? else { continue };
            let query = "-- grants.note
                INSERT INTO laneway_noted_grants (subscription, grants) VALUES (?, ?)
                ON CONFLICT (subscription) DO UPDATE SET grants = excluded.grants";
            transaction.execute(sqlx::query(query).bind(subscription.as_str()).bind(now)).await?;
            note(&mut transaction, GRANTS_CHANGED, &detail).await?;
            changed += 1;
        }
        transaction.commit().await?;
        Ok(changed)
    }
}

/// Why a component may not be stored, if it may not.
async fn may_push(transaction: &mut Transaction, new: &NewPlugin) -> Result<Result<(), String>, StoreError> {
    let NewPlugin { plugin, digest, signature, .. } = new;
    let query = "-- plugin.found
        SELECT digest, signature FROM laneway_plugin WHERE name = ? AND version = ?";
    let statement = sqlx::query(query).bind(plugin.name.as_str()).bind(&*plugin.version);
    let found: Option<(String, Option<String>)> =
        transaction.optional(statement, |row| Ok((row.try_get(0)?, row.try_get(1)?))).await?;
    if let Some((found, signed)) = found {
        if found != digest.as_str() {
            return Ok(Err(other_bytes(plugin, &found)));
        }
        if signature.is_some() && signed.is_some() && *signature != signed {
            return Ok(Err(other_signature(plugin)));
        }
        return Ok(Ok(()));
    }
    let query = "-- plugin.was_deployed
        SELECT digest FROM laneway_deployment WHERE plugin = ? AND version = ? AND digest <> ? LIMIT 1";
    let statement = sqlx::query(query).bind(plugin.name.as_str()).bind(&*plugin.version).bind(digest.as_str());
    let other: Option<String> = transaction.optional(statement, |row| row.try_get(0)).await?;
    Ok(other.map_or(Ok(()), |other| Err(was_deployed(plugin, &other))))
}

fn deployment(row: &SqliteRow) -> Result<Deployment, sqlx::Error> {
    let state: &str = row.try_get(4)?;
    let canary: Option<&str> = row.try_get(5)?;
    Ok(Deployment {
        id: row.try_get(0)?,
        plugin: plugin_version(row, 1)?,
        digest: PluginDigest::from_hex(row.try_get(3)?),
        state: DeploymentState::parse(state).ok_or_else(|| unreadable(format!("state {state}")))?,
        canary: canary.map(serde_json::from_str::<Canary>).transpose().map_err(unreadable)?,
        reason: row.try_get(6)?,
        was_active: row.try_get(7)?,
        back_to: row.try_get(8)?,
        staged_at: timestamp(row, 9)?,
        changed_at: timestamp(row, 10)?,
        in_state_for: Duration::from_millis(u64::try_from(row.try_get::<i64, _>(11)?).unwrap_or_default()),
    })
}

const NOTE: &str =
    concat!("-- plugin.note\nINSERT INTO laneway_audit (at, action, detail) VALUES (", now_ms!(), ", ?, json(?))");

async fn note(transaction: &mut Transaction, action: &str, detail: &serde_json::Value) -> Result<(), StoreError> {
    transaction.execute(sqlx::query(NOTE).bind(action).bind(detail.to_string())).await.map(drop)
}

/// Counts up what other processes look at.
async fn tell(transaction: &mut Transaction) -> Result<(), StoreError> {
    let query = "-- deployment.tell
        INSERT INTO laneway_setting AS s (name, value) VALUES ('deployments_changed', '1')
        ON CONFLICT (name) DO UPDATE SET value = CAST(s.value AS INTEGER) + 1";
    transaction.execute(sqlx::query(query)).await.map(drop)
}
