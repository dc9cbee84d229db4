//! Errors of the configuration that say what was meant.

/// Least likeness, of 1, at which a key is suggested.
const LIKENESS_MIN: f64 = 0.75;

/// Adds "did you mean" to an error on an unknown key.
pub fn improve(error: &toml::de::Error) -> anyhow::Error {
    let text = error.to_string();
    let message = error.message();
    match suggestion(message) {
        Some(known) => anyhow::anyhow!("{}\ndid you mean `{known}`?", text.trim_end()),
        None => anyhow::anyhow!("{}", text.trim_end()),
    }
}

/// The likeliest of the known keys in a message such as "unknown field `a`, expected one of `b`, `c`".
fn suggestion(message: &str) -> Option<String> {
    let rest = message.split_once("unknown field `")?.1;
    let (unknown, rest) = rest.split_once('`')?;
    rest.split('`')
        .skip(1)
        .step_by(2)
        .map(|known| (strsim::jaro_winkler(unknown, known), known))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_key_is_suggested() {
        let message = "unknown field `lese`, expected one of `name`, `lease`, `timeout`";
        assert_eq!(suggestion(message).as_deref(), Some("lease"));
        assert_eq!(suggestion("unknown field `zzz`, expected `name`"), None);
    }
}
