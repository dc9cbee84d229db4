//! What is read, what is refused, and on which days an expression fires.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::*;

fn cron(text: &str) -> CronExpression {
    CronExpression::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal(text: &str) -> String {
    match CronExpression::parse(text) {
        Ok(read) => panic!("{text} is read: {}", read.explain()),
        Err(error) => error.to_string(),
    }
}

/// The next firings in UTC, without the `Z`.
fn firings(text: &str, after: &str, count: usize) -> Vec<String> {
    let (cron, mut at) = (cron(text), after.parse::<Timestamp>().unwrap());
    let mut found = Vec::new();
    while found.len() < count {
        at = cron.next_after(at, &TimeZone::UTC).unwrap();
        found.push(at.to_string().trim_end_matches('Z').to_owned());
    }
    found
}

/// The days of the month on which it fires in January 2024, which began on a Monday.
fn january(text: &str) -> Vec<i8> {
    let (cron, mut at) = (cron(text), "2023-12-31T23:59:59Z".parse::<Timestamp>().unwrap());
    let end: Timestamp = "2024-02-01T00:00:00Z".parse().unwrap();
    let mut days = Vec::new();
    while let Some(next) = cron.next_after(at, &TimeZone::UTC).filter(|next| *next < end) {
        let day = next.to_zoned(TimeZone::UTC).day();
        if days.last() != Some(&day) {
            days.push(day);
        }
        at = next;
    }
    days
}

#[test]
fn five_fields_and_six_with_seconds_first() {
    let after = "2024-01-01T00:00:00Z";
    assert_eq!(firings("30 2 * * *", after, 2), ["2024-01-01T02:30:00", "2024-01-02T02:30:00"]);
    assert_eq!(firings("15 30 2 * * *", after, 1), ["2024-01-01T02:30:15"]);
    assert_eq!(
        firings("*/20 * * * * *", after, 3),
        ["2024-01-01T00:00:20", "2024-01-01T00:00:40", "2024-01-01T00:01:00"]
    );
    assert_eq!(firings(" \t30  2 * *\t* ", after, 1), ["2024-01-01T02:30:00"]);
}

#[test]
fn lists_ranges_and_steps() {
    let after = "2024-01-01T00:00:00Z";
    assert_eq!(
        firings("10-50/20,5 0 * * *", after, 5),
        [
            "2024-01-01T00:05:00",
            "2024-01-01T00:10:00",
            "2024-01-01T00:30:00",
            "2024-01-01T00:50:00",
            "2024-01-02T00:05:00"
        ]
    );
    // As in cron, steps do not reach over the end of the hour, and one too large leaves the first value.
    assert_eq!(
        firings("*/25 0,1 * * *", after, 3),
        ["2024-01-01T00:25:00", "2024-01-01T00:50:00", "2024-01-01T01:00:00"]
    );
    assert_eq!(firings("*/90 * * * *", after, 2), ["2024-01-01T01:00:00", "2024-01-01T02:00:00"]);
}

#[test]
fn months_and_days_have_names_in_any_case() {
    assert_eq!(
        firings("0 0 1 FEB,apr-Jun *", "2024-01-01T00:00:00Z", 4),
        ["2024-02-01T00:00:00", "2024-04-01T00:00:00", "2024-05-01T00:00:00", "2024-06-01T00:00:00"]
    );
    assert_eq!(january("0 0 * * MON"), [1, 8, 15, 22, 29]);
    assert_eq!(january("0 0 * * tue-Thu"), january("0 0 * * 2-4"));
    assert_eq!(january("0 0 * * sun-tue/2"), january("0 0 * * 0,2"));
}

#[test]
fn zero_and_seven_are_sunday() {
    let sundays = [7, 14, 21, 28];
    for text in ["0 0 * * 0", "0 0 * * 7", "0 0 * * sun", "0 0 * * 0,7", "0 0 * * */7"] {
        assert_eq!(january(text), sundays, "{text}");
    }
    assert_eq!(january("0 0 * * 5-7"), january("0 0 * * fri,sat,sun"));
    assert_eq!(january("0 0 * * 1-7/2"), january("0 0 * * mon,wed,fri,sun"));
    assert_eq!(january("0 0 * * 0-7").len(), 31);
}

#[test]
fn names_with_an_at_stand_for_their_fields() {
    let after = "2024-01-01T00:00:00Z";
    for (name, fields) in [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
    ] {
        assert_eq!(firings(name, after, 3), firings(fields, after, 3), "{name}");
        assert_eq!(cron(name).explain(), cron(fields).explain());
    }
}

#[test]
fn either_day_field_is_enough_when_neither_begins_with_a_star() {
    assert_eq!(january("0 0 1,15 * 5"), [1, 5, 12, 15, 19, 26]);
    assert_eq!(january("0 0 10-12 * 1"), [1, 8, 10, 11, 12, 15, 22, 29]);
    // A day that never comes leaves the weekday.
    assert_eq!(firings("0 0 31 2 1", "2024-01-01T00:00:00Z", 2), ["2024-02-05T00:00:00", "2024-02-12T00:00:00"]);
    // All days, but written without a star first: always true.
    assert_eq!(january("0 0 1-31 * 1").len(), 31);
    assert_eq!(january("0 0 5,* * 1").len(), 31);
}

#[test]
fn both_day_fields_bind_when_either_begins_with_a_star() {
    assert_eq!(january("0 0 * * 1"), [1, 8, 15, 22, 29]);
    assert_eq!(january("0 0 15 * *"), [15]);
    assert_eq!(january("0 0 */2 * 1"), [1, 15, 29]);
    assert_eq!(january("0 0 1-7 * */7"), [7]);
    assert_eq!(january("0 0 *,5 * 1"), [1, 8, 15, 22, 29]);
}

#[test]
fn leap_days_come_over_the_end_of_the_century() {
    let found = firings("0 0 29 2 *", "2095-01-01T00:00:00Z", 3);
    assert_eq!(found, ["2096-02-29T00:00:00", "2104-02-29T00:00:00", "2108-02-29T00:00:00"]);
    // A leap day on a Monday: 40 years apart over 2100.
    let found = firings("0 0 29 2 */7", "2060-01-01T00:00:00Z", 4);
    assert_eq!(found[..2], ["2060-02-29T00:00:00", "2088-02-29T00:00:00"]);
    assert_eq!(found[2..], ["2128-02-29T00:00:00", "2156-02-29T00:00:00"]);
    assert_eq!(firings("0 0 1 1 *", "2100-06-01T00:00:00Z", 2), ["2101-01-01T00:00:00", "2102-01-01T00:00:00"]);
    assert_eq!(
        firings("59 23 28-31 2 *", "1899-12-31T00:00:00Z", 2),
        ["1900-02-28T23:59:00", "1901-02-28T23:59:00"]
    );
    assert_eq!(firings("0 0 * * 1", "1969-12-30T00:00:00Z", 1), ["1970-01-05T00:00:00"]);
    assert_eq!(firings("0 0 29 2 *", "2896-03-01T00:00:00Z", 1), ["2904-02-29T00:00:00"]);
}

#[test]
fn the_end_of_time_is_none() {
    let cron = cron("0 0 1 1 *");
    assert_eq!(cron.next_after(Timestamp::MAX, &TimeZone::UTC), None);
    assert_eq!(cron.next_after("9999-06-01T00:00:00Z".parse().unwrap(), &TimeZone::UTC), None);
    assert!(cron.next_after(Timestamp::MIN, &TimeZone::UTC).is_some());
}

#[test]
fn fractions_of_a_second_round_up() {
    let next =
        |after: &str| cron("* * * * * *").next_after(after.parse().unwrap(), &TimeZone::UTC).unwrap().to_string();
    assert_eq!(next("2024-01-01T00:00:00.999Z"), "2024-01-01T00:00:01Z");
    assert_eq!(next("1969-12-31T23:59:58.000000001Z"), "1969-12-31T23:59:59Z");
    assert_eq!(next("2024-01-01T00:00:01Z"), "2024-01-01T00:00:02Z");
}

#[test]
fn the_text_is_kept_as_written() {
    let text = " 0  0 * * MON ";
    assert_eq!(cron(text).to_string(), text);
    assert_eq!(cron(text), cron(text).clone());
    assert_ne!(cron("0 0 * * 1"), cron("0 0 * * mon"));
}

#[test]
fn refusals_name_the_field_and_say_what_is_allowed() {
    for (text, wants) in [
        ("", "is empty; write five fields"),
        ("  ", "is empty"),
        ("* * * *", "has 4 field(s); write five"),
        ("* * * * * * *", "has 7 field(s)"),
        ("60 * * * *", "minute `60` contains 60, which is out of range; write `*`, values 0 to 59"),
        ("* 24 * * *", "hour `24` contains 24"),
        ("* * 0 * *", "day-of-month `0` contains 0, which is out of range; write `*`, values 1 to 31"),
        ("* * * 13 *", "month `13` contains 13"),
        ("* * * 0 *", "month `0` contains 0"),
        ("* * * * 8", "day-of-week `8` contains 8"),
        ("60 * * * * *", "second `60` contains 60"),
        ("99999999999999999999999 * * * *", "out of range"),
        ("256 * * * *", "out of range"),
        ("5-64/30 * * * *", "minute `5-64/30` contains 64"),
        ("* * * mon *", "month `mon` contains `mon`; write `*`, values 1 to 12 or jan to dec"),
        ("* * * * monday", "day-of-week `monday` contains `monday`"),
        ("* * * * thursday", "day-of-week `thursday` contains `thursday`"),
        ("1,,2 * * * *", "minute `1,,2` has an empty entry"),
        ("1- * * * *", "minute `1-` has an empty entry"),
        ("-1 * * * *", "minute `-1` has an empty entry"),
        ("1-2-3 * * * *", "minute `1-2-3` contains `2-3`"),
        ("+1 * * * *", "minute `+1` contains `+1`"),
        ("** * * * *", "minute `**` contains `**`"),
        ("*-5 * * * *", "minute `*-5` contains `*`"),
        ("0~30 * * * *", "minute `0~30` contains `0~30`"),
        ("٣ * * * *", "minute `٣` contains `٣`"),
        ("0 0 * *\n*", "4 field(s)"),
        ("0 22-5 * * *", "hour `22-5` has the range 22-5 backwards; write the smaller value first, or two ranges"),
        (
            "0 0 * * fri-sun",
            "day-of-week `fri-sun` has the range fri-sun backwards; write the earlier day first, counting Sunday as 0 or 7",
        ),
        ("*/0 * * * *", "minute `*/0` has the step `0`; a step is a whole number from 1"),
        ("*/ * * * *", "minute `*/` has the step ``"),
        ("*/-1 * * * *", "minute `*/-1` has the step `-1`"),
        ("*/1/2 * * * *", "minute `*/1/2` has the step `1/2`"),
        ("*/+5 * * * *", "has the step `+5`"),
        (
            "5/15 * * * *",
            "minute `5/15` has a step after the single value 5; steps follow `*` or a range, write 5-59/15 or 5",
        ),
        ("0 0 * jan/3 *", "write jan-12/3 or jan"),
        ("@reboot", "`@reboot` is not allowed; a schedule has no reboot"),
        ("@fortnightly", "`@fortnightly` is not known; the names are @yearly"),
        ("@every 5m", "`@every 5m` is not known"),
        ("0 0 L * *", "day-of-month `L` uses `L`, which cron does not know; write `*`, values 1 to 31"),
        ("0 0 L-3 * *", "uses `L`"),
        ("0 0 LW * *", "uses `L`"),
        ("0 0 15W * *", "day-of-month `15W` uses `W`"),
        ("0 0 * * 5L", "day-of-week `5L` uses `L`"),
        ("0 0 * * friL", "uses `L`"),
        ("0 0 * * mon#2", "day-of-week `mon#2` uses `#`"),
        ("0 0 ? * 1", "day-of-month `?` uses `?`"),
        ("% 0 * * *", "minute `%` uses `%`"),
        ("H 0 * * *", "minute `H` uses `H`"),
        ("H/15 0 * * *", "minute `H/15` uses `H`"),
        ("H(0-29) 0 * * *", "minute `H(0-29)` uses `H`"),
        ("0 0 31 2 *", "day-of-month `31` never comes in month `2`; choose a day"),
        ("0 0 30,31 feb *", "never comes"),
        ("0 0 31 4,6,9,11 *", "never comes in month `4,6,9,11`"),
        ("0 0 31 2 */2", "never comes"),
    ] {
        let error = refusal(text);
        assert!(error.contains(wants), "{text}: {error}");
    }
    assert!(refusal(&"*".repeat(257)).contains("257 bytes; at most 256"));
    let longest = format!("{}0 0 * * *", " ".repeat(247));
    assert_eq!(cron(&longest).to_string().len(), 256);
}

#[test]
fn explanations_say_when() {
    for (text, wants) in [
        ("30 2 1 * 1", "at 02:30 on day 1 of the month, or on Monday"),
        ("* * * * *", "every minute"),
        ("* * * * * *", "every second"),
        ("*/15 * * * *", "every 15 minutes"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("*/7 * * * *", "at every 7th minute from 0 through 56 of every hour"),
        ("*/90 * * * *", "at minute 0 of every hour"),
        ("@hourly", "at minute 0 of every hour"),
        ("@yearly", "at 00:00 on day 1 of the month, only in January"),
        ("@weekly", "at 00:00 on Sunday"),
        ("0 */6 * * *", "at 00:00, 06:00, 12:00 and 18:00"),
        ("0 */2 * * *", "at minute 0 of every 2nd hour from 0 through 22"),
        ("* 2 * * *", "every minute of hour 2"),
        ("5 */10 * * * *", "at second 5 of every 10th minute from 0 through 50 of every hour"),
        ("15 30 2 * * *", "at 02:30:15"),
        (
            "*/15 9-17 * * 1-5",
            "at every 15th minute from 0 through 45 of hours 9 through 17 on Monday through Friday",
        ),
        (
            "0 0 */10 * 1,5",
            "at 00:00 on every 10th day from 1 through 31 of the month, if it is also Monday or Friday",
        ),
        ("0 0 1-31 * 1", "at 00:00"),
        (
            "0 0 1,15 1-3,12 *",
            "at 00:00 on days 1 and 15 of the month, only in January, February, March and December",
        ),
        ("0 0 * * sun,sat", "at 00:00 on Saturday and Sunday"),
        ("0 0 13 6-8 fri", "at 00:00 on day 13 of the month, or on Friday, only in June through August"),
    ] {
        assert_eq!(cron(text).explain(), wants, "{text}");
    }
}
