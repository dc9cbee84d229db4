//! A node that asks for signatures runs nothing else, and says what to do about it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use crate::databases::sqlite;
use crate::run::Folder;

const PASSWORD: &str = "correct horse";
/// Made by `minisign -G -W`, version 0.11.
const MINISIGN_KEY: &str = "untrusted comment: minisign encrypted secret key\n\
    RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA4URrSrk60o6wNK4kSXpk6Md82PA3B7Z6J93af/CAhJ6\
    /BmUEq4NYcOc9SJPSMXO4JyDh+PDLlbIiLuyY2c1QSxqAcIertFB1AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
const MINISIGN_PUBLIC: &str = "RWThRGtKuTrSjuc9SJPSMXO4JyDh+PDLlbIiLuyY2c1QSxqAcIertFB1";

/// A folder with a pair of keys, and a node that trusts the public one.
fn trusting() -> (Folder, String) {
    let folder = Folder::new();
    let made = with_password(&folder, &["--json", "plugin", "keygen", "--out", "release"], PASSWORD);
    assert!(made.status.success(), "{made:?}");
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let public = made["public_key"].as_str().unwrap().to_owned();
    trust(&folder, &public);
    (folder, public)
}

fn trust(folder: &Folder, public: &str) {
    folder.configure(&format!(
        "[plugins]\nrequire_signatures = [\"{public}\"]\n\
         [[subscription]]\nname = \"s\"\ntopic = \"a\"\nhandler = \"noop.wasm\""
    ));
}

fn with_password(folder: &Folder, arguments: &[&str], password: &str) -> Output {
    folder.command(arguments).env("LANEWAY_SIGN_PASSWORD", password).output().unwrap()
}

fn sign(folder: &Folder, more: &[&str]) {
    let arguments = [&["plugin", "sign", "noop.wasm", "--key", "release.key"], more].concat();
    let signed = with_password(folder, &arguments, PASSWORD);
    assert!(signed.status.success(), "{signed:?}");
}

fn runs(folder: &Folder) {
    let running = folder.start(&["run"]);
    folder.wait_for_log("laneway is running");
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
}

fn refused(folder: &Folder, wants: &str) {
    let error = folder.fails(1, &["run"]);
    assert!(error.contains("`s`") && error.contains("not trusted") && error.contains(wants), "{error}");
    assert!(!folder.path().join("laneway.db").exists(), "a database was made for nothing");
}

#[test]
fn a_node_that_asks_for_signatures_runs_what_is_signed() {
    let (folder, _) = trusting();
    sign(&folder, &["--comment", "release 7"]);
    let text = fs::read_to_string(folder.path().join("noop.wasm.minisig")).unwrap();
    assert!(text.contains("\ntrusted comment: release 7\n"), "{text}");
    runs(&folder);
}

#[test]
fn a_node_that_asks_for_signatures_refuses_what_is_not_signed_or_changed() {
    let (folder, _) = trusting();
    refused(&folder, "laneway plugin sign");
    sign(&folder, &[]);
    let signature = folder.path().join("noop.wasm.minisig");
    let text = fs::read_to_string(&signature).unwrap();
    assert!(text.contains("file:noop.wasm"), "{text}");

    folder.write("noop.wasm.minisig", text.replace("file:noop.wasm", "file:good.wasm"));
    refused(&folder, "does not hold");
    folder.write("noop.wasm.minisig", &text[..text.len() - 10]);
    refused(&folder, "malformed");
    folder.write("noop.wasm.minisig", &text);
    let component = fs::read(folder.path().join("noop.wasm")).unwrap();
    // A section without meaning: the component still runs, and is another one.
    folder.write("noop.wasm", [&component[..], b"\0\x02\x01x"].concat());
    refused(&folder, "does not hold");
    folder.write("noop.wasm", &component);
    runs(&folder);
}

#[test]
fn a_signature_by_another_key_is_refused_with_both_ids() {
    let (folder, _) = trusting();
    folder.ok(&["plugin", "keygen", "--out", "other", "--no-password"]);
    folder.ok(&["plugin", "sign", "noop.wasm", "--key", "other.key"]);
    let id = |name: &str| {
        let text = fs::read_to_string(folder.path().join(name)).unwrap();
        text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    refused(&folder, &id("other.pub"));
    refused(&folder, &id("release.pub"));
}

/// A signature is of bytes, and whoever can write to the database can give them any name.
#[tokio::test]
async fn what_is_signed_runs_as_what_its_manifest_says_and_as_nothing_else() {
    let (folder, public) = trusting();
    folder.configure(&format!(
        "[plugins]\nrequire_signatures = [\"{public}\"]\n\
         [[subscription]]\nname = \"work\"\ntopic = \"a\"\nhandler = \"noop\"\n\
         [[subscription]]\nname = \"log\"\ntopic = \"a\"\npublisher = \"publish-log\""
    ));
    folder.ok(&["apply"]);
    sign(&folder, &[]);
    folder.ok(&["plugin", "push", "noop.wasm", "--as", "noop@1"]);
    let error = folder.fails(1, &["plugin", "deploy", "noop"]);
    assert!(error.contains("it has no manifest") && error.contains("laneway plugin pack"), "{error}");

    let arguments = ["plugin", "sign", "publish-log.wasm", "--key", "release.key"];
    assert!(with_password(&folder, &arguments, PASSWORD).status.success());
    folder.ok(&["plugin", "push", "publish-log.wasm"]);
    folder.ok(&["plugin", "deploy", "publish-log"]);
    sqlite(
        &folder,
        "INSERT INTO laneway_plugin SELECT name, '9.0.0', digest, manifest, signature, pushed_at, bytes, component
         FROM laneway_plugin WHERE name = 'publish-log'",
    )
    .await;
    let error = folder.fails(1, &["plugin", "deploy", "publish-log@9.0.0"]);
    assert!(error.contains("its manifest says that it is publish-log@0.1.0"), "{error}");
    sqlite(
        &folder,
        "UPDATE laneway_plugin AS p SET (bytes, component) = (SELECT bytes, component FROM laneway_plugin
         WHERE name = 'noop') WHERE p.version = '9.0.0'",
    )
    .await;
    let error = folder.fails(1, &["plugin", "deploy", "publish-log@9.0.0"]);
    assert!(error.contains("holds bytes with digest"), "{error}");
}

