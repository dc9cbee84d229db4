//! What happens where a zone's clock is set forward or back.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::clock::latest_civil;
use super::*;

/// The next firings after a local time, in the zone's own notation.
fn firings(text: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
    let zone = TimeZone::get(zone).unwrap();
    let cron = CronExpression::parse(text).unwrap();
    let mut at: Timestamp = after.parse().unwrap();
    (0..count)
        .map(|_| {
            at = cron.next_after(at, &zone).unwrap();
            at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
        })
        .collect()
}

#[test]
fn a_skipped_time_of_day_fires_once_just_after_the_jump() {
    let after = "2024-03-30T12:00:00+01:00";
    assert_eq!(
        firings("30 2 * * *", "Europe/Berlin", after, 3),
        ["2024-03-31T03:00:00+02:00", "2024-04-01T02:30:00+02:00", "2024-04-02T02:30:00+02:00"]
    );
    // Several skipped times are one firing, and so is the one that was due there anyway.
    assert_eq!(
        firings("0,20,40 2,3 * * *", "Europe/Berlin", after, 4),
        [
            "2024-03-31T03:00:00+02:00",
            "2024-03-31T03:20:00+02:00",
            "2024-03-31T03:40:00+02:00",
            "2024-04-01T02:00:00+02:00"
        ]
    );
    assert_eq!(firings("0 30 2 * * *", "Europe/Berlin", after, 1), ["2024-03-31T03:00:00+02:00"]);
    assert_eq!(
        firings("30 2 * * *", "Europe/Berlin", "2024-03-31T01:59:59+01:00", 1),
        ["2024-03-31T03:00:00+02:00"]
    );
    assert_eq!(
        firings("30 2 * * *", "Europe/Berlin", "2024-03-31T03:00:00+02:00", 1),
        ["2024-04-01T02:30:00+02:00"]
    );
}

#[test]
fn a_repeated_time_of_day_fires_in_the_first_pass_only() {
    let berlin = |after| firings("0,30 2 * * *", "Europe/Berlin", after, 3);
    assert_eq!(
        berlin("2024-10-26T12:00:00+02:00"),
        ["2024-10-27T02:00:00+02:00", "2024-10-27T02:30:00+02:00", "2024-10-28T02:00:00+01:00"]
    );
    for second_pass in ["2024-10-27T02:00:00+01:00", "2024-10-27T02:15:00+01:00", "2024-10-27T02:59:59+01:00"] {
        assert_eq!(berlin(second_pass)[0], "2024-10-28T02:00:00+01:00", "{second_pass}");
    }
    // The end of the repeated hour is shown once, and fires.
    assert_eq!(
        firings("0 3 * * *", "Europe/Berlin", "2024-10-27T02:15:00+01:00", 1),
        ["2024-10-27T03:00:00+01:00"]
    );
}

#[test]
fn the_second_pass_shows_nothing_new() {
    let berlin = TimeZone::get("Europe/Berlin").unwrap();
    let latest = |at: &str| latest_civil(at.parse().unwrap(), &berlin).unwrap().to_string();
    assert_eq!(latest("2024-10-27T02:15:00+02:00"), "2024-10-27T02:15:00");
    assert_eq!(latest("2024-10-27T02:15:00+01:00"), "2024-10-27T02:59:59");
    assert_eq!(latest("2024-10-27T03:00:00+01:00"), "2024-10-27T03:00:00");
}

#[test]
fn an_interval_follows_the_clock() {
    assert_eq!(
        firings("30 * * * *", "Europe/Berlin", "2024-03-31T00:45:00+01:00", 2),
        ["2024-03-31T01:30:00+01:00", "2024-03-31T03:30:00+02:00"]
    );
    assert_eq!(
        firings("*/30 2 * * *", "Europe/Berlin", "2024-03-30T12:00:00+01:00", 1),
        ["2024-04-01T02:00:00+02:00"]
    );
    assert_eq!(
        firings("*/30 2 * * *", "Europe/Berlin", "2024-10-26T12:00:00+02:00", 5),
        [
            "2024-10-27T02:00:00+02:00",
            "2024-10-27T02:30:00+02:00",
            "2024-10-27T02:00:00+01:00",
            "2024-10-27T02:30:00+01:00",
            "2024-10-28T02:00:00+01:00"
        ]
    );
    assert_eq!(
        firings("0 * * * *", "Europe/Berlin", "2024-10-27T01:30:00+02:00", 3),
        ["2024-10-27T02:00:00+02:00", "2024-10-27T02:00:00+01:00", "2024-10-27T03:00:00+01:00"]
    );
    // The last time of the first pass is far from the next match, which the second pass still shows.
    assert_eq!(
        firings("*/60 2 27 10 *", "Europe/Berlin", "2024-10-27T02:10:00+02:00", 1),
        ["2024-10-27T02:00:00+01:00"]
    );
}

