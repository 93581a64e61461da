//! The store's schema, as the steps that led to it.
//!
//! A step that was shipped is never changed: the next change is the next step. Each runs in a transaction of its own
//! with the version it leads to, so that a store is always exactly at one version, whenever the power fails.

use rusqlite::Connection;

use super::store::StoreError;

/// From nothing to version 1, from 1 to 2, and so on; the version is SQLite's `user_version`.
const MIGRATIONS: [&str; 5] = [
    // Deployments, pinned host keys, the journal of undo values.
    "CREATE TABLE deployment (id TEXT PRIMARY KEY, started TEXT NOT NULL, ended TEXT, summary TEXT NOT NULL) STRICT;
    CREATE TABLE pin (address TEXT NOT NULL, port INTEGER NOT NULL, fingerprint TEXT NOT NULL, seen TEXT NOT NULL,
        PRIMARY KEY (address, port)) STRICT;
    CREATE TABLE journal (entry INTEGER PRIMARY KEY AUTOINCREMENT, deployment TEXT NOT NULL, node TEXT NOT NULL,
        undo TEXT NOT NULL, armed TEXT NOT NULL, undone TEXT) STRICT;
    CREATE INDEX journal_open ON journal (entry) WHERE undone IS NULL;",
    // The fleet of a deployment, without secrets, so that its failed nodes can be retried.
    "ALTER TABLE deployment ADD COLUMN fleet TEXT;",
    // What it takes to go on with a deployment after a crash, sealed: credentials, and for each node its engine.
    "CREATE TABLE sealed (deployment TEXT NOT NULL, what TEXT NOT NULL, sealed BLOB NOT NULL,
        PRIMARY KEY (deployment, what)) STRICT;",
    // A row for each node, so that a node's end does not write the whole fleet again.
    "CREATE TABLE node (deployment TEXT NOT NULL, number INTEGER NOT NULL, address TEXT NOT NULL, summary TEXT NOT NULL,
        PRIMARY KEY (deployment, number)) STRICT;
    INSERT INTO node (deployment, number, address, summary)
        SELECT deployment.id, row_number() OVER (PARTITION BY deployment.id ORDER BY one.id) - 1, one.key, one.value
        FROM deployment, json_each(deployment.summary, '$.nodes') AS one;
    UPDATE deployment SET summary = json_set(summary, '$.nodes', json('{}'));",
    // What an operator has cancelled of a deployment that has not ended.
    "CREATE TABLE cancel (deployment TEXT NOT NULL, what TEXT NOT NULL, PRIMARY KEY (deployment, what)) STRICT;
    INSERT INTO cancel (deployment, what) SELECT id, '\"all\"' FROM deployment
        WHERE ended IS NULL AND json_extract(summary, '$.cancelled');",
];

/// The version this program writes.
pub const VERSION: i64 = MIGRATIONS.len() as i64;

/// Brings a store of any earlier version, or an empty one, to [`VERSION`].
///
/// # Errors
/// [`StoreError::Newer`], or the database's.
pub fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if !(0..=VERSION).contains(&found) {
        return Err(StoreError::Newer { found });
    }
    for (version, step) in (1..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(connection: &Connection) -> Vec<String> {
        let mut select =
            connection.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").unwrap();
        select.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn every_earlier_version_becomes_this_one_and_keeps_its_rows() {
        let mut fresh = Connection::open_in_memory().unwrap();
        migrate(&mut fresh).unwrap();
        for version in 1..=VERSION {
            let mut old = Connection::open_in_memory().unwrap();
            for step in MIGRATIONS.iter().take(usize::try_from(version).unwrap()) {
                old.execute_batch(step).unwrap();
            }
            old.pragma_update(None, "user_version", version).unwrap();
            // From version 4 on the nodes have rows of their own.
            let nodes = r#""fd00::2":{"result":"done"},"fd00::1":{"result":"running"}"#;
            let summary = r#"{"cancelled":true,"nodes":{NODES}}"#;
            let summary = summary.replace("NODES", if version < 4 { nodes } else { "" });
            old.execute("INSERT INTO deployment (id, started, summary) VALUES ('a', 'b', ?1)", [summary])
                .unwrap();
            if version >= 4 {
                old.execute_batch(
                    r#"INSERT INTO node VALUES ('a', 0, 'fd00::2', '{"result":"done"}');
                    INSERT INTO node VALUES ('a', 1, 'fd00::1', '{"result":"running"}')"#,
                )
                .unwrap();
            }
            if version >= 5 {
                old.execute_batch(r#"INSERT INTO cancel VALUES ('a', '"all"')"#).unwrap();
            }
            old.execute_batch(
                "INSERT INTO journal (deployment, node, undo, armed) VALUES ('a', 'n', 'u', 't')",
            )
            .unwrap();
            migrate(&mut old).unwrap();
            assert_eq!(tables(&old), tables(&fresh), "from version {version}");
            for (table, expected) in [("deployment", 1), ("journal", 1), ("node", 2), ("cancel", 1)] {
                let rows: i64 =
                    old.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
                assert_eq!(rows, expected, "{table} from version {version}");
            }
            let one = |sql: &str| old.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
            let facts = one("SELECT summary FROM deployment");
            assert_eq!(facts, r#"{"cancelled":true,"nodes":{}}"#, "from version {version}");
            let second = one("SELECT address || ' ' || summary FROM node WHERE number = 1");
            assert_eq!(second, r#"fd00::1 {"result":"running"}"#, "from version {version}");
            assert_eq!(one("SELECT what FROM cancel"), "\"all\"", "from version {version}");
        }
    }

    #[test]
    fn a_newer_store_is_refused() {
        let mut newer = Connection::open_in_memory().unwrap();
        newer.pragma_update(None, "user_version", VERSION + 1).unwrap();
        assert!(matches!(migrate(&mut newer), Err(StoreError::Newer { found }) if found == VERSION + 1));
    }
}
