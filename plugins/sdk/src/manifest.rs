//! What [`manifest!`](crate::manifest!) makes its JSON with, while the plugin is compiled. Only the macro is for use.

/// Says what a plugin asks for, in the custom section `laneway-manifest` of its module. Nothing happens when the
/// plugin runs.
///
/// The name and the version are those of the package; `name: "..."` and `version: "..."` say otherwise. All else is
/// asked for only where it stands here, and given only as far as the operator grants it:
///
/// | ask | value |
/// |---|---|
/// | `http` | origins that requests go to: `["https://api.example.com"]`; `["*"]`: all that is granted |
/// | `emit` | patterns of topics that a handler sends to: `["orders.>"]`; `[">"]`: all that is granted |
/// | `state` | `true`: the state of the subscription, and its counters |
/// | `secrets` | names: `["API_TOKEN"]`; `["*"]`: all that is granted |
/// | `config` | keys that it cannot do without: `["url"]`; it may read others too |
/// | `clocks`, `random` | `true`: the time of day, and random numbers |
///
/// A plugin without a manifest asks for whatever is granted. `docs/plugin-manifest.md` has the JSON.
///
/// ```
/// laneway_sdk::manifest! {
///     emit: ["alerts.delay", "orders.>"],
///     state: true,
///     config: ["threshold"],
/// }
/// ```
///
/// Most of what cannot be right does not compile: a pattern that is none, an origin without a scheme, an ask that there is
/// not, the same ask twice, a second manifest in a module. The rest, such as a host that no grant could name, is refused
/// when the component is packed or loaded.
///
/// ```compile_fail
/// laneway_sdk::manifest! { emit: ["orders..created"] }
/// ```
/// ```compile_fail
/// laneway_sdk::manifest! { http: ["api.example.com"] }
/// ```
/// ```compile_fail
/// laneway_sdk::manifest! { files: ["/etc"] }
/// ```
/// ```compile_fail
/// laneway_sdk::manifest! { state: true, state: false }
/// ```
/// ```compile_fail
/// laneway_sdk::manifest! {}
/// laneway_sdk::manifest! {}
/// ```
#[macro_export]
macro_rules! manifest {
    ($($ask:ident : $asked:expr),* $(,)?) => {
        // The linker would put two sections of one name into one, which would be no JSON.
        #[doc(hidden)]
        mod laneway_manifest_is_there_once {}

        const _: () = {
            const MANIFEST: $crate::manifest::Manifest = $crate::manifest::Manifest::new(
                ::core::env!("CARGO_PKG_NAME"),
                ::core::env!("CARGO_PKG_VERSION"),
            )
            $(.$ask(&$asked))*
            .checked();
            const JSON: [u8; MANIFEST.json_bytes()] = MANIFEST.json();

            // Not `#[used]`, which would put it into the guest's memory as well.
            #[cfg(target_family = "wasm")]
            #[unsafe(link_section = "laneway-manifest")]
            #[expect(dead_code, reason = "the linker's, and nobody else's")]
            static SECTION: [u8; MANIFEST.json_bytes()] = JSON;
            // Elsewhere there are no such sections, and it is only checked.
            #[cfg(not(target_family = "wasm"))]
            const _: [u8; MANIFEST.json_bytes()] = JSON;
        };
    };
}

type Texts = &'static [&'static str];

/// A manifest. What is not asked for is `None`.
#[derive(Debug, Clone, Copy)]
pub struct Manifest {
    name: Option<&'static str>,
    version: Option<&'static str>,
    package: [&'static str; 2],
    http: Option<Texts>,
    emit: Option<Texts>,
    state: Option<bool>,
    secrets: Option<Texts>,
    config: Option<Texts>,
    clocks: Option<bool>,
    random: Option<bool>,
}

macro_rules! asks {
    ($($ask:ident: $type:ty),*) => {
        $(
            #[doc = concat!("Sets `", stringify!($ask), "`.")]
            #[must_use]
            pub const fn $ask(mut self, asked: &$type) -> Self {
                assert!(self.$ask.is_none(), concat!("manifest: `", stringify!($ask), "` stands twice"));
                self.$ask = Some(*asked);
                self
            }
        )*
    };
}

macro_rules! asks_of_texts {
    ($($ask:ident),*) => {
        $(
            #[doc = concat!("Sets `", stringify!($ask), "`.")]
            #[must_use]
            pub const fn $ask(mut self, asked: Texts) -> Self {
                assert!(self.$ask.is_none(), concat!("manifest: `", stringify!($ask), "` stands twice"));
                self.$ask = Some(asked);
                self
            }
        )*
    };
}

impl Manifest {
    /// A manifest that asks for nothing.
    #[must_use]
    pub const fn new(name: &'static str, version: &'static str) -> Self {
        Self {
            name: None,
            version: None,
            package: [name, version],
            http: None,
            emit: None,
            state: None,
            secrets: None,
            config: None,
            clocks: None,
            random: None,
        }
    }

