//! The store: one SQLite database, durable before anything is acknowledged.
//!
//! One thread owns the connection. It takes every change that waits, commits them together (WAL,
//! synchronous=FULL: one flush for the journal appends of many nodes), and only then answers. Here are the journal,
//! pinned host keys and what is sealed; deployments are in `records`. It must never hold a secret.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use rusqlite::{Connection, OptionalExtension as _, Savepoint, params};
use tokio::sync::oneshot;

use crate::access::undo::{EntryId, Undo};
use crate::error::Hinted;
use crate::fleet::Node;
use crate::wire::id::DeploymentId;

/// Most changes of one commit.
const BATCH_MAX: usize = 256;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state directory cannot be made or locked.
    #[error("state directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process uses the state directory.
    #[error("state directory {} is in use by another carena", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Written by a newer version.
    #[error("the store has schema {found}, this version knows up to {}", super::schema::VERSION)]
    Newer {
        /// Its version.
        found: i64,
    },
    /// The database's own refusal: a full disk, an input or output error.
    #[error("the store could not be {action}")]
    Database {
        /// "read" or "written".
        action: &'static str,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A record that cannot be understood.
    #[error("a record of the store is not understood")]
    Record(#[source] serde_json::Error),
    /// The commit failed.
    #[error("the store could not be written: {why}")]
    Commit {
        /// What SQLite says.
        why: String,
    },
    /// The store's thread has ended.
    #[error("the store is closed")]
    Closed,
}

impl Hinted for StoreError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Directory { .. } => "name a writable directory with --state".into(),
            Self::InUse { .. } => "wait for it to end, or name another directory with --state".into(),
            Self::Newer { .. } => "use the newer carena for this state directory".into(),
            Self::Database { .. } | Self::Commit { .. } => {
                "check the disk's free space and health; nothing was begun on a node".into()
            }
            Self::Record(_) | Self::Closed => return None,
        })
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(source: rusqlite::Error) -> Self {
        Self::Database { action: "written", source }
    }
}

/// A journalled change that was not taken back yet.
#[derive(Debug, Clone)]
pub struct Outstanding {
    /// Its number.
    pub entry: EntryId,
    /// Whose.
    pub deployment: DeploymentId,
    /// Where, and how it is reached.
    pub node: Node,
    /// What.
    pub undo: Undo,
}

type Acknowledge = Box<dyn FnOnce(Result<(), String>) + Send>;
/// Also says whether it went well; if not, nothing of it is kept.
type Job = Box<dyn FnOnce(&mut Savepoint<'_>) -> (bool, Acknowledge) + Send>;

/// The store. Cloning shares it.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    // Held for its flock: two processes that sweep each other's running deployment would break the promise.
    _lock: std::sync::Arc<Option<nix::fcntl::Flock<std::fs::File>>>,
    #[cfg(test)]
    fuse: Option<std::sync::Arc<super::crash::Fuse>>,
}

