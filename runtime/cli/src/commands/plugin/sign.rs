//! `laneway plugin sign`: a signature in minisign's format, beside the component.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use laneway_host::PublicKeys;
use minisign::PublicKey;
use serde::Serialize;

use super::signature::{path_of, secret_key};
use crate::{Shared, output};

/// Longest comment, in bytes: well within what minisign reads.
const COMMENT_BYTES_MAX: usize = 1000;

#[derive(clap::Args)]
#[command(
    after_help = "The password of the key is read from LANEWAY_SIGN_PASSWORD, or asked for on the terminal. Sign what \
    is finished: a manifest packed into it later is a change like any other."
)]
pub struct Args {
    /// The component
    file: PathBuf,
    /// Secret key, made by `laneway plugin keygen` or `minisign -G`
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Where to write the signature [default: the component's name with `.minisig` behind it]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A line that is signed too [default: the time and the component's name]
    #[arg(long, value_name = "TEXT", value_parser = parse_comment)]
    comment: Option<String>,
}

fn parse_comment(text: &str) -> Result<String, String> {
    if text.len() > COMMENT_BYTES_MAX {
        return Err(format!("it has {} bytes; at most {COMMENT_BYTES_MAX} are allowed", text.len()));
    }
    if text.contains(|c: char| c.is_control() && c != '\t') {
        return Err("it is one line, without control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// What was signed.
#[derive(Serialize)]
struct Signed {
    signature: PathBuf,
    key: String,
    comment: String,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let bytes = std::fs::read(&args.file).with_context(|| format!("failed to read {}", args.file.display()))?;
    let secret = secret_key(&args.key)?;
    let public = PublicKey::from_secret_key(&secret)?;
    let keys = PublicKeys::parse(&[public.to_base64()])?;
    let comment = args.comment.unwrap_or_else(|| default_comment(&args.file));
    let untrusted = format!("signature from laneway with key {}", keys.ids()[0]);
    let signature = minisign::sign(Some(&public), &secret, &bytes[..], Some(&comment), Some(&untrusted))
        .with_context(|| format!("failed to sign with {}", args.key.display()))?
        .into_string();
    // What a node would refuse is not handed out.
    let key =
        keys.check(&bytes, Some(&signature)).context("failed to check the signature that was made")?.to_string();
    let path = args.out.unwrap_or_else(|| path_of(&args.file));
    std::fs::write(&path, signature).with_context(|| format!("failed to write {}", path.display()))?;
    if shared.json {
        return output::json(&Signed { signature: path, key, comment });
    }
    output::line(&format!("{} signed with key {key}: {}", args.file.display(), path.display()))
}

/// As minisign writes it.
fn default_comment(file: &Path) -> String {
    let seconds = jiff::Timestamp::now().as_second();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("timestamp:{seconds}\tfile:{name}\thashed")
}
