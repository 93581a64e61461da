//! Deployments in the store: what was wanted, what each node came to, what was cancelled.
//!
//! A deployment is one row with its facts and one row for each of its nodes, so a node's end writes one small row. It
//! must never hold a secret: the fleet is kept without them.

use rusqlite::{OptionalExtension as _, Savepoint, params};

use crate::fleet::Fleet;
use crate::wire::id::DeploymentId;

use super::cancel::{Cancel, Cancels};
use super::event::{NodeSummary, Summary};
use super::store::{Store, StoreError, json};

/// A deployment's row: its facts, its end, its fleet if that was kept, as they are stored.
type Row = (String, Option<String>, Option<String>);

/// A deployment as it is read: how it stands, and its fleet, if that was kept.
pub type Kept = (Summary, Option<Fleet>);

impl Store {
    /// Writes a deployment that begins, with what it takes to retry it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin(&self, summary: &Summary, fleet: &Fleet) -> Result<(), StoreError> {
        let mut facts = serde_json::to_value(summary).map_err(StoreError::Record)?;
        if let Some(nodes) = facts.get_mut("nodes") {
            *nodes = serde_json::json!({});
        }
        let row = (summary.deployment.to_string(), summary.started.clone(), facts.to_string(), json(fleet)?);
        let node = |(address, node): &(String, NodeSummary)| Ok((address.clone(), json(node)?));
        let nodes = summary.nodes.iter().map(node).collect::<Result<Vec<_>, StoreError>>()?;
        self.run(move |savepoint| {
            savepoint
                .prepare_cached(
                    "INSERT INTO deployment (id, started, summary, fleet) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![row.0, row.1, row.2, row.3])?;
            let mut insert = savepoint.prepare_cached(
                "INSERT INTO node (deployment, number, address, summary) VALUES (?1, ?2, ?3, ?4)",
            )?;
            for (number, (address, node)) in (0_i64..).zip(&nodes) {
                insert.execute(params![row.0, number, address, node])?;
            }
            Ok(())
        })
        .await
    }

