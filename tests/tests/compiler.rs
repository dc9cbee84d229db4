//! Compiling in a process of its own: what a component makes the compiler do ends at the limits.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use laneway_core::{Name, SubscriptionKind};
use laneway_host::{CompilerProcess, Grants, Host, HostOptions, Limits, Plugin, PluginError, PluginSpec};
use laneway_tests::{laneway, plugin};

/// The program under these limits.
fn compiler(seconds: u64, memory_bytes_max: u64) -> CompilerProcess {
    let time_max = Duration::from_secs(seconds);
    CompilerProcess { program: laneway(), args: vec!["__compile".into()], time_max, memory_bytes_max }
}

fn load(compiler: Option<CompilerProcess>, cache: Option<&Path>, bytes: &[u8]) -> Result<Arc<Plugin>, PluginError> {
    let options =
        HostOptions { instances_max: 2, compiler, cache_dir: cache.map(PathBuf::from), ..HostOptions::default() };
    let spec = PluginSpec {
        name: Name::parse("test").unwrap(),
        kind: SubscriptionKind::Handler,
        config: [].into(),
        grants: Grants::default(),
        limits: Limits::default(),
        reuse: false,
        payload_bytes_max: 1 << 20,
    };
    Host::new(options).unwrap().plugin(bytes, spec)
}

/// A component whose one function takes the compiler long, though less than is refused beforehand.
fn slow() -> Vec<u8> {
    let step = "(local.set 0 (i32.mul (local.get 0) (i32.const 7)))";
    let body = step.repeat(60_000);
    wat::parse_str(format!("(component (core module (func (param i32) (result i32) {body} (local.get 0))))"))
        .unwrap()
}

/// A component of as many functions as are taken.
fn large() -> Vec<u8> {
    wat::parse_str(format!("(component (core module {}))", "(func)".repeat(190_000))).unwrap()
}

#[tokio::test]
async fn a_component_is_compiled_by_the_process_and_found_again_without_it() {
    let bytes = Bytes::from(std::fs::read(plugin("noop")).unwrap());
    let cache = tempfile::tempdir().unwrap();
    load(Some(compiler(60, 4 << 30)), Some(cache.path()), &bytes).unwrap().validate().await.unwrap();
    let nobody = CompilerProcess { program: "/nowhere".into(), ..compiler(60, 4 << 30) };
    // What this process would compile is the same: the engines agree.
    load(Some(nobody.clone()), Some(cache.path()), &bytes).unwrap().validate().await.unwrap();
    let error = load(Some(nobody), None, &bytes).unwrap_err();
    assert!(matches!(error, PluginError::CompilerProcess(_)), "{error}");
}

#[test]
fn compiling_ends_at_its_time() {
    let started = Instant::now();
    let error = load(Some(compiler(1, 4 << 30)), None, &slow()).unwrap_err();
    assert!(matches!(error, PluginError::CompileTime { .. }), "{error}");
    let text = "took more than 1 seconds of processor time (`compile_time_max`)";
    assert!(error.to_string().contains(text), "{error}");
    println!("ended after {:?}", started.elapsed());
}

#[cfg(target_os = "linux")]
#[test]
fn compiling_ends_at_its_memory() {
    let error = load(Some(compiler(60, 400 << 20)), None, &large()).unwrap_err();
    assert!(matches!(error, PluginError::CompileMemory { .. }), "{error}");
    assert!(error.to_string().contains("419430400 bytes of memory (`compile_memory_bytes_max`)"), "{error}");
}

#[test]
fn the_least_memory_that_is_taken_compiles_a_plugin() {
    load(Some(compiler(60, 256 << 20)), None, &std::fs::read(plugin("noop")).unwrap()).unwrap();
}

#[test]
fn what_is_wrong_with_a_component_or_with_the_compiler_is_said() {
    let invalid = wat::parse_str("(component (core module (func (result i32))))").unwrap();
    let error = load(Some(compiler(60, 4 << 30)), None, &invalid).unwrap_err();
    assert!(matches!(&error, PluginError::Compile(text) if text.contains("type mismatch")), "{error}");
    // It knows no such argument.
    let other = CompilerProcess { args: vec![OsString::from("__other")], ..compiler(60, 4 << 30) };
    let error = load(Some(other), None, &slow()).unwrap_err();
    assert!(
        matches!(&error, PluginError::Compile(text) if text.contains("the compiler failed (exit status: 2)")),
        "{error}"
    );
}

/// Processes that compile and were started in this folder.
#[cfg(target_os = "linux")]
fn compiling_in(folder: &Path) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    let compiles = |process: &PathBuf| {
        std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder)
            && std::fs::read(process.join("cmdline")).is_ok_and(|line| line.ends_with(b"__compile\0"))
    };
    processes.filter(compiles).count()
}

#[cfg(target_os = "linux")]
fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let started = Instant::now();
    while !reached() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `laneway run` compiles so, under the limits of its configuration.
#[cfg(target_os = "linux")]
#[test]
fn a_node_compiles_under_its_limits_and_leaves_no_compiler_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap();
    std::fs::write(path.join("slow.wasm"), slow()).unwrap();
    let node = |time: &str| {
        let config = format!(
            "[sandbox]\ncompile_time_max = \"{time}\"\n\
             [[subscription]]\nname = \"slow\"\ntopic = \"a\"\nhandler = \"slow.wasm\"\n"
        );
        std::fs::write(path.join("laneway.toml"), config).unwrap();
        let mut command = Command::new(laneway());
        command.arg("run").current_dir(&path).env("XDG_CACHE_HOME", &path);
        command.env_remove("LANEWAY_CONFIG").env_remove("LANEWAY_STORAGE_URL");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let ended = node("1s").output().unwrap();
    let errors = String::from_utf8(ended.stderr).unwrap();
    assert!(
        !ended.status.success() && errors.contains("slow") && errors.contains("`compile_time_max`"),
        "{errors}"
    );

    let mut killed = node("60s").spawn().unwrap();
    wait_until("the compiler", || compiling_in(&path) == 1);
    killed.kill().unwrap();
    killed.wait().unwrap();
    wait_until("its end", || compiling_in(&path) == 0);
}
