//! Compiling in a process of its own: what a component makes the compiler do ends at the limits.

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

fn spec() -> PluginSpec {
    PluginSpec {
        name: Name::parse("test").unwrap(),
        kind: SubscriptionKind::Handler,
        config: [].into(),
        grants: Grants::default(),
        limits: Limits::default(),
        reuse: false,
        payload_bytes_max: 1 << 20,
    }
}

fn load(compiler: Option<CompilerProcess>, cache: Option<&Path>, bytes: &[u8]) -> Result<Arc<Plugin>, PluginError> {
    let options =
        HostOptions { instances_max: 2, compiler, cache_dir: cache.map(PathBuf::from), ..HostOptions::default() };
    Host::new(options).unwrap().plugin(bytes, spec())
}

/// A component that takes the compiler some ten seconds of processor time, though it is not refused beforehand.
fn slow() -> Vec<u8> {
    let step = "(local.set 0 (i32.mul (local.get 0) (i32.const 7)))";
    let function = format!("(func (param i32) (result i32) {} (local.get 0))", step.repeat(60_000));
    wat::parse_str(format!("(component (core module {}))", function.repeat(5))).unwrap()
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
    assert!(error.is_of_the_node(), "{error}");
}

#[test]
fn compiling_ends_at_its_time() {
    let error = load(Some(compiler(1, 4 << 30)), None, &slow()).unwrap_err();
    assert!(matches!(error, PluginError::CompileTime { .. }), "{error}");
    let text = "took more than 1 seconds of processor time (`compile_time_max`)";
    assert!(error.to_string().contains(text), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn compiling_ends_at_its_memory() {
    let error = load(Some(compiler(600, 400 << 20)), None, &large()).unwrap_err();
    assert!(matches!(error, PluginError::CompileMemory { .. }), "{error}");
    assert!(error.to_string().contains("419430400 bytes of memory (`compile_memory_bytes_max`)"), "{error}");
}

#[test]
fn the_least_memory_that_is_taken_compiles_a_plugin() {
    load(Some(compiler(60, 256 << 20)), None, &std::fs::read(plugin("noop")).unwrap()).unwrap();
}

#[test]
fn what_is_wrong_with_a_component_is_said() {
    let invalid = wat::parse_str("(component (core module (func (result i32))))").unwrap();
    let error = load(Some(compiler(60, 4 << 30)), None, &invalid).unwrap_err();
    assert!(matches!(&error, PluginError::Compile(text) if text.contains("type mismatch")), "{error}");
    assert!(!error.is_of_the_node());
}

/// A crash is the component's fault; where somebody ended the process, or the wrong one ran, it is not.
#[cfg(unix)]
#[test]
fn a_crash_of_the_compiler_is_told_from_its_end_by_others() {
    let ends = |script: &str| {
        let program = CompilerProcess {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            ..compiler(60, 4 << 30)
        };
        load(Some(program), None, &std::fs::read(plugin("noop")).unwrap()).unwrap_err()
    };
    let error = ends("echo >&2; echo boom >&2; kill -ABRT $$");
    assert!(matches!(&error, PluginError::Compile(text) if text.ends_with(": boom")), "{error}");
    for script in ["kill -KILL $$", "kill -TERM $$", "exit 2", "exit 0", "cat"] {
        let error = ends(script);
        assert!(error.is_of_the_node() && error.to_string().contains("/bin/sh"), "{script}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_loaded_several_times_at_once_is_compiled_once() {
    let folder = tempfile::tempdir().unwrap();
    let count = folder.path().join("count");
    let script = format!("echo >> '{}'; exec '{}' __compile", count.display(), laneway().display());
    let process = CompilerProcess {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        ..compiler(60, 4 << 30)
    };
    let cache_dir = Some(folder.path().join("cache"));
    let options = HostOptions { instances_max: 2, compiler: Some(process), cache_dir, ..HostOptions::default() };
    let (host, bytes) = (Host::new(options).unwrap(), std::fs::read(plugin("noop")).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| host.plugin(&bytes, spec()).unwrap());
        }
    });
    assert_eq!(std::fs::read_to_string(count).unwrap().lines().count(), 1);
}

/// What compiles but cannot run here is compiled again next time, in which it may.
#[test]
fn code_that_the_host_cannot_take_is_not_kept() {
    let cache = tempfile::tempdir().unwrap();
    let memories = wat::parse_str(format!("(component (core module {}))", "(memory 1)".repeat(9))).unwrap();
    let error = load(Some(compiler(60, 4 << 30)), Some(cache.path()), &memories).unwrap_err();
    assert!(error.to_string().contains("memories"), "{error}");
    let kept = std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(kept.collect::<Vec<_>>(), ["key"]);
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
fn wait_until(what: &str, patience: Duration, reached: impl Fn() -> bool) {
    let started = Instant::now();
    while !reached() {
        assert!(started.elapsed() < patience, "waited in vain for {what}");
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
    wait_until("the compiler", Duration::from_secs(60), || compiling_in(&path) == 1);
    killed.kill().unwrap();
    killed.wait().unwrap();
    // Left alone, it would go on for longer.
    wait_until("its end", Duration::from_secs(4), || compiling_in(&path) == 0);
}
