//! Where the node's secrets come from. Their values are in no configuration, no error and no log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use laneway_core::Name;
use laneway_host::Secret;
use serde::Deserialize;

use super::Config;

/// Most bytes of a secret's file that are read: more than any secret has.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Where one secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretSource {
    /// A variable of the environment.
    Env(String),
    /// A file, as orchestrators mount them. A line break at its end is no part of the secret.
    File(PathBuf),
}

impl SecretSource {
    /// The same, with a file's path relative to a folder.
    pub fn relative_to(self, folder: &Path) -> Self {
        match self {
            Self::Env(variable) => Self::Env(variable),
            Self::File(path) => Self::File(folder.join(path)),
        }
    }

    fn read(&self) -> Result<Secret> {
        let value = match self {
            Self::Env(variable) => match std::env::var_os(variable).map(std::ffi::OsString::into_string) {
                Some(Ok(value)) => value,
                Some(Err(_)) => bail!("the environment variable {variable} is not UTF-8"),
                None => bail!("the environment variable {variable} is not set"),
            },
            Self::File(path) => {
                let mut value = String::new();
                File::open(path)
                    .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut value))
                    .with_context(|| format!("failed to read {}", path.display()))?;
                let end = value.trim_end_matches(['\r', '\n']).len();
                value.truncate(end);
                value
            }
        };
        Ok(Secret::new(value)?)
    }
}

impl Config {
    /// Reads all secrets, as a node does when it starts.
    ///
    /// # Errors
    /// Names the secret that is not there, or cannot be one.
    pub fn read_secrets(&self) -> Result<BTreeMap<Name, Secret>> {
        let read = |(name, source): (&Name, &SecretSource)| {
            let secret = source.read().with_context(|| format!("secret `{name}`"))?;
            Ok((name.clone(), secret))
        };
        self.secrets.iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(folder: &Path, text: &str) -> Result<BTreeMap<Name, Secret>> {
        Config::parse(&format!("[secrets]\n{text}"), folder, None)?.read_secrets()
    }

    #[test]
    fn secrets_come_from_files_and_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "s3cr3t-t0k3n\n").unwrap();
        let found =
            secrets(folder.path(), "T = { file = \"token\" }\nP = { env = \"CARGO_MANIFEST_DIR\" }").unwrap();
        assert_eq!(found[&Name::parse("T").unwrap()], Secret::new("s3cr3t-t0k3n").unwrap());
        assert_eq!(found[&Name::parse("P").unwrap()], Secret::new(env!("CARGO_MANIFEST_DIR")).unwrap());
    }

    #[test]
    fn a_secret_that_is_not_there_is_named_and_its_value_is_not() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("two-lines"), "first-line\nsecond").unwrap();
        std::fs::write(folder.path().join("bytes"), b"not-utf8-\xff").unwrap();
        for (text, wants) in [
            ("T = { env = \"LANEWAY_TEST_NOT_SET\" }", "LANEWAY_TEST_NOT_SET is not set"),
            ("T = { file = \"gone\" }", "gone"),
            ("T = { file = \"two-lines\" }", "cannot carry"),
            ("T = { file = \"bytes\" }", "failed to read"),
            ("T = { value = \"x\" }", "unknown variant `value`"),
        ] {
            let error = format!("{:#}", secrets(folder.path(), text).unwrap_err());
            assert!(error.contains(wants), "{text}: {error}");
            assert!(error.contains('T') && !error.contains("second") && !error.contains("utf8-"), "{error}");
        }
    }
}
