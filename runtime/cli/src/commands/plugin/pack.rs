//! `laneway plugin pack`: a component with its manifest in it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use laneway_host::Manifest;
use serde::Serialize;

use crate::{Shared, output};

#[derive(clap::Args)]
pub struct Args {
    /// The component
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The manifest: JSON with `name`, `version` and `asks`
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// Where to write the component with its manifest. Default: over the component
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Serialize)]
struct Packed<'a> {
    file: String,
    bytes: usize,
    manifest: &'a Manifest,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let component = std::fs::read(&args.file).with_context(|| format!("failed to read {}", args.file.display()))?;
    let json =
        std::fs::read(&args.manifest).with_context(|| format!("failed to read {}", args.manifest.display()))?;
    let manifest = Manifest::from_json(&json).with_context(|| args.manifest.display().to_string())?;
    let packed = Manifest::embed(&component, &manifest).with_context(|| args.file.display().to_string())?;
    let output = args.output.as_ref().unwrap_or(&args.file);
    // Beside it first: who reads the file meanwhile finds one of the two, whole.
    let mut beside = output.clone().into_os_string();
    beside.push(".tmp");
    std::fs::write(&beside, &packed)
        .and_then(|()| std::fs::rename(&beside, output))
        .with_context(|| format!("failed to write {}", output.display()))?;
    if shared.json {
        return output::json(&Packed {
            file: output.display().to_string(),
            bytes: packed.len(),
            manifest: &manifest,
        });
    }
    output::line(&format!("{}: {}@{}, {} bytes", output.display(), manifest.name, manifest.version, packed.len()))
}
