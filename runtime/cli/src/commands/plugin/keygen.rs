//! `laneway plugin keygen`: a pair of keys in minisign's format.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use laneway_host::PublicKeys;
use minisign::KeyPair;
use serde::Serialize;

use super::signature::{create_private, create_public, new_password, with_suffix};
use crate::{Shared, output};

#[derive(clap::Args)]
#[command(after_help = "The password is read from LANEWAY_SIGN_PASSWORD, or asked for on the terminal.")]
pub struct Args {
    /// Makes NAME.key, which signs and stays secret, and NAME.pub, which checks
    #[arg(long, value_name = "NAME")]
    out: PathBuf,
    /// Protect the secret key by nothing but the mode of its file
    #[arg(long)]
    no_password: bool,
}

/// What was made.
#[derive(Serialize)]
struct Made {
    key: String,
    secret: PathBuf,
    public: PathBuf,
    public_key: String,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let (secret, public) = (with_suffix(&args.out, ".key"), with_suffix(&args.out, ".pub"));
    // Before a password is asked for.
    for path in [&secret, &public] {
        ensure!(
            !path.exists(),
            "{} is there already, and a key is not written over; give another --out",
            path.display()
        );
    }
    let pair = if args.no_password {
        KeyPair::generate_unencrypted_keypair()
    } else {
        KeyPair::generate_encrypted_keypair(Some(new_password()?))
    }
    .context("failed to make a pair of keys")?;
    let public_key = pair.pk.to_base64();
    let key = PublicKeys::parse(std::slice::from_ref(&public_key))?.ids()[0].to_string();
    let encrypted = if args.no_password { "" } else { "encrypted " };
    let comment = format!("{encrypted}secret key {key} of laneway plugin keygen");
    create_private(&secret, &pair.sk.to_box(Some(&comment))?.into_string())?;
    create_public(&public, &format!("untrusted comment: minisign public key {key}\n{public_key}\n"))?;
    if shared.json {
        return output::json(&Made { key, secret, public, public_key });
    }
    output::line(&format!("key {key}: {} signs, keep it secret; {} checks", secret.display(), public.display()))?;
    output::line("nodes that ask for its signature have in laneway.toml:")?;
    output::line(&format!("[plugins]\nrequire_signatures = [\"{public_key}\"]"))
}