    asks! { name: &'static str, version: &'static str, state: bool, clocks: bool, random: bool }
    asks_of_texts! { http, emit, secrets, config }

    const fn called(&self) -> [&'static str; 2] {
        let [name, version] = self.package;
        [
            match self.name {
                Some(name) => name,
                None => name,
            },
            match self.version {
                Some(version) => version,
                None => version,
            },
        ]
    }

    /// The same manifest.
    ///
    /// # Panics
    /// If something in it cannot be right; this is an error of the compiler's, then.
    #[must_use]
    pub const fn checked(self) -> Self {
        let [name, version] = self.called();
        assert!(name.len() <= 200, "manifest: the name has over 200 bytes");
        assert!(version.len() <= 64, "manifest: the version has over 64 bytes");
        check_text(name, b"_-.", "manifest: the name is empty, or has other characters than A-Z a-z 0-9 _ - .");
        check_text(
            version,
            b"-.+",
            "manifest: the version is empty, or has other characters than A-Z a-z 0-9 - . +",
        );
        let mut each = Each::of(self.http);
        while let Some(origin) = each.next() {
            check_origin(origin.as_bytes());
        }
        let mut each = Each::of(self.emit);
        while let Some(pattern) = each.next() {
            check_pattern(pattern.as_bytes());
        }
        let mut each = Each::of(self.secrets);
        while let Some(secret) = each.next() {
            if !is_all(secret) {
                let wrong =
                    "manifest: a name in `secrets` is empty, or has other characters than A-Z a-z 0-9 _ - .";
                check_text(secret, b"_-.", wrong);
            }
        }
        let mut each = Each::of(self.config);
        while let Some(key) = each.next() {
            assert!(!key.is_empty(), "manifest: a key in `config` is empty");
            assert!(
                !is_all(key),
                "manifest: `*` in `config` is no key; name those that the plugin cannot do without"
            );
        }
        self
    }

    /// Size of the JSON.
    #[must_use]
    pub const fn json_bytes(&self) -> usize {
        self.write(Writer::<0>::new()).len
    }

    /// The JSON, of the size that [`json_bytes`](Self::json_bytes) says.
    #[must_use]
    pub const fn json<const N: usize>(&self) -> [u8; N] {
        self.write(Writer::<N>::new()).bytes
    }

    const fn write<const N: usize>(&self, mut to: Writer<N>) -> Writer<N> {
        let [name, version] = self.called();
        to.text("{\"name\":");
        to.string(name);
        to.text(",\"version\":");
        to.string(version);
        to.text(",\"asks\":{");
        let empty = to.len;
        to.texts("http", self.http, empty);
        to.texts("emit", self.emit, empty);
        to.flag("state", self.state, empty);
        to.texts("secrets", self.secrets, empty);
        to.texts("config", self.config, empty);
        to.flag("clocks", self.clocks, empty);
        to.flag("random", self.random, empty);
        to.text("}}");
        to
    }
}

/// Texts one after the other: a loop of constants knows no iterators.
struct Each {
    texts: Texts,
    place: usize,
}

impl Each {
    const fn of(texts: Option<Texts>) -> Self {
        Self {
            texts: match texts {
                Some(texts) => texts,
                None => &[],
            },
            place: 0,
        }
    }

    const fn next(&mut self) -> Option<&'static str> {
        if self.place == self.texts.len() {
            return None;
        }
        self.place += 1;
        Some(self.texts[self.place - 1])
    }
}

