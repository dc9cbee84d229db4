//! The files of a new project, as they are in `runtime/cli/templates`. What is in double braces is filled in.

use super::new::{Kind, Language};

/// The contract, which projects without an SDK bring along.
pub const WIT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit/laneway.wit"));

/// One file of a project.
#[derive(Clone, Copy)]
pub struct File {
    /// Where it goes, in the project's folder.
    pub path: &'static str,
    pub text: &'static str,
    pub executable: bool,
}

macro_rules! template {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/templates/", $path))
    };
}

macro_rules! file {
    ($path:literal <- $from:literal) => {
        File { path: $path, text: template!($from), executable: false }
    };
    ($path:literal <- $from:literal, executable) => {
        File { path: $path, text: template!($from), executable: true }
    };
}

const PYTHON: &[File] = &[
    file!(".gitignore" <- "python/gitignore"),
    file!("README.md" <- "python/README.md"),
    file!("build.sh" <- "python/build.sh", executable),
    file!("requirements.txt" <- "python/requirements.txt"),
    file!("src/failures.py" <- "python/failures.py"),
    file!("test.sh" <- "python/test.sh", executable),
    File { path: "wit/laneway.wit", text: WIT, executable: false },
];

const JS: &[File] = &[
    file!(".gitignore" <- "js/gitignore"),
    file!("README.md" <- "js/README.md"),
    file!("build.js" <- "js/build.js"),
    file!("package.json" <- "js/package.json.in"),
    file!("package-lock.json" <- "js/package-lock.json.in"),
    file!("src/failures.js" <- "js/failures.js"),
    File { path: "wit/laneway.wit", text: WIT, executable: false },
];

const RUST: &[File] = &[
    file!(".cargo/config.toml" <- "rust/config.toml.in"),
    file!(".gitignore" <- "rust/gitignore"),
    file!("Cargo.toml" <- "rust/Cargo.toml.in"),
    file!("README.md" <- "rust/README.md"),
];

/// All files of a project.
pub fn of(language: Language, kind: Kind) -> Vec<File> {
    let common = match language {
        Language::Rust => RUST,
        Language::Python => PYTHON,
        Language::Js => JS,
    };
    let own: &[File] = match (language, kind) {
        (Language::Rust, Kind::Handler) => &[
            file!("laneway.toml" <- "rust/handler/laneway.toml"),
            file!("manifest.json" <- "rust/handler/manifest.json"),
            file!("src/lib.rs" <- "rust/handler/lib.rs"),
        ],
        (Language::Rust, Kind::Publisher) => &[
            file!("laneway.toml" <- "rust/publisher/laneway.toml"),
            file!("manifest.json" <- "rust/publisher/manifest.json"),
            file!("src/lib.rs" <- "rust/publisher/lib.rs"),
        ],
        (Language::Python, Kind::Handler) => &[
            file!("laneway.toml" <- "python/handler/laneway.toml"),
            file!("manifest.json" <- "python/handler/manifest.json"),
            file!("src/logic.py" <- "python/handler/logic.py"),
            file!("src/plugin.py" <- "python/handler/plugin.py"),
            file!("tests/test_logic.py" <- "python/handler/test_logic.py"),
        ],
        (Language::Python, Kind::Publisher) => &[
            file!("laneway.toml" <- "python/publisher/laneway.toml"),
            file!("manifest.json" <- "python/publisher/manifest.json"),
            file!("src/logic.py" <- "python/publisher/logic.py"),
            file!("src/plugin.py" <- "python/publisher/plugin.py"),
            file!("tests/test_logic.py" <- "python/publisher/test_logic.py"),
        ],
        (Language::Js, Kind::Handler) => &[
            file!("laneway.toml" <- "js/handler/laneway.toml"),
            file!("manifest.json" <- "js/handler/manifest.json"),
            file!("src/logic.js" <- "js/handler/logic.js"),
            file!("src/plugin.js" <- "js/handler/plugin.js"),
            file!("tests/logic.test.js" <- "js/handler/logic.test.js"),
        ],
        (Language::Js, Kind::Publisher) => &[
            file!("laneway.toml" <- "js/publisher/laneway.toml"),
            file!("manifest.json" <- "js/publisher/manifest.json"),
            file!("src/logic.js" <- "js/publisher/logic.js"),
            file!("src/plugin.js" <- "js/publisher/plugin.js"),
            file!("tests/logic.test.js" <- "js/publisher/logic.test.js"),
        ],
    };
    [common, own].concat()
}
