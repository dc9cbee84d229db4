//! What a component says of itself: its name, its version, and what it asks for. Read from a custom section before
//! any code of it runs.

use std::fmt;

use hyper::Method;
use laneway_core::{InvalidName, Name, TopicPattern};
use serde::{Deserialize, Serialize};
use wasmparser::{Parser, Payload};

use crate::error::PluginError;
use crate::grant::{HttpGrant, InvalidGrant, Written};

/// Name of the section.
const SECTION: &str = "laneway-manifest";
/// Largest manifest, in bytes.
const MANIFEST_BYTES_MAX: usize = 64 << 10;
/// Components within components: real ones have two or three.
const NESTING_MAX: usize = 100;
/// Longest version, in bytes.
const VERSION_BYTES_MAX: usize = 64;

/// A plugin's own account of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What it is called.
    pub name: Name,
    /// Which version of it this is: 1 to 64 of `0-9 A-Z a-z . + -`.
    #[serde(deserialize_with = "version")]
    pub version: String,
    /// What it asks for.
    #[serde(default)]
    pub asks: Asks,
}

/// What a plugin asks for. It gets what the operator grants of it, and nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Asks {
    /// Hosts to send requests to. It is not loaded where one is not granted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpAsk>,
    /// Topics to emit messages under.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub emit: Vec<TopicPattern>,
    /// A state of its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub state: bool,
    /// Secrets that its requests carry. It is not loaded where one is not granted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretAsk>,
    /// Keys of the configuration that it cannot do without. It may read others too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub config: Vec<String>,
    /// To read the clocks.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub clocks: bool,
    /// To draw random numbers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub random: bool,
}

/// A host that a plugin asks for; `*` for a plugin whose host is configured: whatever is granted, but something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "WrittenAsk")]
pub enum HttpAsk {
    /// What is granted.
    Any,
    /// This host, with these methods; without methods, those that are granted.
    Host(HttpGrant),
}

/// A secret that a plugin asks for; `*` for a plugin whose configuration says which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretAsk {
    /// What is granted.
    Any,
    /// The secret of this name.
    Named(Name),
}

impl HttpAsk {
    /// Whether it asks for such a request.
    pub(crate) fn covers(&self, method: &Method, https: bool, host: &str, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Host(asked) => asked.allows(method) && asked.covers(https, host, port).is_some(),
        }
    }

    /// Whether enough is granted: its methods, and hosts of its own, if it asks for all below a domain.
    pub(crate) fn is_met_by(&self, grants: &[HttpGrant]) -> bool {
        match self {
            Self::Any => !grants.is_empty(),
            Self::Host(asked) => {
                let shares = |granted: &&HttpGrant| granted.includes(asked) || asked.includes(granted);
                let mut shared = grants.iter().filter(shares).peekable();
                if asked.methods().is_empty() {
                    return shared.peek().is_some();
                }
                let shared: Vec<&HttpGrant> = shared.collect();
                asked.methods().iter().all(|method| shared.iter().any(|granted| granted.allows(method)))
            }
        }
    }

    /// As the grant of it stands in a configuration file.
    pub(crate) fn written(&self) -> String {
        match self {
            Self::Any => "\"https://host\"".to_owned(),
            Self::Host(asked) => asked.written(),
        }
    }
}

impl fmt::Display for HttpAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("a host of your choice"),
            Self::Host(asked) if asked.methods().is_empty() => write!(f, "{asked}"),
            Self::Host(asked) => {
                let methods: Vec<&str> = asked.methods().iter().map(Method::as_str).collect();
                write!(f, "{asked} ({})", methods.join(", "))
            }
        }
    }
}

impl TryFrom<Written> for HttpAsk {
    type Error = InvalidGrant;