    /// Writes how nodes stand, each by its number in the fleet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn save_nodes(
        &self,
        deployment: &DeploymentId,
        nodes: &[(usize, NodeSummary)],
    ) -> Result<(), StoreError> {
        let id = deployment.to_string();
        let row = |(number, node): &(usize, NodeSummary)| Ok((as_number(*number), json(node)?));
        let rows = nodes.iter().map(row).collect::<Result<Vec<_>, StoreError>>()?;
        self.run(move |savepoint| {
            let mut update = savepoint
                .prepare_cached("UPDATE node SET summary = ?3 WHERE deployment = ?1 AND number = ?2")?;
            rows.iter().try_for_each(|(number, node)| update.execute(params![id, number, node]).map(drop))?;
            Ok(())
        })
        .await
    }

    /// Writes that a deployment has ended. Its engines are gone, and so are their keys and its credentials; nothing is
    /// left to be cancelled.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end(&self, deployment: &DeploymentId, ended: &str) -> Result<(), StoreError> {
        let (id, ended) = (deployment.to_string(), ended.to_owned());
        self.run(move |savepoint| {
            savepoint
                .prepare_cached("UPDATE deployment SET ended = ?2 WHERE id = ?1")?
                .execute(params![id, ended])?;
            savepoint.prepare_cached("DELETE FROM sealed WHERE deployment = ?1")?.execute([&id])?;
            savepoint.prepare_cached("DELETE FROM cancel WHERE deployment = ?1")?.execute([&id])?;
            Ok(())
        })
        .await
    }

    /// Writes what an operator has cancelled; false when there is no such deployment that has not ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cancel(&self, deployment: &DeploymentId, what: &Cancel) -> Result<bool, StoreError> {
        let row = (deployment.to_string(), json(what)?);
        let all = *what == Cancel::All;
        self.run(move |savepoint| {
            if all {
                savepoint
                    .prepare_cached(
                        "UPDATE deployment SET summary = json_set(summary, '$.cancelled', json('true'))
                         WHERE id = ?1 AND ended IS NULL",
                    )?
                    .execute([&row.0])?;
            }
            savepoint
                .prepare_cached(
                    "INSERT OR IGNORE INTO cancel (deployment, what)
                     SELECT id, ?2 FROM deployment WHERE id = ?1 AND ended IS NULL",
                )?
                .execute(params![row.0, row.1])?;
            let running = "SELECT EXISTS (SELECT 1 FROM deployment WHERE id = ?1 AND ended IS NULL)";
            Ok(savepoint.prepare_cached(running)?.query_row([&row.0], |row| row.get(0))?)
        })
        .await
    }

    /// What was cancelled of a deployment that has not ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cancels(&self, deployment: &DeploymentId) -> Result<Cancels, StoreError> {
        let id = deployment.to_string();
        let rows = self
            .run(move |savepoint| {
                let mut select = savepoint.prepare_cached("SELECT what FROM cancel WHERE deployment = ?1")?;
                let rows = select.query_map([id], |row| row.get(0))?;
                Ok(rows.collect::<Result<Vec<String>, _>>()?)
            })
            .await?;
        let read = |row: String| serde_json::from_str::<Cancel>(&row).map_err(StoreError::Record);
        rows.into_iter().map(read).collect()
    }

    /// Every deployment that has not ended, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unfinished(&self) -> Result<Vec<Kept>, StoreError> {
        let rows = self.run(|savepoint| {
            let mut select = savepoint.prepare_cached(
                "SELECT summary, ended, fleet, id FROM deployment WHERE ended IS NULL ORDER BY id",
            )?;
            let row = |row: &rusqlite::Row<'_>| {
                Ok(((row.get(0)?, row.get(1)?, row.get(2)?), row.get::<_, String>(3)?))
            };
            let rows = select.query_map([], row)?.collect::<Result<Vec<(Row, String)>, _>>()?;
            rows.into_iter().map(|(row, id)| Ok((row, nodes(savepoint, &id)?))).collect::<Result<Vec<_>, _>>()
        });
        rows.await?.into_iter().map(|(row, nodes)| kept(row, nodes)).collect()
    }

    /// A deployment of this or an earlier run.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(&self, id: &DeploymentId) -> Result<Option<Kept>, StoreError> {
        let id = id.to_string();
        let row = self.run(move |savepoint| {
            let mut select =
                savepoint.prepare_cached("SELECT summary, ended, fleet FROM deployment WHERE id = ?1")?;
            let row = select.query_row([&id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
            row.optional()?.map(|row| Ok((row, nodes(savepoint, &id)?))).transpose()
        });
        row.await?.map(|(row, nodes)| kept(row, nodes)).transpose()
    }
}

