//! Compiled code, kept between runs of the process.
//!
//! A file is named by the component's digest and the engine's compatibility hash, and begins with an HMAC over both
//! and the code. Compiled code is machine code: loading what another wrote there would be running it. The key lies
//! beside the files with the same protection as they have, so this guards against corruption, against mixed-up
//! files, and against who may write files but not read the key, such as a restored backup or a shared volume.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use laneway_core::PluginDigest;
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 32;

/// The directory of compiled code.
pub(crate) struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
    compatibility: String,
}

impl Cache {
    /// Opens the directory, and makes it and its key if they are not there.
    pub(crate) fn open(dir: &Path, engine: &Engine) -> io::Result<Self> {
        make_dir(dir)?;
        let key = key(&dir.join("key"))?;
        Ok(Self { dir: dir.to_owned(), key, compatibility: compatibility(engine) })
    }

    /// The compiled component, if it is here and unharmed.
    pub(crate) fn load(&self, engine: &Engine, digest: &PluginDigest) -> Option<Component> {
        let path = self.path(digest);
        let file = match fs::read(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "could not read compiled code; compiling again");
                return None;
            }
        };
        let verified = file
            .split_at_checked(TAG_BYTES)
            .filter(|(tag, code)| self.mac(digest, code).is_some_and(|mac| mac.verify_slice(tag).is_ok()));
        let Some((_, code)) = verified else {
            tracing::warn!(path = %path.display(), "compiled code is not what this host wrote; compiling again");
            return None;
        };
        // SAFETY: the HMAC says that `Cache::store` wrote these very bytes for this digest and this engine's
        // compatibility hash, from `Engine::precompile_component`. They were read into memory before they were
        // verified, so that nothing can change them in between.
        match unsafe { Component::deserialize(engine, code) } {
            Ok(component) => Some(component),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(path = %path.display(), error, "compiled code does not load; compiling again");
                None
            }
        }
    }

    /// Keeps compiled code. A failure costs the next start time, and nothing else.
    pub(crate) fn store(&self, digest: &PluginDigest, code: &[u8]) {
        let path = self.path(digest);
        if let Err(error) = self.write(&path, digest, code) {
            tracing::warn!(path = %path.display(), %error, "could not keep compiled code");
        }
    }

    fn write(&self, path: &Path, digest: &PluginDigest, code: &[u8]) -> io::Result<()> {
        let mac = self.mac(digest, code).ok_or_else(|| io::Error::other("the key has a wrong length"))?;
        let tmp = temporary(path)?;
        let written = private_file(&tmp).and_then(|mut file| {
            file.write_all(&mac.finalize().into_bytes())?;
            file.write_all(code)?;
            file.sync_all()?;
            fs::rename(&tmp, path)
        });
        if written.is_err() {
            // What matters is the first error; a file left over is overwritten or ignored.
            drop(fs::remove_file(&tmp));
        }
        written
    }

    fn path(&self, digest: &PluginDigest) -> PathBuf {
        self.dir.join(format!("{digest}-{}.cwasm", &self.compatibility[..16]))
    }

    fn mac(&self, digest: &PluginDigest, code: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        // Both have a fixed length, so that no two triples run together to the same bytes.
        mac.update(digest.as_str().as_bytes());
        mac.update(self.compatibility.as_bytes());
        mac.update(code);
        Some(mac)
    }
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|nibble| char::from(DIGITS[usize::from(nibble)]))
        .collect()
}

/// A hash of all that compiled code depends on: version, settings and processor.
fn compatibility(engine: &Engine) -> String {
    struct Digesting(Sha256);
    impl Hasher for Digesting {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut hasher = Digesting(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hex(&hasher.0.finalize())
}

/// The key, made by whoever comes first.
fn key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    if !path.exists() {
        let mut fresh = [0; KEY_BYTES];
        getrandom::fill(&mut fresh).map_err(io::Error::other)?;
        let tmp = temporary(path)?;
        let mut file = private_file(&tmp)?;
        file.write_all(&fresh)?;
        file.sync_all()?;
        // A link, not a rename: of two processes that start at once, the second takes the first one's key.
        let linked = fs::hard_link(&tmp, path);
        fs::remove_file(&tmp)?;
        if let Err(error) = linked
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
    }
    let file = File::open(path)?;
    check_private(path, &file.metadata()?)?;
    let mut found = Vec::new();
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut found)?;
    found.try_into().map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, "the file `key` is damaged; remove it to get a new one")
    })
}

fn temporary(path: &Path) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    Ok(path.with_extension(format!("{}.tmp", hex(&random))))
}

fn make_dir(dir: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        builder.mode(0o700).create(dir)?;
        // One that was there before may be open to others.
        let found = fs::metadata(dir)?;
        check_owner(dir, &found)?;
        if found.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
            // Whoever could write here may have put a key of their own, and code that it signs: with another key, none
            // of that code is taken.
            match fs::remove_file(dir.join("key")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    #[cfg(not(unix))]
    builder.create(dir)?;
    Ok(())
}

/// Refuses what others can read or write: they could sign code with the key.
#[cfg(unix)]
fn check_private(path: &Path, found: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    check_owner(path, found)?;
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(refused(path, &format!("is open to others (mode {mode:o}); remove it to get a new one")));
    }
    Ok(())
}

/// Refuses what belongs to another user, who can change it at any time.
#[cfg(unix)]
fn check_owner(path: &Path, found: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    if found.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(refused(path, "belongs to another user; name a directory of this user's own"))
}

#[cfg(not(unix))]
fn check_private(_: &Path, _: &fs::Metadata) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn refused(path: &Path, wrong: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, format!("`{}` {wrong}", path.display()))
}

fn private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)
}