/// Whether a text stands for all that is granted.
const fn is_all(text: &str) -> bool {
    matches!(text.as_bytes(), b"*")
}

const fn is_one_of(byte: u8, bytes: &[u8]) -> bool {
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == byte {
            return true;
        }
        i += 1;
    }
    false
}

/// Panics with what is wrong unless a text consists of letters, digits and these bytes.
const fn check_text(text: &str, further: &[u8], wrong: &'static str) {
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        panic!("{}", wrong);
    }
    let mut i = 0;
    while i < bytes.len() {
        if !(bytes[i].is_ascii_alphanumeric() || is_one_of(bytes[i], further)) {
            panic!("{}", wrong);
        }
        i += 1;
    }
}

/// `*`, or scheme, host and port.
const fn check_origin(origin: &[u8]) {
    let mut rest = match origin {
        b"*" => return,
        [b'h', b't', b't', b'p', b's', b':', b'/', b'/', rest @ ..] => rest,
        [b'h', b't', b't', b'p', b':', b'/', b'/', rest @ ..] => rest,
        _ => panic!("manifest: an origin in `http` has no scheme; write it like `https://api.example.com`"),
    };
    assert!(!rest.is_empty(), "manifest: an origin in `http` has no host; write it like `https://api.example.com`");
    while let [byte, more @ ..] = rest {
        assert!(
            byte.is_ascii_alphanumeric() || is_one_of(*byte, b"-_.:*[]"),
            "manifest: an origin in `http` is scheme, host and port, without path; write it like \
             `https://api.example.com:8443`"
        );
        rest = more;
    }
}

/// A pattern of topics: segments between dots, `*` for one and a last `>` for all that remain.
const fn check_pattern(pattern: &[u8]) {
    assert!(pattern.len() <= 255, "manifest: a pattern in `emit` has over 255 bytes");
    let mut segment = 0;
    let mut wild = false;
    let mut i = 0;
    while i <= pattern.len() {
        if i == pattern.len() || pattern[i] == b'.' {
            assert!(segment > 0, "manifest: a pattern in `emit` has an empty segment; write it like `orders.>`");
            assert!(
                !wild || segment == 1,
                "manifest: a pattern in `emit` mixes a wildcard with other characters; `*` and `>` stand for whole \
                 segments"
            );
            (segment, wild) = (0, false);
        } else {
            let byte = pattern[i];
            assert!(
                byte.is_ascii_alphanumeric() || is_one_of(byte, b"_-*>"),
                "manifest: a pattern in `emit` has other characters than A-Z a-z 0-9 _ - * >"
            );
            assert!(
                byte != b'>' || i + 1 == pattern.len(),
                "manifest: a pattern in `emit` has `>` before its end; `>` stands for all remaining segments"
            );
            segment += 1;
            wild = wild || byte == b'*' || byte == b'>';
        }
        i += 1;
    }
}

