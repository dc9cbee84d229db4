//! `laneway plugin`: components in the database, and which of them is at work.

pub mod deploy;
mod drain;
mod inspect;
mod keygen;
mod list;
pub mod new;
mod pack;
mod push;
mod remove;
mod rollback;
mod sign;
pub mod signature;
mod status;
mod templates;
mod test;

use anyhow::{Context, Result, bail};
use laneway_core::{DeploymentState, Name, PluginVersion, Store};

use crate::Shared;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Make a project for a new plugin
    New(new::Args),
    /// Store a component in the database, where every node gets it
    Push(push::Args),
    /// List the stored components
    List,
    /// Show what a component is, what it asks for and what it would get
    Inspect(inspect::Args),
    /// Put a version to work, at once or on trial with a share of the messages
    Deploy(deploy::Args),
    /// Go back to the version before, or end a trial
    Rollback(rollback::Args),
    /// Take a plugin off its work; its messages wait until a version is deployed
    Drain(drain::Args),
    /// Remove a stored component that is not at work
    Remove(remove::Args),
    /// Show which versions are at work, and what their attempts came to
    Status(status::Args),
    /// Put a manifest into a component
    Pack(pack::Args),
    /// Make a pair of keys that sign plugins
    Keygen(keygen::Args),
    /// Sign a plugin, for nodes that ask for signatures
    Sign(sign::Args),
    /// Run a plugin once in the sandbox, with nothing behind it, and show what it does
    Test(test::Args),
}

pub async fn run(shared: &Shared, command: Command) -> Result<()> {
    match command {
        Command::New(args) => new::run(&args),
        Command::Keygen(args) => keygen::run(shared, args).await,
        Command::Sign(args) => sign::run(shared, args).await,
        Command::Test(args) => test::run(shared, args).await,
        Command::Pack(args) => pack::run(shared, args).await,
        Command::Push(args) => push::run(shared, args).await,
        Command::List => list::run(shared).await,
        Command::Inspect(args) => inspect::run(shared, args).await,
        Command::Deploy(args) => deploy::run(shared, args).await,
        Command::Rollback(args) => rollback::run(shared, args).await,
        Command::Drain(args) => drain::run(shared, args).await,
        Command::Remove(args) => remove::run(shared, args).await,
        Command::Status(args) => status::run(shared, args).await,
    }
}

/// The version that a text means: `name@version`, or a name alone for the one that was pushed last.
async fn resolve(store: &dyn Store, text: &str) -> Result<PluginVersion> {
    if text.contains('@') {
        return Ok(text.parse()?);
    }
    let name = Name::parse(text)?;
    // The newest of each plugin comes first.
    let newest = store.plugins().await?.into_iter().find(|stored| stored.plugin.name == name);
    let newest =
        newest.with_context(|| format!("no version of `{name}` is stored; `laneway plugin push` stores one"))?;
    Ok(newest.plugin)
}

/// Moves a deployment on. Fails if somebody else was faster.
async fn step(
    store: &dyn Store,
    deployment: i64,
    from: DeploymentState,
    to: DeploymentState,
    reason: Option<&str>,
) -> Result<()> {
    if !store.advance(deployment, from, to, reason).await? {
        bail!("deployment {deployment} was changed by someone else meanwhile; `laneway plugin status` shows it");
    }
    Ok(())
}

fn nothing_at_work(plugin: &Name) -> anyhow::Error {
    anyhow::anyhow!(
        "no version of `{plugin}` is at work; `laneway plugin status` shows what is, and `laneway plugin deploy {plugin}` \
         puts it to work"
    )
}
