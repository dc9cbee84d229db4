//! What was built against a released version of the contract keeps running, and the contract only adds to it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use laneway_core::{ErrorText, Failure, Invoker, Reason, SubscriptionKind};
use laneway_host::{PluginError, PluginSpec};
use wit_parser::{FunctionKind, Handle, Resolve, Type, TypeDefKind, WorldItem};

use crate::support::{call, host, run, spec};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Versions of the contract that were released.
fn frozen() -> Vec<String> {
    let found = fs::read_dir(root().join("wit/frozen")).unwrap();
    let mut versions: Vec<String> = found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    versions.sort();
    assert!(!versions.is_empty());
    versions
}

fn data(version: &str, file: &str) -> PathBuf {
    root().join("tests/data/compat").join(version).join(file)
}

fn component(version: &str, kind: SubscriptionKind) -> Vec<u8> {
    let path = data(version, &format!("{}.wasm", kind.as_str()));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; wit/README.md says how it is made", path.display()))
}

#[tokio::test]
async fn handlers_of_each_released_version_run() {
    for version in frozen() {
        let bytes = component(&version, SubscriptionKind::Handler);
        let config = BTreeMap::from([("url".to_owned(), "https://example.com".to_owned())]);
        let with = |config| PluginSpec { config, ..spec(SubscriptionKind::Handler) };
        let plugin = host().plugin(&bytes, with(config)).unwrap();
        plugin.validate().await.unwrap();
        let error = host().plugin(&bytes, with(BTreeMap::new())).unwrap().validate().await.unwrap_err();
        assert!(matches!(&error, PluginError::Invalid { errors } if errors == &["`url` is missing"]), "{error}");

        let done = run(&plugin, call()).await;
        assert_eq!(done.result, Ok(()), "{version}");
        let body = b"{\"total\":42}".as_slice();
        assert_eq!(done.effects.reads, [("m-1".into(), None)]);
        assert_eq!(done.effects.writes, [("m-1".into(), Some(body.into())), ("gone".into(), None)]);
        assert_eq!(done.effects.adds, [("handled".into(), 42)]);
        let metadata = done.effects.metadata.unwrap();
        assert_eq!(metadata.as_str(), format!(r#"{{"contract":"{version}"}}"#));
        let [emitted] = done.effects.emits.as_slice() else { panic!("{:?}", done.effects.emits) };
        assert_eq!(emitted.topic.as_str(), "compat.done");
        assert_eq!(emitted.key.as_deref(), Some("customer-7"));
        assert_eq!(emitted.priority.0, 7);
        assert_eq!(emitted.content_type, "text/plain");
        assert_eq!(emitted.payload, body);
        assert_eq!(emitted.delay, Some(Duration::from_secs(1)));
        assert_eq!((emitted.headers[0].name.as_str(), &emitted.headers[0].value), ("contract", &version));

        let (reason, error) = (Reason::of_guest("E42"), ErrorText::new("as asked for"));
        for (number, wants) in [
            (2, Failure::Retry { reason: reason.clone(), error: error.clone() }),
            (3, Failure::Throttled { after: Some(Duration::from_millis(1500)), error: error.clone() }),
            (4, Failure::Reject { reason: reason.clone(), error: error.clone() }),
            (5, Failure::UnknownOutcome { reason: reason.clone(), error: error.clone() }),
            (6, Failure::Misconfigured { reason, error }),
        ] {
            let mut call = call();
            call.attempt.number = number;
            assert_eq!(run(&plugin, call).await.result, Err(wants), "{version}");
        }
    }
}

#[tokio::test]
async fn publishers_of_each_released_version_run() {
    for version in frozen() {
        let bytes = component(&version, SubscriptionKind::Publisher);
        let plugin = host().plugin(&bytes, spec(SubscriptionKind::Publisher)).unwrap();
        plugin.validate().await.unwrap();
        let mut again = call();
        again.attempt.number = 2;
        let done = plugin.invoke(&[call(), again, call()]).await;
        let reject = Failure::Reject { reason: Reason::of_guest("E42"), error: ErrorText::new("as asked for") };
        let results: Vec<_> = done.into_iter().map(|done| done.result).collect();
        assert_eq!(results, [Ok(()), Err(reject), Ok(())], "{version}");
    }
}

#[test]
fn the_contract_only_adds_to_each_released_version() {
    let (present, version) = contract(&root().join("wit"));
    for frozen in frozen() {
        let (released, number) = contract(&root().join("wit/frozen").join(&frozen));
        assert_eq!(number, frozen, "the folder is named by the version in it");
        for (name, was) in &released {
            match present.get(name) {
                Some(is) => assert_eq!(is, was, "`{name}` of {frozen} was changed"),
                None => panic!("`{name}` of {frozen} was taken away"),
            }
        }
        if version == frozen {
            let added: Vec<_> = present.keys().filter(|name| !released.contains_key(*name)).collect();
            assert!(added.is_empty(), "{added:?} are new: give the contract a new version, see wit/README.md");
        }
    }
}

/// All that a contract promises, by name, and its version.
fn contract(dir: &Path) -> (BTreeMap<String, String>, String) {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(dir).unwrap();
    let package = &resolve.packages[package];
    let mut found = BTreeMap::new();
    for (name, &id) in &package.interfaces {
        let interface = &resolve.interfaces[id];
        for (of, &id) in &interface.types {
            found.insert(format!("{name}.{of}"), definition(&resolve, &resolve.types[id].kind));
        }
        for (of, function) in &interface.functions {
            assert_eq!(
                function.kind,
                FunctionKind::Freestanding,
                "{name}.{of}: describe this kind of function here"
            );
            let params: Vec<String> = function
                .params
                .iter()
                .map(|param| format!("{}: {}", param.name, written(&resolve, &param.ty)))
                .collect();
            let result = optional(&resolve, function.result.as_ref());
            found.insert(format!("{name}.{of}"), format!("func({}) -> {result}", params.join(", ")));
        }
    }
    let interfaces = |items: &mut dyn Iterator<Item = &WorldItem>| -> Vec<String> {
        let name = |item: &WorldItem| match item {
            WorldItem::Interface { id, .. } => resolve.interfaces[*id].name.clone().unwrap(),
            other => panic!("describe {other:?} here"),
        };
        items.map(name).collect()
    };
    for (name, &id) in &package.worlds {
        let world = &resolve.worlds[id];
        for import in interfaces(&mut world.imports.values()) {
            found.insert(format!("world {name}, import of {import}"), String::new());
        }
        // All together, for one more would be missing in what is built already. The same of what they hold.
        let mut exports = Vec::new();
        for export in interfaces(&mut world.exports.values()) {
            let functions = resolve.interfaces[package.interfaces[&export]].functions.keys();
            exports.extend(functions.map(|function| format!("{export}.{function}")));
        }
        found.insert(format!("world {name}, exports"), exports.join(", "));
    }
    (found, package.name.version.as_ref().unwrap().to_string())
}

fn definition(resolve: &Resolve, kind: &TypeDefKind) -> String {
    let optional = |ty: Option<&Type>| optional(resolve, ty);
    let written = |ty: &Type| written(resolve, ty);
    let list = |parts: Vec<String>| parts.join(", ");
    match kind {
        TypeDefKind::Record(record) => {
            let fields = record.fields.iter().map(|field| format!("{}: {}", field.name, written(&field.ty)));
            format!("record {{ {} }}", list(fields.collect()))
        }
        TypeDefKind::Variant(variant) => {
            let cases = variant.cases.iter().map(|case| format!("{}({})", case.name, optional(case.ty.as_ref())));
            format!("variant {{ {} }}", list(cases.collect()))
        }
        TypeDefKind::Enum(cases) => {
            format!("enum {{ {} }}", list(cases.cases.iter().map(|case| case.name.clone()).collect()))
        }
        TypeDefKind::Flags(flags) => {
            format!("flags {{ {} }}", list(flags.flags.iter().map(|flag| flag.name.clone()).collect()))
        }
        TypeDefKind::Tuple(tuple) => format!("tuple<{}>", list(tuple.types.iter().map(written).collect())),
        TypeDefKind::Option(ty) => format!("option<{}>", written(ty)),
        TypeDefKind::Result(result) => {
            format!("result<{}, {}>", optional(result.ok.as_ref()), optional(result.err.as_ref()))
        }
        TypeDefKind::List(ty) => format!("list<{}>", written(ty)),
        TypeDefKind::Type(ty) => written(ty),
        TypeDefKind::Resource => "resource".to_owned(),
        TypeDefKind::Handle(Handle::Own(id)) => format!("own<{}>", written(&Type::Id(*id))),
        TypeDefKind::Handle(Handle::Borrow(id)) => format!("borrow<{}>", written(&Type::Id(*id))),
        other => panic!("describe {other:?} here"),
    }
}

fn optional(resolve: &Resolve, ty: Option<&Type>) -> String {
    ty.map_or_else(|| "_".to_owned(), |ty| written(resolve, ty))
}

/// A type by its name; one without by what it is.
fn written(resolve: &Resolve, ty: &Type) -> String {
    let Type::Id(id) = ty else { return format!("{ty:?}").to_lowercase() };
    let defined = &resolve.types[*id];
    defined.name.clone().unwrap_or_else(|| definition(resolve, &defined.kind))
}