#[test]
fn inspect_says_what_a_signature_is_worth() {
    let (folder, _) = trusting();
    let signed = || folder.json(&["plugin", "inspect", "noop.wasm"])["signed"].as_str().unwrap().to_owned();
    assert_eq!(signed(), "no");
    sign(&folder, &[]);
    let text = fs::read_to_string(folder.path().join("release.pub")).unwrap();
    let id = text.lines().next().unwrap().rsplit(' ').next().unwrap();
    assert_eq!(signed(), format!("by key {id}"));
    folder.write("noop.wasm.minisig", "nonsense");
    assert!(signed().starts_with("not trusted: its signature is malformed"), "{}", signed());
    folder.configure("[[subscription]]\nname = \"s\"\ntopic = \"a\"\nhandler = \"noop.wasm\"");
    assert!(signed().starts_with("not checked"), "{}", signed());
}

#[test]
fn a_node_that_asks_for_no_signatures_does_not_look_at_them() {
    let folder = Folder::new();
    folder.configure("[[subscription]]\nname = \"s\"\ntopic = \"a\"\nhandler = \"noop.wasm\"");
    folder.write("noop.wasm.minisig", "nonsense");
    runs(&folder);
}

#[test]
fn keys_of_minisign_sign_too() {
    let folder = Folder::new();
    trust(&folder, MINISIGN_PUBLIC);
    folder.write("minisign.key", MINISIGN_KEY);
    private(&folder, "minisign.key", 0o600);
    folder.ok(&["plugin", "sign", "noop.wasm", "--key", "minisign.key"]);
    runs(&folder);
    // Its public half no longer fits.
    folder.write("minisign.key", MINISIGN_KEY.replace("Oc9SJPS", "Oc9SJPT"));
    let error = folder.fails(1, &["plugin", "sign", "noop.wasm", "--key", "minisign.key"]);
    assert!(error.contains("failed to sign with minisign.key"), "{error}");
}

#[test]
fn a_secret_key_that_others_may_read_is_not_used() {
    let (folder, _) = trusting();
    let mode = fs::metadata(folder.path().join("release.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for mode in [0o640, 0o604, 0o620] {
        private(&folder, "release.key", mode);
        let refused = with_password(&folder, &["plugin", "sign", "noop.wasm", "--key", "release.key"], PASSWORD);
        let error = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{error}");
        assert!(error.contains("chmod 600 release.key"), "{error}");
    }
    assert!(!folder.path().join("noop.wasm.minisig").exists());
}

#[test]
fn what_is_wrong_with_a_key_or_a_password_is_said_without_showing_it() {
    let (folder, public) = trusting();
    let fails = |arguments: &[&str], password: &str| {
        let output = with_password(&folder, arguments, password);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(!error.contains(&public) && (password.is_empty() || !error.contains(password)), "{error}");
        error
    };
    let error = fails(&["plugin", "sign", "noop.wasm", "--key", "release.key"], "wrong horse");
    assert!(error.contains("release.key") && error.contains("Wrong password"), "{error}");
    private(&folder, "release.pub", 0o600);
    let error = fails(&["plugin", "sign", "noop.wasm", "--key", "release.pub"], PASSWORD);
    assert!(error.contains("no secret key") && error.contains("keygen"), "{error}");
    let error = fails(&["plugin", "keygen", "--out", "release"], PASSWORD);
    assert!(error.contains("release.key is there already"), "{error}");
    let error = fails(&["plugin", "keygen", "--out", "empty"], "");
    assert!(error.contains("--no-password"), "{error}");
    let error =
        fails(&["plugin", "sign", "noop.wasm", "--key", "release.key", "--comment", "two\nlines"], PASSWORD);
    assert!(error.contains("one line"), "{error}");
    assert!(!folder.path().join("noop.wasm.minisig").exists() && !folder.path().join("empty.key").exists());
}

fn private(folder: &Folder, name: &str, mode: u32) {
    fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
}