/// A node's number as SQLite has numbers.
fn as_number(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

/// A deployment's nodes as they are stored, in the fleet's order.
fn nodes(savepoint: &Savepoint<'_>, id: &str) -> Result<Vec<(String, String)>, StoreError> {
    let mut select = savepoint
        .prepare_cached("SELECT address, summary FROM node WHERE deployment = ?1 ORDER BY number")?;
    let rows = select.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn kept((facts, ended, fleet): Row, nodes: Vec<(String, String)>) -> Result<Kept, StoreError> {
    let read = || -> Result<Kept, serde_json::Error> {
        let summary: Summary = serde_json::from_str(&facts)?;
        let node = |(address, node): (String, String)| Ok((address, serde_json::from_str(&node)?));
        let nodes = nodes.into_iter().map(node).collect::<Result<_, serde_json::Error>>()?;
        let fleet = fleet.map(|fleet| serde_json::from_str(&fleet)).transpose()?;
        Ok((Summary { ended, nodes, ..summary }, fleet))
    };
    read().map_err(StoreError::Record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::event::NodeResult;

    fn fleet(text: &str) -> Fleet {
        toml::from_str(text).unwrap()
    }

    fn summary(nodes: usize) -> Summary {
        let node = |k| (format!("fd00::{k:x}"), NodeSummary::new(NodeResult::Running));
        Summary {
            deployment: "x".parse().unwrap(),
            retry_of: None,
            started: "now".into(),
            ended: None,
            baseline: "demo 1".into(),
            manifest: None,
            signature: None,
            cancelled: false,
            nodes: (0..nodes).map(node).collect(),
        }
    }

    #[tokio::test]
    async fn a_deployment_is_kept_with_its_fleet_and_without_its_passwords() {
        let store = Store::in_memory().unwrap();
        let mut fleet = fleet(
            "baseline = \"demo\"\n[options]\nwaves = [1]\n[[node]]\naddress = \"fd00::1\"\nuser = \"root\"\n",
        );
        fleet.nodes[0].password = Some(crate::secret::Secret::new("hunter2".into()));
        let mut summary = summary(3);
        store.begin(&summary, &fleet).await.unwrap();
        store.cancel(&summary.deployment, &Cancel::All).await.unwrap();
        summary.cancelled = true;
        let done = NodeSummary { path: Some("direct".into()), ..NodeSummary::new(NodeResult::Done) };
        store.save_nodes(&summary.deployment, &[(1, done.clone())]).await.unwrap();
        summary.nodes[1].1 = done;
        assert_eq!(store.unfinished().await.unwrap()[0].0, summary);
        summary.ended = Some("later".into());
        store.end(&summary.deployment, "later").await.unwrap();
        assert!(store.unfinished().await.unwrap().is_empty());
        let (kept, fleet) = store.load(&summary.deployment).await.unwrap().unwrap();
        assert_eq!(kept, summary);
        let fleet = fleet.unwrap();
        assert_eq!((fleet.nodes[0].host(), fleet.options.waves.len()), ("fd00::1", 1));
        assert!(fleet.nodes[0].password.is_none());
        assert!(store.load(&"y".parse().unwrap()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn cancels_of_every_kind_outlast_the_process_until_the_deployment_ends() {
        let directory = tempfile::tempdir().unwrap();
        let (summary, fleet) = (summary(3), fleet("baseline = \"demo\""));
        let (id, bios) = (&summary.deployment, "bios".parse().unwrap());
        let store = Store::open(directory.path()).unwrap();
        store.begin(&summary, &fleet).await.unwrap();
        let cancels = [Cancel::Node(1), Cancel::Component { node: Some(2), id: bios }];
        for cancel in cancels.iter().chain(&cancels) {
            store.cancel(id, cancel).await.unwrap();
        }
        drop(store);
        let store = Store::open(directory.path()).unwrap();
        let found = store.cancels(id).await.unwrap();
        let bios = "bios".parse().unwrap();
        assert!(found.node(1) && !found.node(2) && !found.all());
        assert!(found.component(2, &bios) && !found.component(1, &bios));
        store.cancel(id, &Cancel::All).await.unwrap();
        assert!(store.cancels(id).await.unwrap().all());
        store.end(id, "later").await.unwrap();
        store.cancel(id, &Cancel::Node(0)).await.unwrap();
        assert!(!store.cancels(id).await.unwrap().node(0));
    }

    /// Bytes that one node's end writes, with so many nodes in the fleet.
    async fn bytes_of_an_end(nodes: usize) -> u64 {
        const ENDS: usize = 20;
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let summary = summary(nodes);
        store.begin(&summary, &fleet("baseline = \"demo\"")).await.unwrap();
        let log = directory.path().join(format!("{}-wal", crate::paths::STORE_FILE));
        let bytes = || std::fs::metadata(&log).unwrap().len();
        let before = bytes();
        for index in 0..ENDS {
            let done = NodeSummary::new(NodeResult::Done);
            store.save_nodes(&summary.deployment, &[(index * nodes / ENDS, done)]).await.unwrap();
        }
        (bytes() - before) / ENDS as u64
    }

    #[tokio::test]
    async fn a_nodes_end_writes_as_much_in_a_large_fleet_as_in_a_small_one() {
        let (small, large) = (bytes_of_an_end(20).await, bytes_of_an_end(2_000).await);
        assert!(small > 0 && large <= 2 * small, "{small} bytes of 20 nodes, {large} of 2,000");
    }
}