    fn try_from(written: Written) -> Result<Self, InvalidGrant> {
        match written {
            Written::Text(text) if text == "*" => Ok(Self::Any),
            written => {
                let asked = HttpGrant::try_from(written)?;
                if asked.is_private() {
                    let wrong = "a manifest does not ask for private addresses; the operator grants them";
                    return Err(InvalidGrant { text: asked.to_string(), wrong });
                }
                Ok(Self::Host(asked))
            }
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum WrittenAsk {
    Any(&'static str),
    Host(HttpGrant),
}

impl From<HttpAsk> for WrittenAsk {
    fn from(ask: HttpAsk) -> Self {
        match ask {
            HttpAsk::Any => Self::Any("*"),
            HttpAsk::Host(asked) => Self::Host(asked),
        }
    }
}

impl SecretAsk {
    pub(crate) fn covers(&self, name: &Name) -> bool {
        self.name().is_none_or(|asked| asked == name)
    }

    /// The one that it names.
    #[must_use]
    pub fn name(&self) -> Option<&Name> {
        match self {
            Self::Any => None,
            Self::Named(name) => Some(name),
        }
    }
}

impl TryFrom<String> for SecretAsk {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        if text == "*" { Ok(Self::Any) } else { Name::parse(&text).map(Self::Named) }
    }
}

impl From<SecretAsk> for String {
    fn from(ask: SecretAsk) -> Self {
        ask.name().map_or_else(|| "*".to_owned(), ToString::to_string)
    }
}

impl Manifest {
    /// Reads a manifest from JSON.
    ///
    /// # Errors
    /// [`PluginError::Manifest`] says what is wrong with it.
    pub fn from_json(json: &[u8]) -> Result<Self, PluginError> {
        if json.len() > MANIFEST_BYTES_MAX {
            let bytes = json.len();
            return Err(wrong(format!("it has {bytes} bytes; at most {MANIFEST_BYTES_MAX} are accepted")));
        }
        serde_json::from_slice(json).map_err(|error| wrong(error.to_string()))
    }

    /// Finds the manifest of a component, without running any of it: at its top level, or else within, where a build
    /// leaves it that knows nothing of components.
    ///
    /// # Errors
    /// [`PluginError::Manifest`] if it is not readable, or if there are several.
    pub fn read(component: &[u8]) -> Result<Option<Self>, PluginError> {
        let (mut own, mut inner): (Option<&[u8]>, Option<&[u8]>) = (None, None);
        walk(component, |depth, payload| {
            let Payload::CustomSection(section) = payload else { return Ok(()) };
            if section.name() != SECTION {
                return Ok(());
            }
            let found = if depth == 1 { &mut own } else { &mut inner };
            // A build may copy a module with all of its sections.
            match found.replace(section.data()) {
                Some(other) if other != section.data() => Err(wrong(
                    "there are two different ones; `laneway plugin pack` writes one that holds for the whole"
                        .to_owned(),
                )),
                _ => Ok(()),
            }
        })?;
        own.or(inner).map(Self::from_json).transpose()
    }

    /// The component with this manifest at its top level, in the place of one that was there.
    ///
    /// # Errors
    /// [`PluginError::Manifest`] if the bytes are no component's, or the manifest could not be read back.
    pub fn embed(component: &[u8], manifest: &Self) -> Result<Vec<u8>, PluginError> {
        let json = serde_json::to_vec(manifest).map_err(|error| wrong(error.to_string()))?;
        Self::from_json(&json)?;
        let mut packed = Vec::with_capacity(component.len() + json.len() + 64);
        let mut at = 0;
        walk(component, |depth, payload| {
            if depth != 1 {
                return Ok(());
            }
            let end = match payload {
                Payload::Version { range, .. } => range.end,
                _ => match payload.as_section() {
                    Some((_, range)) => range.end,
                    None => return Ok(()),
                },
            };
            let is_old = matches!(payload, Payload::CustomSection(section) if section.name() == SECTION);
            // Sections follow one another without a gap.
            let section = component.get(at..end).unwrap_or_default();
            if !is_old {
                packed.extend_from_slice(section);
            }
            at = end;
            Ok(())
        })?;
        let mut content = Vec::with_capacity(json.len() + 32);
        push_length(&mut content, SECTION.len());
        content.extend_from_slice(SECTION.as_bytes());
        content.extend_from_slice(&json);
        packed.push(0);
        push_length(&mut packed, content.len());
        packed.extend_from_slice(&content);
        Ok(packed)
    }
}

fn wrong(text: String) -> PluginError {
    PluginError::Manifest(text)
}

/// Visits the parts of a component, with how deep they lie: 1 is the component's own.
fn walk<'a>(
    component: &'a [u8],
    mut visit: impl FnMut(usize, &Payload<'a>) -> Result<(), PluginError>,
) -> Result<(), PluginError> {
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.map_err(|error| PluginError::compile(error.to_string()))?;
        match payload {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            _ => {}
        }
        if depth > NESTING_MAX {
            return Err(PluginError::Compile(format!("it is nested over {NESTING_MAX} components deep")));
        }
        visit(depth, &payload)?;
    }
    Ok(())
}

/// Writes a length as WebAssembly has it: seven bits a byte, the lowest first.
fn push_length(bytes: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        // Cut to the lowest seven bits on purpose.
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
}

fn version<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-');
    if text.is_empty() || text.len() > VERSION_BYTES_MAX || !text.bytes().all(fits) {
        return Err(serde::de::Error::custom(format_args!(
            "version {text:?} is not 1 to {VERSION_BYTES_MAX} of 0-9 A-Z a-z . + -"
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(version: &str) -> Manifest {
        let json = format!(
            r#"{{"name":"publish-http","version":"{version}","asks":{{
                "http":["https://api.example.com",{{"url":"https://*.example.org","methods":["POST"]}},"*"],
                "emit":["orders.>"],"state":true,"secrets":["API_TOKEN","*"],"config":["url"],"clocks":true,"random":true
            }}}}"#
        );
        Manifest::from_json(json.as_bytes()).unwrap()
    }

    /// A component with a module in it, whose custom sections are these.
    fn component(outer: &str, inner: &str) -> Vec<u8> {
        wat::parse_str(format!("(component (core module {inner}) {outer} (core module))")).unwrap()
    }

    fn section(json: &str) -> String {
        format!("(@custom \"{SECTION}\" {json:?})")
    }

    #[test]
    fn a_manifest_is_packed_read_back_and_replaced() {
        let bare = component("(@custom \"other\" \"stays\")", "(func)");
        assert_eq!(Manifest::read(&bare).unwrap(), None);
        let first = Manifest::embed(&bare, &manifest("1.0.0")).unwrap();
        assert_eq!(Manifest::read(&first).unwrap(), Some(manifest("1.0.0")));
        assert!(first.starts_with(&bare), "the component itself is as it was");
        let second = Manifest::embed(&first, &manifest("2.0.0-rc.1+7")).unwrap();
        assert_eq!(Manifest::read(&second).unwrap(), Some(manifest("2.0.0-rc.1+7")));
        assert!(second.starts_with(&bare) && !String::from_utf8_lossy(&second).contains("1.0.0"));
        let large =
            Manifest { asks: Asks { config: vec!["x".repeat(70_000)], ..Asks::default() }, ..manifest("1") };
        assert!(Manifest::embed(&bare, &large).unwrap_err().to_string().contains("at most 65536"));
    }

    #[test]
    fn it_is_found_in_a_module_within_unless_the_component_has_its_own() {
        let json = |name: &str| format!(r#"{{"name":"{name}","version":"1"}}"#);
        let inner = component("", &section(&json("inner")));
        assert_eq!(Manifest::read(&inner).unwrap().unwrap().name.as_str(), "inner");
        let both = component(&section(&json("outer")), &section(&json("inner")));
        assert_eq!(Manifest::read(&both).unwrap().unwrap().name.as_str(), "outer");
        let two = component("", &format!("{} {}", section(&json("a")), section(&json("b"))));
        assert!(Manifest::read(&two).unwrap_err().to_string().contains("two different ones"));
        let same = component("", &format!("{} {}", section(&json("a")), section(&json("a"))));
        assert_eq!(Manifest::read(&same).unwrap().unwrap().name.as_str(), "a");
    }

    #[test]
    fn what_is_wrong_with_a_manifest_is_said() {
        for (json, wants) in [
            (r#"{"name":"a b","version":"1"}"#, "contains ' '"),
            (r#"{"name":"a"}"#, "missing field `version`"),
            (r#"{"name":"a","version":""}"#, "1 to 64"),
            (r#"{"name":"a","version":"1 0"}"#, "1 to 64"),
            (r#"{"name":"a","version":"1","asks":{"files":true}}"#, "unknown field `files`"),
            (r#"{"name":"a","version":"1","extra":1}"#, "unknown field `extra`"),
            (r#"{"name":"a","version":"1","asks":{"http":["x.org"]}}"#, "no scheme"),
            (r#"{"name":"a","version":"1","asks":{"http":[{"url":"http://x.org","private":true}]}}"#, "private"),
            (r#"{"name":"a","version":"1","asks":{"emit":["a.>.b"]}}"#, "before its end"),
            ("nonsense", "expected"),
        ] {
            let error = Manifest::read(&component("", &section(json))).unwrap_err().to_string();
            assert!(error.contains(wants) && error.contains("manifest"), "{json}: {error}");
        }
    }

    #[test]
    fn what_is_no_component_has_no_manifest_and_harms_nobody() {
        assert!(Manifest::read(b"nonsense").is_err());
        assert!(Manifest::read(b"").is_err());
        let component = component("", &section(r#"{"name":"a","version":"1"}"#));
        for end in 0..component.len() {
            drop(Manifest::read(&component[..end]));
        }
        // Each one holds the next.
        let mut deep = b"\0asm\x0d\0\x01\0".to_vec();
        for _ in 0..NESTING_MAX {
            let mut outer = b"\0asm\x0d\0\x01\0\x04".to_vec();
            push_length(&mut outer, deep.len());
            outer.extend_from_slice(&deep);
            deep = outer;
        }
        assert!(Manifest::read(&deep).unwrap_err().to_string().contains("nested"));
    }

    #[test]
    fn an_ask_is_met_by_hosts_and_methods() {
        let ask = |json: &str| -> HttpAsk { serde_json::from_str(json).unwrap() };
        let grants = |json: &str| -> Vec<HttpGrant> { serde_json::from_str(json).unwrap() };
        for (asked, granted, met) in [
            (r#""*""#, "[]", false),
            (r#""*""#, r#"["http://x.org"]"#, true),
            (r#""https://a.x.org""#, r#"["https://*.x.org"]"#, true),
            (r#""https://*.x.org""#, r#"["https://a.x.org"]"#, true),
            (r#""https://a.x.org""#, r#"["https://b.x.org"]"#, false),
            (r#""https://a.x.org""#, r#"[{"url":"https://a.x.org","methods":["GET"]}]"#, true),
            (
                r#"{"url":"https://a.x.org","methods":["GET","POST"]}"#,
                r#"[{"url":"https://a.x.org","methods":["GET"]}]"#,
                false,
            ),
            (
                r#"{"url":"https://a.x.org","methods":["GET","POST"]}"#,
                r#"[{"url":"https://a.x.org","methods":["GET"]},{"url":"https://*.x.org","methods":["POST"]}]"#,
                true,
            ),
        ] {
            assert_eq!(ask(asked).is_met_by(&grants(granted)), met, "{asked} of {granted}");
        }
    }
}