/// Takes bytes as far as there is room, and counts all.
struct Writer<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Writer<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    const fn byte(&mut self, byte: u8) {
        if self.len < N {
            self.bytes[self.len] = byte;
        }
        self.len += 1;
    }

    const fn text(&mut self, text: &str) {
        let mut rest = text.as_bytes();
        while let [byte, more @ ..] = rest {
            self.byte(*byte);
            rest = more;
        }
    }

    /// A text as JSON has it.
    const fn string(&mut self, text: &str) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        self.byte(b'"');
        let mut rest = text.as_bytes();
        while let [byte, more @ ..] = rest {
            match *byte {
                b'"' | b'\\' => {
                    self.byte(b'\\');
                    self.byte(*byte);
                }
                control @ 0..0x20 => {
                    self.text("\\u00");
                    self.byte(HEX[(control >> 4) as usize]);
                    self.byte(HEX[(control & 15) as usize]);
                }
                byte => self.byte(byte),
            }
            rest = more;
        }
        self.byte(b'"');
    }

    const fn name(&mut self, ask: &str, empty: usize) {
        if self.len > empty {
            self.byte(b',');
        }
        self.string(ask);
        self.byte(b':');
    }

    const fn texts(&mut self, ask: &str, texts: Option<Texts>, empty: usize) {
        if texts.is_none() {
            return;
        }
        self.name(ask, empty);
        self.byte(b'[');
        let start = self.len;
        let mut each = Each::of(texts);
        while let Some(text) = each.next() {
            if self.len > start {
                self.byte(b',');
            }
            self.string(text);
        }
        self.byte(b']');
    }

    const fn flag(&mut self, ask: &str, flag: Option<bool>, empty: usize) {
        if let Some(flag) = flag {
            self.name(ask, empty);
            self.text(if flag { "true" } else { "false" });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The size is one of the constant's own: as long as the text may be, and cut to what it is.
    fn read(manifest: Manifest) -> Value {
        let bytes: [u8; 1024] = manifest.checked().json();
        serde_json::from_slice(&bytes[..manifest.json_bytes()]).unwrap()
    }

    #[test]
    fn only_what_is_asked_for_stands_there() {
        let manifest = Manifest::new("quiet", "1.2.3-rc.1+build");
        assert_eq!(read(manifest), json!({"name": "quiet", "version": "1.2.3-rc.1+build", "asks": {}}));
    }

    #[test]
    fn every_ask_is_written() {
        const MANIFEST: Manifest = Manifest::new("package", "0.1.0")
            .random(&true)
            .clocks(&true)
            .config(&["url", "ä \"quoted\" \\ \t"])
            .secrets(&["API_TOKEN", "*"])
            .state(&false)
            .emit(&["orders.>", "a.*.b", ">", "*"])
            .http(&["https://api.example.com", "http://[::1]:80", "https://*.example.com", "*"])
            .version(&"2.0.0")
            .name(&"other")
            .checked();
        const JSON: [u8; MANIFEST.json_bytes()] = MANIFEST.json();
        let wanted = json!({
            "name": "other",
            "version": "2.0.0",
            "asks": {
                "http": ["https://api.example.com", "http://[::1]:80", "https://*.example.com", "*"],
                "emit": ["orders.>", "a.*.b", ">", "*"],
                "state": false,
                "secrets": ["API_TOKEN", "*"],
                "config": ["url", "ä \"quoted\" \\ \t"],
                "clocks": true,
                "random": true,
            },
        });
        assert_eq!(serde_json::from_slice::<Value>(&JSON).unwrap(), wanted);
    }

    #[test]
    fn what_cannot_be_right_is_refused_and_the_words_say_what() {
        let refused = |make: fn() -> Manifest| {
            let panic = std::panic::catch_unwind(|| make().checked()).unwrap_err();
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap()
        };
        const ONE: Manifest = Manifest::new("one", "1");
        assert!(refused(|| Manifest::new("", "1")).contains("the name is empty"));
        assert!(refused(|| ONE.name(&"a b")).contains("the name"));
        assert!(refused(|| ONE.version(&"1 2")).contains("the version"));
        assert!(refused(|| ONE.state(&true).state(&true)).contains("`state` stands twice"));
        assert!(refused(|| ONE.http(&["api.example.com"])).contains("has no scheme"));
        assert!(refused(|| ONE.http(&["https://"])).contains("has no host"));
        assert!(refused(|| ONE.http(&["https://a.example/path"])).contains("without path"));
        assert!(refused(|| ONE.http(&["https://user@a.example"])).contains("without path"));
        for pattern in ["", ".", "a..b", "a.", ".a"] {
            let make = move |pattern: &'static str| {
                let patterns: Texts = Box::leak(Box::new([pattern]));
                std::panic::catch_unwind(|| ONE.emit(patterns).checked()).is_err()
            };
            assert!(make(pattern), "{pattern}");
        }
        assert!(refused(|| ONE.emit(&["a.b>"])).contains("mixes a wildcard"));
        assert!(refused(|| ONE.emit(&["a*.b"])).contains("mixes a wildcard"));
        assert!(refused(|| ONE.emit(&["a.>.b"])).contains("before its end"));
        assert!(refused(|| ONE.emit(&["a b"])).contains("other characters"));
        assert!(refused(|| ONE.secrets(&["{TOKEN}"])).contains("`secrets`"));
        assert!(refused(|| ONE.config(&[""])).contains("`config` is empty"));
        assert!(refused(|| ONE.config(&["*"])).contains("is no key"));
    }
}
