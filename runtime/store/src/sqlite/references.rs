//! Tables of applications whose foreign keys refer to ours, and hold rows that a cleanup would remove.
//!
//! SQLite follows foreign keys for each connection by itself, and ours do not: a key that no connection of the
//! application follows may be broken for long, and would then stop whatever writes. So a cleanup looks, and leaves all
//! that any foreign key refers to, whatever it says of deletes.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use laneway_core::StoreError;
use sqlx::Row;

use super::connection::Connections;

/// The foreign keys that refer to our tables.
#[derive(Debug, Default)]
pub(super) struct References {
    /// The version of the schema that they were read from; 0 if they were not.
    pub schema_version: i64,
    /// By the table that they refer to.
    by_table: BTreeMap<String, Vec<Reference>>,
}

/// A foreign key that holds the rows that it refers to.
#[derive(Debug)]
pub(super) struct Reference {
    /// What the operator is told.
    pub named: String,
    /// Whether a row of the application refers to row `r` of ours.
    condition: String,
}

impl References {
    /// Those that refer to a table.
    pub(super) fn to(&self, table: &str) -> &[Reference] {
        self.by_table.get(table).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Which of the references holds row `r`, as its place among them; NULL if none does.
pub(super) fn holder(references: &[Reference]) -> String {
    if references.is_empty() {
        return "NULL".to_owned();
    }
    let whens: Vec<String> = references
        .iter()
        .enumerate()
        .map(|(place, reference)| format!("WHEN {} THEN {place}", reference.condition))
        .collect();
    format!("CASE {} END", whens.join(" "))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Connections {
    /// The foreign keys as they were last read; the schema may have changed since.
    pub(super) fn known_references(&self) -> Arc<References> {
        self.references.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the foreign keys.
    pub(super) async fn read_references(&self) -> Result<Arc<References>, StoreError> {
        // A key that names no column means the primary key. One that names a column that is not there holds nothing.
        let query = "-- cleanup.references
            SELECT v.schema_version, lower(f.\"table\"), s.name, f.id, f.\"from\", p.name
            FROM pragma_schema_version v
            LEFT JOIN sqlite_schema s ON s.type = 'table' AND s.name NOT LIKE 'laneway\\_%' ESCAPE '\\'
            LEFT JOIN pragma_foreign_key_list(s.name) f
                ON lower(f.\"table\") IN ('laneway_message', 'laneway_marker', 'laneway_dead_letter')
            LEFT JOIN pragma_table_info(lower(f.\"table\")) p
                ON lower(p.name) = lower(f.\"to\") OR (f.\"to\" IS NULL AND p.pk = f.seq + 1)
            ORDER BY s.name, f.id, f.seq";
        let mut version = 0;
        let mut keys: BTreeMap<(String, String, i64), Vec<Option<String>>> = BTreeMap::new();
        let mut reader = self.reader().await?;
        reader
            .each(sqlx::query(query), |row| {
                version = row.try_get(0)?;
                let (Some(table), Some(child), Some(id)) = (
                    row.try_get::<Option<String>, _>(1)?,
                    row.try_get::<Option<String>, _>(2)?,
                    row.try_get::<Option<i64>, _>(3)?,
                ) else {
                    return Ok(());
                };
                let (from, to): (String, Option<String>) = (row.try_get(4)?, row.try_get(5)?);
                let equal = to.map(|to| format!("c.{} = r.{}", quoted(&from), quoted(&to)));
                keys.entry((table, child, id)).or_default().push(equal);
                Ok(())
            })
            .await?;
        let mut read = References { schema_version: version, ..References::default() };
        for ((table, child, _), columns) in keys {
            let Some(columns) = columns.into_iter().collect::<Option<Vec<String>>>() else { continue };
            let named = format!("a foreign key of table {} ({})", quoted(&child), columns.join(" and "));
            let named = named.replace("c.\"", "\"").replace("r.\"", "\"");
            let condition = format!("EXISTS (SELECT 1 FROM {} c WHERE {})", quoted(&child), columns.join(" AND "));
            read.by_table.entry(table).or_default().push(Reference { named, condition });
        }
        let read = Arc::new(read);
        *self.references.lock().unwrap_or_else(PoisonError::into_inner) = read.clone();
        Ok(read)
    }
}
