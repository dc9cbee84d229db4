//! What can go wrong before a message is run: with the host itself, and with a component that is to be deployed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use laneway_core::{ErrorText, Name, Reason, SubscriptionKind};

use crate::outcome;

/// The host could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// An option is out of its range.
    #[error("host option `{option}` is {value}; it must be {wants}")]
    Option {
        /// Which option.
        option: &'static str,
        /// The value given.
        value: u64,
        /// What is accepted, in words.
        wants: &'static str,
    },
    /// The engine refused its configuration, or a linker could not be made.
    #[error("set up the WebAssembly engine: {0}")]
    Engine(String),
    /// The ticker's thread could not be started.
    #[error("start the thread that interrupts guests: {0}")]
    Ticker(#[source] io::Error),
    /// The cache's directory or key cannot be used.
    #[error("use the cache of compiled plugins at {path}: {source}")]
    Cache {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A plugin that is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// The bytes are no WebAssembly at all.
    #[error(
        "the file is not WebAssembly ({bytes} bytes); give a component, a `.wasm` file that a guest build makes"
    )]
    NotWebAssembly {
        /// Size of what was given.
        bytes: usize,
    },
    /// A core module rather than a component.
    #[error(
        "the file is a core WebAssembly module, not a component; build it for `wasm32-wasip2`, or wrap it with \
         `wasm-tools component new`"
    )]
    CoreModule,
    /// The component is larger than the host accepts.
    #[error("the component has {bytes} bytes; at most {max} are accepted (`component_bytes_max`)")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The component is not valid, or needs more than the engine offers.
    #[error("the component does not compile: {0}")]
    Compile(String),
    /// It does not export what its subscription needs.
    #[error(
        "the component is no {}: it exports {exports}, and a {} exports {}",
        kind.as_str(),
        kind.as_str(),
        needs.join(" and ")
    )]
    WrongWorld {
        /// What it was to be.
        kind: SubscriptionKind,
        /// What that needs.
        needs: Vec<&'static str>,
        /// What it exports, in words.
        exports: String,
    },
    /// It imports what the operator has not granted.
    #[error("the component imports `{import}`, which it is not given; to give it, add {grant}")]
    NotGranted {
        /// The import's name.
        import: String,
        /// The line of configuration that grants it.
        grant: &'static str,
    },
    /// Its manifest is not usable.
    #[error("the component's manifest: {0}")]
    Manifest(String),
    /// Its manifest asks for more than it is given, and it cannot do without.
    #[error(
        "the plugin {plugin} asks for {}, which the subscription `{subscription}` does not give; to give it, write \
         there: {}",
        missing.join(", "),
        lines.join("; ")
    )]
    Ungranted {
        /// The plugin's name and version.
        plugin: String,
        /// What it is not given.
        missing: Vec<String>,
        /// Which subscription runs it.
        subscription: Name,
        /// The lines of configuration that give it.
        lines: Vec<String>,
    },
    /// Its configuration names a secret that it cannot have.
    #[error("the configuration `{key}` names the secret `{name}`: {wrong}")]
    Secret {
        /// The configuration's key.
        key: String,
        /// The secret's name.
        name: String,
        /// What is wrong, and what mends it.
        wrong: String,
    },
    /// A publisher that imports effects.
    #[error(
        "the component imports `{import}`, which handlers have and publishers have not: a publisher's messages are \
         settled in batches, with no state of their own"
    )]
    HandlersOnly {
        /// The import's name.
        import: String,
    },
    /// It imports what no plugin can get.
    #[error("the component imports `{import}`, which this host does not offer; no grant allows it")]
    UnknownImport {
        /// The import's name.
        import: String,
    },
    /// It was built against a version that this host does not speak.
    #[error("the component imports `{import}`; this host speaks version {speaks} of that interface")]
    Version {
        /// The import's name.
        import: String,
        /// What the host has.
        speaks: &'static str,
    },
    /// Names fit, but types or functions do not.
    #[error("the component does not fit the host's interfaces: {0}")]
    Mismatch(String),
    /// It needs more from the start than its limits allow, or the limits exceed the host's.
    #[error("{what} is {needs}, and {limit} allows {max}")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// What it is.
        needs: u64,
        /// Which limit.
        limit: &'static str,
        /// The limit's value.
        max: u64,
    },
    /// Its code is made in a way that would take the compiler too long, or too much memory.
    #[error(
        "the component is not compiled: {what} {needs}, and at most {max} are accepted; what a compiler makes of \
         ordinary sources stays far below, so look for code that a tool generated"
    )]
    Shape {
        /// What there is too much of, in words that a number follows.
        what: &'static str,
        /// How much there is.
        needs: u64,
        /// How much may be.
        max: u64,
    },
    /// Compiling it took longer than it may.
    #[error(
        "the component is not compiled: the compiler took more than {} seconds of processor time \
         (`compile_time_max`)",
        max.as_secs()
    )]
    CompileTime {
        /// What it may take.
        max: Duration,
    },
    /// Compiling it took more memory than it may.
    #[error(
        "the component is not compiled: the compiler needs more than {max} bytes of memory \
         (`compile_memory_bytes_max`)"
    )]
    CompileMemory {
        /// What it may take, in bytes.
        max: u64,
    },
    /// The process that compiles did not start, or was ended from outside.
    #[error(
        "the component is not compiled, for want of a process to do it in: {error}; the node has to be free to start \
         {} once more, beside itself",
        program.display()
    )]
    CompilerProcess {
        /// What was to run there.
        program: PathBuf,
        /// What happened.
        error: String,
    },
    /// More machine code than the host takes.
    #[error("the component is not accepted: compiled, it has more than {max} bytes")]
    CodeSize {
        /// What may be, in bytes.
        max: u64,
    },
    /// Outgoing HTTP could not be set up.
    #[error("set up outgoing HTTP: {0}")]
    Http(String),
    /// The plugin does not accept its configuration.
    #[error("the plugin does not accept its configuration: {}", errors.join("; "))]
    Invalid {
        /// What it says is wrong.
        errors: Vec<String>,
    },
    /// The check of the configuration did not come to an end.
    #[error("the plugin failed while it checked its configuration ({reason}): {error}")]
    Validate {
        /// How it failed.
        reason: Reason,
        /// In words.
        error: ErrorText,
    },
    /// Its configuration could not be checked, for want of an instance to do it in, or for another trouble of the node's.
    #[error("the plugin could not check its configuration, for a reason that is not its own: {error}")]
    Busy {
        /// In words.
        error: ErrorText,
    },
}

impl PluginError {
    /// What the compiler says, which may quote the component: on one line, and not too long for where it is shown.
    pub(crate) fn compile(text: impl AsRef<str>) -> Self {
        Self::Compile(outcome::one_line(text.as_ref()).to_string())
    }

    /// Whether the node could not try, rather than the component be refused: what is tried again may succeed.
    #[must_use]
    pub fn is_of_the_node(&self) -> bool {
        matches!(self, Self::CompilerProcess { .. } | Self::Busy { .. })
    }
}
