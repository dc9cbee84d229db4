//! Limits on what a guest may grow, and a note of what was refused.

use laneway_core::Reason;
use wasmtime::ResourceLimiter;

/// Core instances of one component; languages with dynamic linking have dozens.
pub(crate) const CORE_INSTANCES_MAX: usize = 200;
/// Memories of one component; nearly all have one, and those that are composed of several have one each.
pub(crate) const MEMORIES_MAX: usize = 4;
/// Tables of one component; nearly all have two.
pub(crate) const TABLES_MAX: usize = 16;

/// Counts memory and table elements over all memories and tables of a guest.
///
/// A refused growth is not an error: the guest is told, and may cope. Most do not and trap, and then the note says
/// why.
pub(crate) struct Meter {
    memory_bytes_max: usize,
    table_elements_max: usize,
    memory_bytes: usize,
    table_elements: usize,
    refused: Option<Refused>,
}

/// A growth that was refused.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refused {
    Memory { wanted: usize, max: usize },
    Table { wanted: usize, max: usize },
}

impl Refused {
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Memory { .. } => Reason::MEMORY_LIMIT,
            Self::Table { .. } => Reason::TABLE_LIMIT,
        }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory { wanted, max } => {
                write!(f, "the guest asked for {wanted} bytes of memory; it may have {max}")
            }
            Self::Table { wanted, max } => {
                write!(f, "the guest asked for {wanted} table elements; it may have {max}")
            }
        }
    }
}

impl Meter {
    pub(crate) fn new(memory_bytes_max: usize, table_elements_max: usize) -> Self {
        Self { memory_bytes_max, table_elements_max, memory_bytes: 0, table_elements: 0, refused: None }
    }

    pub(crate) fn refused(&self) -> Option<Refused> {
        self.refused
    }

    /// Size of all memories together. They never shrink.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Elements of all tables together. They never shrink either.
    pub(crate) fn table_elements(&self) -> usize {
        self.table_elements
    }

    /// Forgets refusals; what the guest holds stays counted.
    pub(crate) fn reset(&mut self) {
        self.refused = None;
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        let wanted = self.memory_bytes.saturating_add(desired - current);
        if wanted > self.memory_bytes_max {
            self.refused = Some(Refused::Memory { wanted, max: self.memory_bytes_max });
            return Ok(false);
        }
        self.memory_bytes = wanted;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        let wanted = self.table_elements.saturating_add(desired - current);
        if wanted > self.table_elements_max {
            self.refused = Some(Refused::Table { wanted, max: self.table_elements_max });
            return Ok(false);
        }
        self.table_elements = wanted;
        Ok(true)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}