#[test]
fn clocks_that_jump_over_midnight() {
    // Brazil's summer of 2018 began at midnight, so the fourth of November began at one.
    assert_eq!(
        firings("0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00:00-03:00", 2),
        ["2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00"]
    );
    assert_eq!(
        firings("*/20 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00:00-03:00", 1),
        ["2018-11-05T00:00:00-02:00"]
    );
    assert_eq!(
        firings("30 23 * * *", "America/Sao_Paulo", "2018-02-17T12:00:00-02:00", 2),
        ["2018-02-17T23:30:00-02:00", "2018-02-18T23:30:00-03:00"]
    );
    assert_eq!(
        firings("15 0 * * *", "Asia/Beirut", "2022-03-26T12:00:00+02:00", 2),
        ["2022-03-27T01:00:00+03:00", "2022-03-28T00:15:00+03:00"]
    );
    // The skipped midnight belongs to a Sunday: a job of that day still runs, one of Saturday does not.
    assert_eq!(firings("0 0 * * 0", "Asia/Beirut", "2022-03-26T12:00:00+02:00", 1), ["2022-03-27T01:00:00+03:00"]);
    assert_eq!(firings("0 0 * * 6", "Asia/Beirut", "2022-03-26T12:00:00+02:00", 1), ["2022-04-02T00:00:00+03:00"]);
}

#[test]
fn shifts_of_half_an_hour_and_of_two_hours() {
    assert_eq!(
        firings("15 2 * * *", "Australia/Lord_Howe", "2023-09-30T12:00:00+10:30", 2),
        ["2023-10-01T02:30:00+11:00", "2023-10-02T02:15:00+11:00"]
    );
    assert_eq!(
        firings("*/15 * * * *", "Australia/Lord_Howe", "2024-04-07T01:30:00+11:00", 4),
        [
            "2024-04-07T01:45:00+11:00",
            "2024-04-07T01:30:00+10:30",
            "2024-04-07T01:45:00+10:30",
            "2024-04-07T02:00:00+10:30"
        ]
    );
    assert_eq!(
        firings("30 1,2 * * *", "Antarctica/Troll", "2024-03-30T12:00:00+00:00", 2),
        ["2024-03-31T03:00:00+02:00", "2024-04-01T01:30:00+02:00"]
    );
    assert_eq!(
        firings("30 1,2 * * *", "Antarctica/Troll", "2024-10-26T12:00:00+02:00", 3),
        ["2024-10-27T01:30:00+02:00", "2024-10-27T02:30:00+02:00", "2024-10-28T01:30:00+00:00"]
    );
    assert_eq!(
        firings("30 */1 * * *", "Antarctica/Troll", "2024-10-27T02:45:00+02:00", 2),
        ["2024-10-27T01:30:00+00:00", "2024-10-27T02:30:00+00:00"]
    );
}

#[test]
fn a_day_that_the_calendar_skips() {
    // Samoa crossed the date line: no 30 December 2011. Its jobs run once as the 31st begins.
    assert_eq!(
        firings("30 2 * * *", "Pacific/Apia", "2011-12-28T12:00:00-10:00", 3),
        ["2011-12-29T02:30:00-10:00", "2011-12-31T00:00:00+14:00", "2011-12-31T02:30:00+14:00"]
    );
    assert_eq!(
        firings("*/30 2 30 12 *", "Pacific/Apia", "2011-12-01T00:00:00-10:00", 1),
        ["2012-12-30T02:00:00+14:00"]
    );
}

