//! The header `Retry-After`.

use std::time::Duration;

/// What a response says about when to come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAfter {
    /// Nothing.
    Absent,
    /// Something that cannot be read.
    Unreadable,
    /// After a pause; without a length if it is one of nothing, or over by the destination's own clock.
    Pause(Option<Duration>),
}

impl RetryAfter {
    /// Reads the header. A date is compared with the response's own, because here is no clock that could be compared with
    /// theirs: without that one it cannot be read.
    pub fn of(header: Option<&str>, date: Option<&str>) -> Self {
        let Some(header) = header else { return Self::Absent };
        match pause(header.trim(), date) {
            Some(pause) => Self::Pause((!pause.is_zero()).then_some(pause)),
            None => Self::Unreadable,
        }
    }
}

fn pause(wanted: &str, date: Option<&str>) -> Option<Duration> {
    if let Some(seconds) = seconds(wanted) {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(wanted).ok()?;
    let now = httpdate::parse_http_date(date?.trim()).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

/// Digits, and a fraction that some servers write although they must not. It is rounded up. What is over the longest
/// number stands for that.
fn seconds(text: &str) -> Option<u64> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let has_rest = fraction.bytes().any(|digit| digit != b'0');
    Some(whole.parse().unwrap_or(u64::MAX).saturating_add(u64::from(has_rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Option<&str> = Some("Wed, 21 Oct 2015 07:28:00 GMT");

    fn read(header: &str, date: Option<&str>) -> RetryAfter {
        RetryAfter::of(Some(header), date)
    }

    fn seconds(seconds: u64) -> RetryAfter {
        RetryAfter::Pause(Some(Duration::from_secs(seconds)))
    }

    #[test]
    fn it_is_seconds_or_a_date_of_the_senders_clock() {
        assert_eq!(RetryAfter::of(None, NOW), RetryAfter::Absent);
        assert_eq!(read("120", None), seconds(120));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:30 GMT", NOW), seconds(30));
        assert_eq!(read("Wednesday, 21-Oct-15 07:29:00 GMT", NOW), seconds(60));
        assert_eq!(read("18446744073709551616", None), seconds(u64::MAX));
    }

    #[test]
    fn a_fraction_is_rounded_up() {
        for (text, wanted) in [("4.5", 5), ("4.0", 4), ("0.001", 1)] {
            assert_eq!(read(text, None), seconds(wanted), "{text}");
        }
    }

    #[test]
    fn a_pause_of_nothing_does_not_say_how_long() {
        for text in [" 0 ", "00", "0.0", "Wed, 21 Oct 2015 07:00:00 GMT"] {
            assert_eq!(read(text, NOW), RetryAfter::Pause(None), "{text}");
        }
    }

    #[test]
    fn what_is_neither_cannot_be_read() {
        for text in ["", "soon", "+0000", "-1", "4,5", "4.", ".5", "1e3", "0x10", "60s", "120, 60", "4.5.6", "٣"] {
            assert_eq!(read(text, NOW), RetryAfter::Unreadable, "{text}");
        }
        let date = "Wed, 21 Oct 2015 07:28:30 GMT";
        assert_eq!(read(date, None), RetryAfter::Unreadable, "nothing to compare it with");
        assert_eq!(read(date, Some("now")), RetryAfter::Unreadable);
    }
}
