//! Does a component fit: its form, its imports, its exports.

use laneway_core::SubscriptionKind;
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::PluginError;

pub(crate) const LIFECYCLE: &str = "laneway:plugin/lifecycle@0.1.0";
pub(crate) const HANDLER: &str = "laneway:plugin/handler@0.1.0";
pub(crate) const PUBLISHER: &str = "laneway:plugin/publisher@0.1.0";

/// What every binary WebAssembly file begins with.
const MAGIC: &[u8] = b"\0asm";
/// Layer of a component; that of a core module is 0.
const COMPONENT_LAYER: [u8; 2] = [1, 0];

/// Checks that the bytes are those of a component, by their first eight.
pub(crate) fn check_form(bytes: &[u8], bytes_max: usize) -> Result<(), PluginError> {
    if bytes.len() > bytes_max {
        return Err(PluginError::TooLarge { bytes: bytes.len(), max: bytes_max });
    }
    match bytes.get(..8) {
        Some(head) if head.starts_with(MAGIC) && head[6..] == COMPONENT_LAYER => Ok(()),
        Some(head) if head.starts_with(MAGIC) => Err(PluginError::CoreModule),
        _ => Err(PluginError::NotWebAssembly { bytes: bytes.len() }),
    }
}

/// Checks that a component exports what its kind needs and imports only what it may have. Where that is not HTTP, the
/// error is what would let it.
pub(crate) fn check(
    engine: &Engine,
    component: &Component,
    kind: SubscriptionKind,
    http: Result<(), &'static str>,
) -> Result<(), PluginError> {
    let needs = match kind {
        SubscriptionKind::Handler => vec![LIFECYCLE, HANDLER],
        SubscriptionKind::Publisher => vec![LIFECYCLE, PUBLISHER],
    };
    let declared = component.component_type();
    if needs.iter().any(|name| component.get_export_index(None, name).is_none()) {
        let exports: Vec<String> = declared.exports(engine).map(|(name, _)| format!("`{name}`")).collect();
        let exports = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
        return Err(PluginError::WrongWorld { kind, needs, exports });
    }
    for (import, _) in declared.imports(engine) {
        check_import(import, kind, http)?;
    }
    Ok(())
}

/// Whether a component can send HTTP requests at all.
pub(crate) fn imports_http(engine: &Engine, component: &Component) -> bool {
    component.component_type().imports(engine).any(|(import, _)| import.starts_with("wasi:http/"))
}

fn check_import(import: &str, kind: SubscriptionKind, http: Result<(), &'static str>) -> Result<(), PluginError> {
    let (path, version) = import.split_once('@').unwrap_or((import, ""));
    let (package, interface) = path.split_once('/').unwrap_or((path, ""));
    let version_of = |speaks: &'static str, track: &str| {
        if version.starts_with(track) {
            Ok(())
        } else {
            Err(PluginError::Version { import: import.to_owned(), speaks })
        }
    };
    let unknown = || Err(PluginError::UnknownImport { import: import.to_owned() });
    match (package, interface) {
        ("laneway:plugin", "effects") if kind != SubscriptionKind::Handler => {
            Err(PluginError::HandlersOnly { import: import.to_owned() })
        }
        ("laneway:plugin", "types" | "log" | "config" | "effects") => version_of("0.1.0", "0.1."),
        ("wasi:cli" | "wasi:io" | "wasi:clocks" | "wasi:random" | "wasi:filesystem" | "wasi:sockets", _) => {
            version_of("0.2", "0.2.")
        }
        ("wasi:http", "types" | "outgoing-handler") => match http {
            Ok(()) => version_of("0.2", "0.2."),
            Err(grant) => Err(PluginError::NotGranted { import: import.to_owned(), grant }),
        },
        _ => unknown(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(import: &str, kind: SubscriptionKind, http: bool) -> String {
        let http = if http { Ok(()) } else { Err("grants.http = [\"https://host\"]") };
        check_import(import, kind, http).map_or_else(|error| error.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn imports_are_allowed_by_interface_version_kind_and_grant() {
        use SubscriptionKind::{Handler, Publisher};
        for (import, kind, http, wants) in [
            ("laneway:plugin/log@0.1.0", Publisher, false, "fine"),
            ("laneway:plugin/effects@0.1.0", Handler, false, "fine"),
            ("laneway:plugin/effects@0.1.0", Publisher, false, "publishers have not"),
            ("laneway:plugin/log@0.2.0", Handler, false, "speaks version 0.1.0"),
            ("laneway:plugin/secrets@0.1.0", Handler, false, "does not offer"),
            ("wasi:cli/environment@0.2.3", Handler, false, "fine"),
            ("wasi:clocks/monotonic-clock@0.3.0", Handler, false, "speaks version 0.2"),
            ("wasi:http/outgoing-handler@0.2.0", Handler, false, "grants.http = [\"https://host\"]"),
            ("wasi:http/types@0.2.0", Handler, false, "`wasi:http/types@0.2.0`"),
            ("wasi:http/outgoing-handler@0.2.0", Publisher, true, "fine"),
            ("wasi:http/incoming-handler@0.2.0", Publisher, true, "does not offer"),
            ("wasi:nn/inference", Handler, true, "does not offer"),
            ("evil:host/run", Handler, true, "does not offer"),
            ("run", Handler, true, "`run`"),
        ] {
            let found = verdict(import, kind, http);
            assert!(found.contains(wants), "{import}: {found}");
        }
    }

    #[test]
    fn the_imports_of_each_released_version_are_accepted() {
        let frozen = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit/frozen");
        let mut imports = 0;
        for version in std::fs::read_dir(frozen).unwrap() {
            let mut resolve = wit_parser::Resolve::default();
            let (package, _) = resolve.push_dir(version.unwrap().path()).unwrap();
            for (world, kind) in
                [("handler-plugin", SubscriptionKind::Handler), ("publisher-plugin", SubscriptionKind::Publisher)]
            {
                let world = &resolve.worlds[resolve.packages[package].worlds[world]];
                for import in world.imports.keys() {
                    let import = resolve.name_world_key(import);
                    assert_eq!(verdict(&import, kind, false), "fine", "{import}");
                    imports += 1;
                }
            }
        }
        assert!(imports >= 5, "{imports} imports");
    }

    #[test]
    fn the_form_is_told_by_the_first_bytes() {
        assert!(matches!(check_form(b"hello world", 100), Err(PluginError::NotWebAssembly { bytes: 11 })));
        assert!(matches!(check_form(b"", 100), Err(PluginError::NotWebAssembly { .. })));
        assert!(matches!(check_form(b"\0asm\x01\0\0\0", 100), Err(PluginError::CoreModule)));
        assert!(check_form(b"\0asm\x0d\0\x01\0", 100).is_ok());
        assert!(matches!(check_form(&[0; 101], 100), Err(PluginError::TooLarge { .. })));
    }
}
