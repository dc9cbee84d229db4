//! Tables of applications whose foreign keys refer to ours, and hold rows that a cleanup would remove.

use sqlx::Row as _;

use super::connection::{Outcome, Session};

/// A foreign key that lets no row go that it refers to.
#[derive(Debug, Clone)]
pub(super) struct Reference {
    /// What the operator is told.
    pub named: String,
    /// Whether a row of the application refers to row `r` of ours.
    pub condition: String,
}

/// Whether any foreign key refers to one of our tables, which stands for `$table`: an index alone is read.
macro_rules! is_referenced {
    ($table:literal) => {
        concat!(
            "EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = '",
            $table,
            "'::regclass AND t.tgconstrrelid <> 0)"
        )
    };
}
pub(super) use is_referenced;

/// The foreign keys that refer to one of our tables, and that the database would not follow by itself (ON DELETE
/// CASCADE and the like). Left out are those of tables that this node may not read: what they hold shows when it is
/// removed.
pub(super) async fn references(session: &mut impl Session, table: &str) -> Outcome<Vec<Reference>> {
    let query = "-- cleanup.references
        SELECT format('foreign key \"%s\" of table %I.%I', c.conname, n.nspname, t.relname),
            format('EXISTS (SELECT FROM %s%I.%I c WHERE %s)', CASE WHEN t.relkind = 'p' THEN '' ELSE 'ONLY ' END,
                n.nspname, t.relname, string_agg(format('c.%I = r.%I', child.attname, parent.attname)
                    || CASE WHEN child.attcollation <> 0 THEN (SELECT format(' COLLATE %I.%I', s.nspname, l.collname)
                        FROM pg_collation l JOIN pg_namespace s ON s.oid = l.collnamespace WHERE l.oid = child.attcollation)
                    ELSE '' END, ' AND '))
        FROM pg_constraint c
        JOIN pg_class t ON t.oid = c.conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
        CROSS JOIN LATERAL unnest(c.conkey, c.confkey) k(child, parent)
        JOIN pg_attribute child ON child.attrelid = c.conrelid AND child.attnum = k.child
        JOIN pg_attribute parent ON parent.attrelid = c.confrelid AND parent.attnum = k.parent
        WHERE c.contype = 'f' AND c.confrelid = $1::text::regclass AND c.confdeltype IN ('a', 'r') AND c.conparentid = 0
        GROUP BY c.oid, c.conname, c.conkey, n.nspname, n.oid, t.relname, t.relkind, t.oid
        HAVING has_schema_privilege(n.oid, 'USAGE') AND NOT row_security_active(t.oid)
            AND bool_and(has_column_privilege(t.oid, k.child, 'SELECT'))
        ORDER BY c.conname";
    let rows = session.all(sqlx::query(query).bind(table)).await?;
    rows.iter().map(|row| Ok(Reference { named: row.try_get(0)?, condition: row.try_get(1)? })).collect()
}

/// Which of the references holds row `r`, as its place among them; NULL if none does.
pub(super) fn holder(references: &[Reference]) -> String {
    if references.is_empty() {
        return "NULL::integer".to_owned();
    }
    let whens: Vec<String> = references
        .iter()
        .enumerate()
        .map(|(place, reference)| format!("WHEN {} THEN {place}", reference.condition))
        .collect();
    format!("CASE {} END", whens.join(" "))
}
