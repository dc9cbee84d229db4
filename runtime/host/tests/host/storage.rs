//! Compiled code that is kept on disk.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use laneway_core::SubscriptionKind;
use laneway_host::{Host, HostError, HostOptions};

use crate::guest::{Guest, OK};
use crate::support::{call, run, spec};

fn host_on(dir: &Path) -> Arc<Host> {
    let options = HostOptions { cache_dir: Some(dir.to_owned()), instances_max: 4, ..HostOptions::default() };
    Host::new(options).unwrap()
}

fn compiled(dir: &Path) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "cwasm")).collect()
}

#[tokio::test]
async fn compiled_code_is_kept_used_again_and_compiled_anew_when_it_was_tampered_with() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let bytes = Guest::handler(OK).build();
    let deploy = || async {
        let plugin = host_on(&cache).plugin(&bytes, spec(SubscriptionKind::Handler)).unwrap();
        run(&plugin, call()).await.result.unwrap();
    };
    deploy().await;
    let files = compiled(&cache);
    let [file] = files.as_slice() else { panic!("{files:?}") };
    let original = fs::read(file).unwrap();
    let written = || fs::metadata(file).unwrap().modified().unwrap();
    let first = written();

    deploy().await;
    assert_eq!(written(), first, "a hit writes nothing");

    for harm in [0, original.len() / 2, original.len() - 1] {
        let mut tampered = original.clone();
        tampered[harm] ^= 1;
        fs::write(file, &tampered).unwrap();
        deploy().await;
        assert_eq!(fs::read(file).unwrap(), original, "harm at byte {harm} is mended");
    }
    fs::write(file, b"short").unwrap();
    deploy().await;
    assert_eq!(fs::read(file).unwrap(), original);

    // Code of one component under the name of another.
    let other = Guest::handler(OK).pages(3).build();
    let host = host_on(&cache);
    host.plugin(&other, spec(SubscriptionKind::Handler)).unwrap();
    let second = compiled(&cache).into_iter().find(|path| path != file).unwrap();
    fs::copy(&second, file).unwrap();
    deploy().await;
    assert_eq!(fs::read(file).unwrap(), original);
}

#[cfg(unix)]
#[test]
fn only_the_owner_can_read_the_cache() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    host_on(dir.path()).plugin(&Guest::handler(OK).build(), spec(SubscriptionKind::Handler)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.path()), 0o700);
    assert_eq!(mode(&dir.path().join("key")), 0o600);
    assert_eq!(mode(&compiled(dir.path())[0]), 0o600);
}

#[cfg(unix)]
#[test]
fn a_key_that_others_could_write_is_not_believed() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let refused = || {
        let options =
            HostOptions { cache_dir: Some(dir.path().to_owned()), instances_max: 1, ..HostOptions::default() };
        Host::new(options).err().unwrap().to_string()
    };
    // Put there while the directory was open.
    fs::write(&key, [7; 32]).unwrap();
    mode(&key, 0o600);
    mode(dir.path(), 0o777);
    drop(host_on(dir.path()));
    let made = fs::read(&key).unwrap();
    assert!(made.len() == 32 && made != [7; 32]);
    // In one that was closed it stays.
    drop(host_on(dir.path()));
    assert_eq!(fs::read(&key).unwrap(), made);
    mode(&key, 0o640);
    let error = refused();
    assert!(error.contains("open to others (mode 640)"), "{error}");
    mode(&key, 0o600);
    // Only root can give files away.
    for path in [key.as_path(), dir.path()] {
        if std::os::unix::fs::chown(path, Some(4_321), None).is_ok() {
            let error = refused();
            assert!(error.contains("belongs to another user"), "{error}");
            std::os::unix::fs::chown(path, Some(0), None).unwrap();
        }
    }
}

#[test]
fn a_damaged_key_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    drop(host_on(dir.path()));
    fs::write(dir.path().join("key"), b"short").unwrap();
    let options =
        HostOptions { cache_dir: Some(dir.path().to_owned()), instances_max: 1, ..HostOptions::default() };
    let error = Host::new(options).err().unwrap();
    assert!(matches!(error, HostError::Cache { .. }));
    assert!(error.to_string().contains("remove it"), "{error}");
}
