//! Files of signatures and keys, and the password of a key.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign::{SecretKey, SecretKeyBox};

/// Where the password of a secret key may be given.
const PASSWORD: &str = "LANEWAY_SIGN_PASSWORD";
/// Most bytes of a key's file or a signature's that are read; one byte more, and it is something else.
const TEXT_BYTES_MAX: u64 = 32 << 10;
/// Bytes of a decoded secret key.
const SECRET_KEY_BYTES: usize = 158;
/// What follows the algorithm in a secret key: how it is encrypted.
const SCRYPT: &[u8] = b"Sc";
const NOT_ENCRYPTED: &[u8] = &[0, 0];

/// A path with something behind its name.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Where the signature of a component's file lies.
pub fn path_of(component: &Path) -> PathBuf {
    with_suffix(component, ".minisig")
}

/// The signature beside a component's file, if there is one.
///
/// # Errors
/// It is there and cannot be read.
pub fn beside(component: &Path) -> Result<Option<String>> {
    let path = path_of(component);
    match File::open(&path) {
        Ok(file) => Ok(Some(read_text(file).with_context(|| format!("failed to read {}", path.display()))?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
    }
}

/// The signature in a file.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> Result<String> {
    File::open(path)
        .map_err(anyhow::Error::from)
        .and_then(read_text)
        .with_context(|| format!("failed to read {}", path.display()))
}

/// Reads a secret key in minisign's format. Asks for its password, if it has one.
///
/// # Errors
/// Others than its owner may read the file, it is no secret key, or the password is wrong or cannot be asked for.
pub fn secret_key(path: &Path) -> Result<SecretKey> {
    let file = File::open(path).with_context(|| format!("failed to read the key {}", path.display()))?;
    // Of the file that is open: a name may stand for another one a moment later.
    let mode = file.metadata()?.mode();
    ensure!(
        mode & 0o077 == 0,
        "the secret key {0} may be read or written by others (mode {1:03o}); run `chmod 600 {0}`, and make a new pair if \
         others may have read it",
        path.display(),
        mode & 0o777
    );
    let text = read_text(file).with_context(|| format!("failed to read the key {}", path.display()))?;
    read_secret(&text).with_context(|| format!("secret key {}", path.display()))
}

fn read_secret(text: &str) -> Result<SecretKey> {
    let decoded = text.lines().nth(1).and_then(|line| STANDARD.decode(line.trim()).ok()).unwrap_or_default();
    ensure!(
        decoded.len() == SECRET_KEY_BYTES,
        "it is no secret key of minisign; `laneway plugin keygen` makes one, and the other file is the public one"
    );
    match &decoded[2..4] {
        // Its checksum is not looked at, which minisign leaves empty; a key that is harmed makes no good signature.
        NOT_ENCRYPTED => SecretKey::from_bytes(&decoded).context("it is harmed"),
        SCRYPT => {
            let password = password("Password of the key: ")?;
            Ok(SecretKeyBox::from(text.to_owned()).into_secret_key(Some(password))?)
        }
        _ => bail!("it is encrypted in a way that is not known here; make a new pair with `laneway plugin keygen`"),
    }
}

/// The password to protect a new key with.
///
/// # Errors
/// It is empty, it was not typed the same way twice, or there is no terminal to ask on.
pub fn new_password() -> Result<String> {
    let first = password("Password for the new key: ")?;
    ensure!(!first.is_empty(), "the password is empty; for a key without one, give --no-password");
    if std::env::var_os(PASSWORD).is_none() {
        ensure!(first == password("The same once more: ")?, "the two passwords differ; nothing was made");
    }
    Ok(first)
}

/// A password from the environment, or else from the terminal, where it is not shown.
fn password(prompt: &str) -> Result<String> {
    match std::env::var_os(PASSWORD) {
        Some(value) => value.into_string().map_err(|_| anyhow::anyhow!("the password in {PASSWORD} is not UTF-8")),
        None => rpassword::prompt_password(prompt)
            .with_context(|| format!("no terminal to ask for the password on; set {PASSWORD}")),
    }
}

/// Makes a file that only its owner may read. What is there already stays.
///
/// # Errors
/// There is such a file already, or it cannot be written.
pub fn create_private(path: &Path, text: &str) -> Result<()> {
    create(path, text, 0o600)
}

/// Makes a file. What is there already stays.
///
/// # Errors
/// There is such a file already, or it cannot be written.
pub fn create_public(path: &Path, text: &str) -> Result<()> {
    create(path, text, 0o644)
}

fn create(path: &Path, text: &str, mode: u32) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
            // The first error is what matters; half a key is of no use.
            drop(fs::remove_file(path));
        })
    };
    write().with_context(|| format!("failed to make {}", path.display()))
}

fn read_text(file: File) -> Result<String> {
    let mut text = String::new();
    file.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= TEXT_BYTES_MAX, "it has over {TEXT_BYTES_MAX} bytes");
    Ok(text)
}
