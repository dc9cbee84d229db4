//! `laneway plugin new`: writes a project that builds, with a test.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use super::templates::{self, File};

/// Longest name of a project.
const NAME_BYTES_MAX: usize = 64;

/// Names that a Rust crate cannot have, or that its dependencies have.
const NAMES_TAKEN: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "build",
    "const",
    "continue",
    "core",
    "crate",
    "deps",
    "do",
    "dyn",
    "else",
    "enum",
    "examples",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "incremental",
    "laneway-sdk",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "serde",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "yield",
];

#[derive(clap::Args)]
pub struct Args {
    /// Name of the plugin: lower-case letters, digits and hyphens
    name: PluginName,
    /// What it does: process messages, or forward them
    #[arg(long)]
    kind: Kind,
    /// Language that it is written in
    #[arg(long)]
    lang: Language,
    /// Folder for the project; one of the plugin's name if not given
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Folder of the Rust SDK, such as plugins/sdk of a clone; Laneway's repository if not given
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

/// A plugin's name, which is a crate's, a subscription's and a file's too.
#[derive(Clone, Debug)]
struct PluginName(String);

impl FromStr for PluginName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        ensure!(
            text.len() <= NAME_BYTES_MAX
                && text.starts_with(|c: char| c.is_ascii_lowercase())
                && text.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && !text.contains("--")
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
            "a plugin's name is 1 to {NAME_BYTES_MAX} lower-case letters, digits and single hyphens, and begins with a \
             letter, such as `count-orders`"
        );
        ensure!(!NAMES_TAKEN.contains(&text), "`{text}` is taken; call it something like `count-orders`");
        Ok(Self(text.to_owned()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Handler,
    Publisher,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Handler => "handler",
            Self::Publisher => "publisher",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Language {
    Rust,
    Python,
    Js,
}

impl Language {
    /// What to type in the project's folder: the tests, then the build.
    fn next_commands(self) -> &'static [&'static str] {
        match self {
            Self::Rust => &["cargo test", "cargo build --target wasm32-wasip2 --release"],
            Self::Python => &["./test.sh", "./build.sh"],
            Self::Js => &["npm test", "npm ci --ignore-scripts", "npm run build"],
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(&args.name.0));
    ensure!(
        args.sdk.is_none() || args.lang == Language::Rust,
        "--sdk is for --lang rust; the other languages need no SDK"
    );
    let sdk = sdk(args.sdk.as_deref())?;
    make_empty(&dir)?;
    for file in templates::of(args.lang, args.kind) {
        write(&dir, &file, &fill(file.text, args, &sdk))?;
    }
    let Args { name, kind, .. } = args;
    println!("{} `{}` is in {}; next:\n", kind.as_str(), name.0, dir.display());
    println!("    cd {}", dir.display());
    for command in args.lang.next_commands() {
        println!("    {command}");
    }
    println!("    laneway run");
    Ok(())
}

/// How the project names the SDK among its dependencies.
fn sdk(path: Option<&Path>) -> Result<String> {
    let Some(path) = path else { return Ok(format!("git = \"{}\"", env!("CARGO_PKG_REPOSITORY"))) };
    let path = fs::canonicalize(path).with_context(|| format!("--sdk {}", path.display()))?;
    ensure!(
        path.join("Cargo.toml").is_file(),
        "--sdk {}: there is no Cargo.toml; the SDK is in plugins/sdk of a clone",
        path.display()
    );
    let text = path.to_str().with_context(|| format!("--sdk {}: the path is not UTF-8", path.display()))?;
    // Quoted as TOML quotes it, whatever the path has in it.
    Ok(format!("path = {}", toml::Value::String(text.to_owned())))
}

/// Makes the folder. One that has something in it is left alone.
fn make_empty(dir: &Path) -> Result<()> {
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            ensure!(
                entries.next().is_none(),
                "{} is not empty; nothing was written. Name another folder with --dir",
                dir.display()
            );
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(dir).with_context(|| format!("failed to make {}", dir.display()))
        }
        Err(error) if error.kind() == ErrorKind::NotADirectory => bail!("{} is not a folder", dir.display()),
        Err(error) => Err(error).with_context(|| format!("failed to read {}", dir.display())),
    }
}

fn fill(text: &str, args: &Args, sdk: &str) -> String {
    let (name, kind) = (&args.name.0, args.kind.as_str());
    let crate_name = name.replace('-', "_");
    let component = match args.lang {
        Language::Rust => format!("target/wasm32-wasip2/release/{crate_name}.wasm"),
        Language::Python | Language::Js => format!("{name}.wasm"),
    };
    [
        ("name", name.as_str()),
        ("kind", kind),
        ("crate", crate_name.as_str()),
        ("component", component.as_str()),
        ("sdk", sdk),
    ]
    .iter()
    .fold(text.to_owned(), |text, (key, value)| text.replace(&format!("{{{{{key}}}}}"), value))
}

fn write(dir: &Path, file: &File, text: &str) -> Result<()> {
    let path = dir.join(file.path);
    let written = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, if file.executable { 0o777 } else { 0o666 });
        options.open(&path)?.write_all(text.as_bytes())
    };
    written().with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(name: &str, kind: Kind, lang: Language) -> Args {
        Args { name: name.parse().unwrap(), kind, lang, dir: None, sdk: None }
    }

    #[test]
    fn a_name_fits_a_crate_a_subscription_and_a_file() {
        for good in ["a", "count-orders", "v2", "x-1"] {
            let name: PluginName = good.parse().unwrap();
            assert!(laneway_core::Name::parse(&name.0).is_ok());
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for bad in ["", "-a", "a-", "a--b", "1a", "A", "a_b", "a.b", "a/b", "../a", "ä", "fn", "serde", &long] {
            assert!(bad.parse::<PluginName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_in_a_folder_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("taken");
        fs::create_dir(&taken).unwrap();
        fs::write(taken.join("kept"), "mine").unwrap();
        let error = run(&Args { dir: Some(taken.clone()), ..args("a", Kind::Handler, Language::Js) }).unwrap_err();
        assert!(error.to_string().contains("is not empty"), "{error}");
        let error =
            run(&Args { dir: Some(taken.join("kept")), ..args("a", Kind::Handler, Language::Js) }).unwrap_err();
        assert!(error.to_string().contains("is not a folder"), "{error}");
        assert_eq!(fs::read_dir(&taken).unwrap().count(), 1);
    }

    #[test]
    fn every_project_is_whole() {
        for lang in [Language::Rust, Language::Python, Language::Js] {
            for kind in [Kind::Handler, Kind::Publisher] {
                let folder = tempfile::tempdir().unwrap();
                let dir = folder.path().join("deep/count-orders");
                run(&Args { dir: Some(dir.clone()), ..args("count-orders", kind, lang) }).unwrap();
                for file in templates::of(lang, kind) {
                    let text = fs::read_to_string(dir.join(file.path)).unwrap();
                    assert!(!text.contains("{{"), "{lang:?} {kind:?} {}: {text}", file.path);
                }
                let manifest = fs::read_to_string(dir.join("manifest.json")).unwrap();
                let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
                assert_eq!(manifest["name"], "count-orders");
                crate::config::Config::load(&dir.join("laneway.toml"), None).unwrap();
            }
        }
    }

    #[test]
    fn the_templates_speak_the_contract_of_this_version() {
        let package = templates::WIT.lines().find_map(|line| line.strip_prefix("package laneway:plugin@")).unwrap();
        let version = format!("@{}", package.trim_end_matches(';'));
        for kind in [Kind::Handler, Kind::Publisher] {
            for file in templates::of(Language::Js, kind).iter().filter(|file| file.path.ends_with("plugin.js")) {
                let imports: Vec<_> = file.text.lines().filter(|line| line.contains("'laneway:plugin/")).collect();
                assert!(!imports.is_empty());
                assert!(imports.iter().all(|import| import.contains(&version)), "{imports:?}");
            }
        }
    }
}
