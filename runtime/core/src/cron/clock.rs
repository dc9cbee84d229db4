//! From civil times to instants: what an expression does where a zone's clock is set forward or back.

use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, civil};

use super::calendar::{CYCLE_YEARS, Calendar};

/// More than any zone's clock was ever moved at once. The date line moved some by a day.
const CHANGE_MAX: SignedDuration = SignedDuration::from_hours(48);

const SECOND: SignedDuration = SignedDuration::from_secs(1);

/// What an expression stands for when the clock jumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Firing {
    /// A time of day: once for each matching civil time, whether the clock shows it once, twice or never. Debian's cron
    /// does so only where the clock moves by less than three hours; here that holds for every change.
    TimeOfDay,
    /// An interval: whenever the clock shows a matching time.
    Interval,
}

/// The first firing strictly later than `after`.
pub(super) fn next_after(
    calendar: &Calendar,
    firing: Firing,
    after: Timestamp,
    zone: &TimeZone,
) -> Option<Timestamp> {
    match firing {
        Firing::TimeOfDay => next_time_of_day(calendar, after, zone),
        Firing::Interval => next_interval(calendar, after, zone),
    }
}

/// Follows matching civil times, each of which has one instant. Later civil times never have earlier instants.
fn next_time_of_day(calendar: &Calendar, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let mut civil = latest_civil(after, zone)?;
    loop {
        civil = calendar.next_after(civil)?;
        let instant = first_instant(civil, zone)?;
        if instant > after {
            return Some(instant);
        }
    }
}

/// The latest civil second that the clock has shown up to `at`. In the second pass of a repeated hour, that is the end
/// of the first pass. All that matches before it has fired, and would be passed by one after the other.
pub(super) fn latest_civil(at: Timestamp, zone: &TimeZone) -> Option<civil::DateTime> {
    let offset = zone.to_offset(at);
    let shown = offset.to_datetime(at);
    match zone.to_ambiguous_timestamp(shown).offset() {
        AmbiguousOffset::Fold { before, after } if after == offset => {
            let change = change_to(after, before.to_timestamp(shown).ok()?, zone)?;
            before.to_datetime(change).checked_sub(SECOND).ok()
        }
        _ => Some(shown),
    }
}

/// When `civil` first shows on the clock; the end of the jump where the clock jumps over it.
fn first_instant(civil: civil::DateTime, zone: &TimeZone) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(civil).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(civil).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(civil).ok(),
        AmbiguousOffset::Gap { after, .. } => change_to(after, after.to_timestamp(civil).ok()?, zone),
    }
}

/// When the clock changes to `offset`, next after `earlier`.
fn change_to(offset: Offset, earlier: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    // A zone may change its name before it changes its clock, so the first change need not be the one.
    zone.following(earlier).take(8).find(|change| change.offset() == offset).map(|change| change.timestamp())
}

/// Follows the stretches of constant offset. Stretches in which nothing can match are jumped over.
fn next_interval(calendar: &Calendar, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let mut from = after;
    let mut offset = zone.to_offset(from);
    // Strictly later at first; a later stretch includes its first second.
    let mut civil = offset.to_datetime(from);
    // A zone may skip every match. Its rules repeat with the calendar, so after a whole cycle the rest of time, to the
    // year 9999, need not be searched.
    let last_year = civil.year().saturating_add(CYCLE_YEARS);
    loop {
        let found = calendar.next_after(civil)?;
        if found.year() > last_year {
            return None;
        }
        let instant = offset.to_timestamp(found).ok()?;
        let Some(change) = zone.following(from).next().map(|c| c.timestamp()).filter(|c| *c <= instant) else {
            return Some(instant);
        };
        // Up to `found` nothing matches, unless a clock set back soon after `from` shows times before it again. A
        // change that is far away cannot, so all changes until shortly before `found` may be passed over.
        from = if change.duration_since(from) > CHANGE_MAX {
            change.max(instant.checked_sub(CHANGE_MAX).ok()?)
        } else {
            change
        };
        offset = zone.to_offset(from);
        civil = offset.to_datetime(from).checked_sub(SECOND).ok()?;
    }
}
