//! Deployments that have not ended, read beside the process that may be running them.
//!
//! Who removes baselines asks: a deployment whose process is dead goes on with its own version, and must find it. It
//! takes no lock, so that a running carena is not disturbed, and must never write.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::store::StoreError;
use crate::paths::STORE_FILE;

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its id.
    pub deployment: String,
    /// The baseline as its fleet names it: an id, perhaps with a version, or a directory.
    pub named: String,
    /// The baseline's id and version, with a blank between.
    pub baseline: String,
}

/// All in a state directory's store, oldest first; those without a fleet cannot go on and are left out. None where there
/// is no store.
///
/// # Errors
/// [`StoreError::Newer`], or the database's.
pub fn unfinished(directory: &Path) -> Result<Vec<Unfinished>, StoreError> {
    let path = directory.join(STORE_FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    read(&path).map_err(|error| match error {
        StoreError::Database { source, .. } => StoreError::Database { action: "read", source },
        other => other,
    })
}

fn read(path: &Path) -> Result<Vec<Unfinished>, StoreError> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > super::schema::VERSION {
        return Err(StoreError::Newer { found });
    }
    // Older ones kept no fleet, or were never written to.
    if found < 2 {
        return Ok(Vec::new());
    }
    let mut select = connection.prepare(
        "SELECT id, json_extract(fleet, '$.baseline'), json_extract(summary, '$.baseline') FROM deployment
         WHERE ended IS NULL AND fleet IS NOT NULL ORDER BY id",
    )?;
    let row = |row: &rusqlite::Row<'_>| {
        Ok(Unfinished { deployment: row.get(0)?, named: row.get(1)?, baseline: row.get(2)? })
    };
    Ok(select.query_map([], row)?.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::event::Summary;
    use crate::deploy::store::Store;

    #[tokio::test]
    async fn what_has_not_ended_is_found_beside_its_process_and_after_it() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(unfinished(directory.path()).unwrap(), []);
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(unfinished(directory.path()).unwrap(), []);
        let summary = Summary {
            deployment: "x".parse().unwrap(),
            retry_of: None,
            started: "now".into(),
            ended: None,
            baseline: "demo 1".into(),
            manifest: None,
            signature: None,
            cancelled: false,
            nodes: Vec::new(),
        };
        store.begin(&summary, &toml::from_str("baseline = \"demo@1\"").unwrap()).await.unwrap();
        let one = Unfinished { deployment: "x".into(), named: "demo@1".into(), baseline: "demo 1".into() };
        assert_eq!(unfinished(directory.path()).unwrap(), [one]);
        store.end(&summary.deployment, "later").await.unwrap();
        drop(store);
        assert_eq!(unfinished(directory.path()).unwrap(), []);
    }
}
