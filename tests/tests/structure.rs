//! Who may know whom, and what is built for whom: read from the workspace's own manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Which of the workspace's crates each may use, in whatever kind of dependency. A crate that is not here is
/// refused.
const ALLOWED: &[(&str, &[&str])] = &[
    ("laneway-core", &[]),
    ("laneway-outbox", &["laneway-core"]),
    ("laneway-store", &["laneway-core", "laneway-outbox"]),
    ("laneway-host", &["laneway-core"]),
    ("laneway-engine", &["laneway-core"]),
    ("laneway-connectors", &["laneway-core"]),
    ("laneway-admin", &["laneway-core", "laneway-engine"]),
    ("laneway-testing", &["laneway-core"]),
    (
        "laneway-cli",
        &["laneway-core", "laneway-engine", "laneway-store", "laneway-host", "laneway-connectors", "laneway-admin"],
    ),
    (
        "laneway-tests",
        &[
            "laneway-core",
            "laneway-engine",
            "laneway-outbox",
            "laneway-store",
            "laneway-host",
            "laneway-connectors",
            "laneway-testing",
            // Its mock is held against the host.
            "laneway-sdk",
        ],
    ),
    ("xtask", &["laneway-testing"]),
];

/// Crates of WebAssembly guests, and what they may use: the contract's SDK, nothing of the runtime.
const GUESTS: &[&str] = &["plugins/", "examples/flights/delay-stats", "tests/guests"];

/// A driver and the only folders whose crates may name it.
const DRIVERS: &[(&str, &[&str])] = &[
    ("sqlx", &["runtime/outbox", "runtime/store", "tests", "examples/"]),
    ("rusqlite", &[]),
    ("tokio-postgres", &[]),
    ("wasmtime", &["runtime/host"]),
    ("cranelift", &["runtime/host"]),
    ("wit-bindgen", &["plugins/sdk"]),
];

struct Crate {
    name: String,
    /// From the workspace's root.
    folder: String,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    of_workspace: bool,
    for_tests: bool,
}

fn workspace() -> Vec<Crate> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let root = format!("{}/", metadata["workspace_root"].as_str().unwrap());
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| Crate {
            name: package["name"].as_str().unwrap().to_owned(),
            folder: package["manifest_path"]
                .as_str()
                .and_then(|path| path.strip_prefix(&root)?.strip_suffix("/Cargo.toml"))
                .expect("a member lies under the root")
                .to_owned(),
            dependencies: package["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .map(|dependency| Dependency {
                    name: dependency["name"].as_str().unwrap().to_owned(),
                    of_workspace: dependency["path"].is_string(),
                    for_tests: dependency["kind"] == "dev",
                })
                .collect(),
        })
        .collect()
}

fn is_guest(one: &Crate) -> bool {
    GUESTS.iter().any(|prefix| one.folder.starts_with(prefix))
}

#[test]
fn crates_depend_only_on_those_below_them() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for one in workspace().iter().filter(|one| !is_guest(one) && !one.folder.starts_with("examples/")) {
        let Some(allowed) = allowed.get(one.name.as_str()) else {
            wrong.push(format!("{} ({}) has no rule here", one.name, one.folder));
            continue;
        };
        for dependency in one.dependencies.iter().filter(|dependency| dependency.of_workspace) {
            // Any crate may test itself with the throw-away databases and faults.
            let for_tests =
                dependency.for_tests && dependency.name == "laneway-testing" && one.name != "laneway-core";
            if !allowed.contains(&dependency.name.as_str()) && !for_tests {
                wrong.push(format!("{} must not depend on {}", one.name, dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn guests_and_examples_know_nothing_of_the_runtime() {
    let crates = workspace();
    let runtime: BTreeSet<&str> =
        crates.iter().filter(|one| one.folder.starts_with("runtime/")).map(|one| one.name.as_str()).collect();
    assert!(runtime.contains("laneway-core"));
    let mut guests = 0;
    for one in crates.iter().filter(|one| is_guest(one) || one.folder.starts_with("examples/")) {
        guests += usize::from(is_guest(one));
        let of_tests = |one: &&Dependency| one.for_tests && one.name == "laneway-testing";
        for dependency in one.dependencies.iter().filter(|dependency| !of_tests(dependency)) {
            assert!(
                !runtime.contains(dependency.name.as_str()),
                "{} must not depend on {}",
                one.name,
                dependency.name
            );
        }
    }
    assert!(guests > 0, "no guest was found: the folders have moved");
}

#[test]
fn each_driver_is_named_by_its_own_crate_only() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for one in workspace() {
        for dependency in &one.dependencies {
            for (driver, folders) in DRIVERS {
                // A family: wasmtime-wasi is wasmtime too, sqlx-core is sqlx.
                if dependency.name != *driver && !dependency.name.starts_with(&format!("{driver}-")) {
                    continue;
                }
                seen.insert(*driver);
                let may = folders.iter().any(|folder| match folder.strip_suffix('/') {
                    Some(_) => one.folder.starts_with(folder),
                    None => one.folder == *folder,
                });
                if !may {
                    wrong.push(format!("{} must not name {}", one.name, dependency.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen.contains("sqlx") && seen.contains("wasmtime"), "found only {seen:?}: the check sees too little");
}

#[test]
fn the_domain_performs_no_input_or_output() {
    let crates = workspace();
    let core = crates.iter().find(|one| one.name == "laneway-core").expect("laneway-core is a member");
    for dependency in core.dependencies.iter().filter(|dependency| !dependency.for_tests) {
        let forbidden = ["tokio", "hyper", "reqwest", "tempfile", "tracing-subscriber", "toml", "clap"];
        assert!(
            !forbidden.contains(&dependency.name.as_str()),
            "laneway-core must not depend on {}",
            dependency.name
        );
    }
}

/// The features that each package has, as lines of package and features, by package. `edges` are kinds of dependencies.
fn features(edges: &str) -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--offline", "--locked", "--prefix=none", "--no-dedupe", "--format={p}|{f}"])
        .args(["--edges", edges, "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (package, features) in String::from_utf8(output.stdout).unwrap().lines().filter_map(|it| it.split_once('|'))
    {
        all.entry(package.to_owned()).or_default().insert(features.trim_end_matches(" (*)").to_owned());
    }
    all
}

/// Else cargo builds it, and all that depends on it, a second time for the tests: with wasmtime, that takes minutes.
#[test]
fn a_dependency_has_the_same_features_in_programs_and_in_tests() {
    let (programs, tests) = (features("normal,build"), features("normal,build,dev"));
    assert!(programs.keys().any(|package| package.starts_with("wasmtime v")), "the check sees too little");
    let other: Vec<_> =
        programs.iter().filter(|(package, features)| tests.get(*package) != Some(*features)).collect();
    assert!(other.is_empty(), "give these the features that the tests ask for: {other:#?}");
}