#[test]
fn a_day_that_the_calendar_repeats() {
    // Kwajalein moved to the other side of the date line in 1969, and lived 30 September twice from 01:00 on.
    let after = "1969-09-30T06:30:00+11:00";
    assert_eq!(
        firings("0 18 * * *", "Pacific/Kwajalein", after, 2),
        ["1969-09-30T18:00:00+11:00", "1969-10-01T18:00:00-12:00"]
    );
    assert_eq!(
        firings("0 */9 * * *", "Pacific/Kwajalein", after, 5),
        [
            "1969-09-30T09:00:00+11:00",
            "1969-09-30T18:00:00+11:00",
            "1969-09-30T09:00:00-12:00",
            "1969-09-30T18:00:00-12:00",
            "1969-10-01T00:00:00-12:00"
        ]
    );
}

#[test]
fn winter_time_that_the_zone_calls_the_exception() {
    // Ireland's zone data has negative daylight saving in winter. Only the offsets count.
    assert_eq!(
        firings("30 1 * * *", "Europe/Dublin", "2024-03-30T12:00:00+00:00", 2),
        ["2024-03-31T02:00:00+01:00", "2024-04-01T01:30:00+01:00"]
    );
    assert_eq!(
        firings("30 1 * * *", "Europe/Dublin", "2024-10-26T12:00:00+01:00", 2),
        ["2024-10-27T01:30:00+01:00", "2024-10-28T01:30:00+00:00"]
    );
}

#[test]
fn a_time_that_the_zone_always_skips_never_comes() {
    // The last Sunday of March, when it is the 31st, between two and three.
    let never = CronExpression::parse("*/5 2 31 3 */7").unwrap();
    let berlin = TimeZone::get("Europe/Berlin").unwrap();
    assert_eq!(never.next_after("2024-01-01T00:00:00Z".parse().unwrap(), &berlin), None);
    assert!(never.next_after("2024-01-01T00:00:00Z".parse().unwrap(), &TimeZone::UTC).is_some());
}

#[test]
fn a_far_match_passes_over_the_changes_between() {
    assert_eq!(
        firings("*/30 2 29 2 *", "America/New_York", "2096-03-01T00:00:00Z", 2),
        ["2104-02-29T02:00:00-05:00", "2104-02-29T02:30:00-05:00"]
    );
}

#[test]
fn a_zone_without_sense_still_gives_later_times() {
    // Summer time for half an hour, once a year: times are skipped and shown after all.
    let zone = TimeZone::posix("WIN0SUM,M3.5.0/2,M3.5.0/3:30").unwrap();
    let start: Timestamp = "2024-03-31T01:30:00Z".parse().unwrap();
    for text in ["45 2 * * *", "0-59 2,3 * * *", "*/5 * * * *", "15 3 * * *", "*/7 2 * * *"] {
        let cron = CronExpression::parse(text).unwrap();
        for minutes in 0..180 {
            let after = start + SignedDuration::from_mins(minutes);
            assert!(cron.next_after(after, &zone).unwrap() > after, "{text} after {after}");
        }
    }
}

#[test]
fn every_change_of_every_zone_is_lived_through() {
    // Each second of the day by its number, so that it counts as times of day: nothing fires twice, nothing is lost.
    let times = CronExpression::parse("0-59 0-59 0-23 * * *").unwrap();
    let interval = CronExpression::parse("* * * * * *").unwrap();
    let second = SignedDuration::from_secs(1);
    let (start, end): (Timestamp, Timestamp) =
        ("1900-01-01T00:00:00Z".parse().unwrap(), "2045-01-01T00:00:00Z".parse().unwrap());
    let mut changes = 0;
    for name in jiff::tz::db().available() {
        let zone = TimeZone::get(name.as_str()).unwrap();
        for change in zone.following(start).map(|change| change.timestamp()).take_while(|at| *at < end) {
            let before = change - second;
            let moved = zone.to_offset(change).seconds() - zone.to_offset(before).seconds();
            assert_eq!(interval.next_after(before, &zone), Some(change), "{name:?} at {change}");
            // Set back: the first pass has fired until the clock shows something new.
            let expected = change + SignedDuration::from_secs(i64::from(-moved.min(0)));
            assert_eq!(times.next_after(before, &zone), Some(expected), "{name:?} at {change}");
            changes += 1;
        }
    }
    assert!(changes > 10_000, "{changes} changes are too few: is the zone database missing?");
}
