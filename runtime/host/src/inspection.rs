//! What a component is, read from its outside: no code of it is compiled or run.

use laneway_core::{PluginDigest, SubscriptionKind};
use sha2::{Digest, Sha256};
use wasmparser::{Parser, Payload};

use crate::cache;
use crate::contract::{self, HANDLER, LIFECYCLE, PUBLISHER};
use crate::error::PluginError;

/// Largest component that is looked at, in bytes.
const BYTES_MAX: usize = 256 << 20;

/// What a component is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// SHA-256 of the component.
    pub digest: PluginDigest,
    /// What it can be run as.
    pub kind: SubscriptionKind,
    /// Version of the contract that it was built against.
    pub contract: String,
    /// What it imports.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
}

impl Inspection {
    /// Looks at a component.
    ///
    /// # Errors
    /// [`PluginError`] if the bytes are no component, or one that is neither a handler nor a publisher.
    pub fn of(component: &[u8]) -> Result<Self, PluginError> {
        contract::check_form(component, BYTES_MAX)?;
        let (imports, exports) = names(component).map_err(|error| PluginError::compile(error.to_string()))?;
        let has = |wanted: &str| exports.iter().any(|export| interface(export) == interface(wanted));
        let kind = match (has(LIFECYCLE), has(HANDLER), has(PUBLISHER)) {
            (true, true, _) => SubscriptionKind::Handler,
            (true, false, true) => SubscriptionKind::Publisher,
            _ => {
                let exports: Vec<String> =
                    exports.iter().map(|name| format!("`{}`", name.escape_debug())).collect();
                let exports = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
                let (kind, needs) = (SubscriptionKind::Handler, vec![LIFECYCLE, HANDLER]);
                return Err(PluginError::WrongWorld { kind, needs, exports });
            }
        };
        let ours = exports.iter().find(|export| interface(export) == interface(LIFECYCLE));
        let contract = ours.and_then(|export| export.split_once('@')).map_or("unknown", |(_, version)| version);
        Ok(Self {
            digest: PluginDigest::from_hex(&cache::hex(&Sha256::digest(component))),
            kind,
            contract: contract.to_owned(),
            imports,
            exports,
        })
    }
}

/// A name without its version.
fn interface(name: &str) -> &str {
    name.split_once('@').map_or(name, |(interface, _)| interface)
}

/// Imports and exports of the outermost component.
fn names(component: &[u8]) -> wasmparser::Result<(Vec<String>, Vec<String>)> {
    let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0_usize);
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            // The outermost one ends too.
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    exports.push(export?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok((imports, exports))
}
