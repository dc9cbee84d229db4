//! What the operator lets a plugin reach, and what of it a plugin gets.

mod allowed;
mod http;

use std::collections::BTreeSet;

use laneway_core::{Name, TopicPattern};
use serde::{Deserialize, Serialize};

pub(crate) use allowed::Allowed;
pub use http::{HttpGrant, InvalidGrant};
pub(crate) use http::{Reach, Written, default_port};

/// All grants of one plugin. Nothing is granted by default, but for a handler's own state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grants {
    /// Where it may send HTTP requests.
    pub http: Vec<HttpGrant>,
    /// Topics that a handler may emit messages under.
    pub emit: Vec<TopicPattern>,
    /// Whether a handler may read and write the state of its subscription. Default true.
    pub state: bool,
    /// Secrets of the node that requests may carry, by name.
    pub secrets: BTreeSet<Name>,
    /// Whether it may read the clocks. A plugin that may send HTTP requests can measure time anyway, and so reads the
    /// monotonic one. Waiting for a while is granted to all.
    pub clocks: bool,
    /// Whether it may draw random numbers. A seed for hash tables is granted to all.
    pub random: bool,
}

impl Default for Grants {
    fn default() -> Self {
        Self {
            http: Vec::new(),
            emit: Vec::new(),
            state: true,
            secrets: BTreeSet::new(),
            clocks: false,
            random: false,
        }
    }
}