impl Store {
    /// Opens or makes the store in `directory`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        let failed = |source| StoreError::Directory { path: directory.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join("lock"));
        let lock =
            nix::fcntl::Flock::lock(file.map_err(failed)?, nix::fcntl::FlockArg::LockExclusiveNonblock)
                .map_err(|_| StoreError::InUse { path: directory.to_owned() })?;
        let connection = Connection::open(directory.join(crate::paths::STORE_FILE))?;
        Self::start(connection, Some(lock))
    }

    /// A store that ends with the process, for a box without a disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::start(Connection::open_in_memory()?, None)
    }

    fn start(
        mut connection: Connection,
        lock: Option<nix::fcntl::Flock<std::fs::File>>,
    ) -> Result<Self, StoreError> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // On the appliance nothing may be written beside the state directory.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        super::schema::migrate(&mut connection)?;
        let (jobs, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || work(connection, &queue))
            .map_err(|source| StoreError::Directory { path: "thread".into(), source })?;
        Ok(Self {
            jobs,
            _lock: std::sync::Arc::new(lock),
            #[cfg(test)]
            fuse: None,
        })
    }

    /// The same store, used by a process that ends where `fuse` says.
    #[cfg(test)]
    pub(super) fn fused(self, fuse: &std::sync::Arc<super::crash::Fuse>) -> Self {
        Self { fuse: Some(fuse.clone()), ..self }
    }

    /// Has the store's thread do this; what it wrote is on the disk when this returns, or nothing of it is.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Savepoint<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |savepoint| {
            let result = job(savepoint);
            let went_well = result.is_ok();
            let acknowledge = move |committed: Result<(), String>| {
                let result = committed.map_err(|why| StoreError::Commit { why }).and(result);
                let _ = answer.send(result);
            };
            (went_well, Box::new(acknowledge))
        });
        #[cfg(test)]
        if let Some(fuse) = &self.fuse {
            fuse.pass("the store is asked").await;
            self.jobs.send(job).map_err(|_| StoreError::Closed)?;
            return fuse.answer(answered).await.map_err(|_| StoreError::Closed)?;
        }
        self.jobs.send(job).map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Keeps an undo value; it is on the disk when this returns.
    ///
    /// # Errors
    /// [`StoreError`]; nothing may then be changed on the node.
    pub async fn arm(
        &self,
        deployment: &DeploymentId,
        node: &Node,
        undo: &Undo,
    ) -> Result<EntryId, StoreError> {
        let row = (deployment.to_string(), json(node)?, json(undo)?, crate::clock::now_rfc3339());
        self.run(move |savepoint| {
            savepoint
                .prepare_cached(
                    "INSERT INTO journal (deployment, node, undo, armed) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![row.0, row.1, row.2, row.3])?;
            Ok(savepoint.last_insert_rowid())
        })
        .await
    }

    /// Marks changes as taken back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn undone(&self, entries: Vec<EntryId>) -> Result<(), StoreError> {
        self.run(move |savepoint| {
            let now = crate::clock::now_rfc3339();
            let mut update = savepoint.prepare_cached("UPDATE journal SET undone = ?2 WHERE entry = ?1")?;
            entries.iter().try_for_each(|entry| update.execute(params![entry, now]).map(drop))?;
            Ok(())
        })
        .await
    }

    /// Every change that was not taken back, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn outstanding(&self) -> Result<Vec<Outstanding>, StoreError> {
        self.run(|savepoint| {
            let mut select = savepoint.prepare_cached(
                "SELECT entry, deployment, node, undo FROM journal WHERE undone IS NULL ORDER BY entry",
            )?;
            let rows = select.query_map([], |row| {
                Ok((
                    row.get::<_, i64>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, String>(3)?,
                ))
            })?;
            rows.map(|row| {
                let (entry, deployment, node, undo) = row?;
                let deployment = serde_json::from_value(deployment.into()).map_err(StoreError::Record)?;
                let node = serde_json::from_str(&node).map_err(StoreError::Record)?;
                let undo = serde_json::from_str(&undo).map_err(StoreError::Record)?;
                Ok(Outstanding { entry, deployment, node, undo })
            })
            .collect()
        })
        .await
    }

    /// The host key pinned for a node, if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn pin(&self, address: &str, port: u16) -> Result<Option<String>, StoreError> {
        let address = address.to_owned();
        self.run(move |savepoint| {
            let mut select =
                savepoint.prepare_cached("SELECT fingerprint FROM pin WHERE address = ?1 AND port = ?2")?;
            Ok(select.query_row(params![address, port], |row| row.get(0)).optional()?)
        })
        .await
    }

    /// Pins a host key at its first use.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_pin(&self, address: &str, port: u16, fingerprint: &str) -> Result<(), StoreError> {
        let (address, fingerprint) = (address.to_owned(), fingerprint.to_owned());
        self.run(move |savepoint| {
            savepoint
                .prepare_cached(
                    "INSERT OR IGNORE INTO pin (address, port, fingerprint, seen) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![address, port, fingerprint, crate::clock::now_rfc3339()])?;
            Ok(())
        })
        .await
    }

    /// Keeps something of a deployment that was sealed; it replaces what was kept under this name before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keep_sealed(
        &self,
        deployment: &DeploymentId,
        what: String,
        sealed: Vec<u8>,
    ) -> Result<(), StoreError> {
        let deployment = deployment.to_string();
        self.run(move |savepoint| {
            savepoint
                .prepare_cached(
                    "INSERT OR REPLACE INTO sealed (deployment, what, sealed) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![deployment, what, sealed])?;
            Ok(())
        })
        .await
    }

    /// The names under which something of a deployment is kept sealed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sealed_names(&self, deployment: &DeploymentId) -> Result<Vec<String>, StoreError> {
        let deployment = deployment.to_string();
        self.run(move |savepoint| {
            let mut select = savepoint.prepare_cached("SELECT what FROM sealed WHERE deployment = ?1")?;
            let rows = select.query_map([deployment], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// What was kept sealed under a name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sealed(
        &self,
        deployment: &DeploymentId,
        what: String,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let deployment = deployment.to_string();
        self.run(move |savepoint| {
            let mut select =
                savepoint.prepare_cached("SELECT sealed FROM sealed WHERE deployment = ?1 AND what = ?2")?;
            Ok(select.query_row(params![deployment, what], |row| row.get(0)).optional()?)
        })
        .await
    }
}

pub(super) fn json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(StoreError::Record)
}

/// The store's thread: everything that waits goes into one transaction.
fn work(mut connection: Connection, queue: &mpsc::Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        let mut waiting = vec![first];
        waiting.extend(queue.try_iter().take(BATCH_MAX - 1));
        let mut acknowledgements = Vec::with_capacity(waiting.len());
        let committed = connection.transaction().and_then(|mut transaction| {
            for job in waiting {
                // One change's failure must not take the others with it.
                let mut savepoint = transaction.savepoint()?;
                let (went_well, acknowledge) = job(&mut savepoint);
                acknowledgements.push(acknowledge);
                if went_well {
                    savepoint.commit()?;
                }
            }
            transaction.commit()
        });
        let committed = committed.map_err(|error| error.to_string());
        for acknowledge in acknowledgements {
            acknowledge(committed.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::undo::EngineFiles;

    fn node() -> Node {
        toml::from_str("address = \"fd00::1\"\nuser = \"root\"").unwrap()
    }

    #[tokio::test]
    async fn an_armed_undo_survives_the_process_and_a_second_process_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let undo = Undo::from(EngineFiles { directory: "/tmp/carena-x".into() });
        let entry = store.arm(&"x".parse().unwrap(), &node(), &undo).await.unwrap();
        assert!(matches!(Store::open(directory.path()), Err(StoreError::InUse { .. })));
        drop(store);
        let store = Store::open(directory.path()).unwrap();
        let outstanding = store.outstanding().await.unwrap();
        assert_eq!((outstanding[0].entry, &outstanding[0].undo), (entry, &undo));
        store.undone(vec![entry]).await.unwrap();
        assert!(store.outstanding().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_host_key_is_pinned_once() {
        let store = Store::in_memory().unwrap();
        store.set_pin("fd00::1", 22, "SHA256:a").await.unwrap();
        store.set_pin("fd00::1", 22, "SHA256:b").await.unwrap();
        assert_eq!(store.pin("fd00::1", 22).await.unwrap().as_deref(), Some("SHA256:a"));
        assert_eq!(store.pin("fd00::1", 2222).await.unwrap(), None);
    }
}
