//! The nodes: processes that work in one database.

use crate::Name;

/// Hexadecimal digits that tell one process from all others.
const INSTANCE_DIGITS: usize = 12;

/// One process that works in a database. What it reports goes by its `id`, which is drawn anew at each start: two
/// processes that were given one name are two nodes all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name with random digits after it, which no other process has.
    pub id: Name,
    /// What its operator calls it.
    pub name: Name,
    /// Where it runs, in words for its operator.
    pub place: String,
}

impl Node {
    /// A process with a fresh id.
    #[must_use]
    pub fn draw(name: Name, place: String) -> Self {
        // The last digits of such an id are random.
        let random = uuid::Uuid::now_v7().simple().to_string();
        let digits = random.get(random.len() - INSTANCE_DIGITS..).unwrap_or(&random);
        Self { id: name.of_process(digits), name, place }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_an_id_of_its_own_that_is_a_name() {
        let long = Name::parse(&"n".repeat(200)).unwrap();
        for name in [Name::parse("a").unwrap(), long] {
            let (one, other) = (Node::draw(name.clone(), String::new()), Node::draw(name.clone(), String::new()));
            assert_ne!(one.id, other.id);
            assert_eq!(Name::parse(one.id.as_str()).unwrap(), one.id);
            assert!(one.id.as_str().starts_with(&name.as_str()[..name.as_str().len().min(180)]));
        }
    }
}
