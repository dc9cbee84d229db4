"""Writes answers.tsv: cron expressions, and when other programs say that they fire.

Needs Python 3.11 or later with two packages, and Node 20 or later with one:

    pip install cronsim==2.8 croniter==7.0.0
    npm install cron-parser@5.10.5

Run it as `python make.py DIR`, where DIR holds the `node_modules` of the second command. The cases are drawn from a
fixed seed, so that the same packages and the same zone data write the same file.

A line of answers.tsv is a case: the expression, the zone, the start, and the next four firings strictly after the
start as cronsim, croniter and cron-parser give them. Times are Unix seconds, joined by commas. `!` stands for a
program that refuses the expression or gives up. Lines that begin with `#` are comments.
"""

import json
import random
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

from croniter import croniter
from cronsim import CronSim

CASES = 2000
FIRINGS = 4
FIRST_YEAR, LAST_YEAR = 2013, 2024

# With what is special about their clocks in those years.
ZONES = [
    "Europe/Berlin",  # one hour, at two
    "America/New_York",
    "America/Sao_Paulo",  # at midnight, until 2019
    "America/Havana",  # at midnight, and back at one
    "America/Santiago",  # at midnight
    "Asia/Beirut",  # at midnight
    "Asia/Tehran",  # at midnight, until 2022, with an offset of half an hour
    "Europe/Dublin",  # daylight saving is negative in winter
    "Australia/Lord_Howe",  # half an hour
    "Australia/Sydney",
    "Antarctica/Troll",  # two hours
    "Africa/Casablanca",  # four changes a year, by the moon
    "Pacific/Apia",  # until 2021
    "Asia/Kolkata",  # none
    "UTC",  # none
]
WEEKDAYS = ["sun", "mon", "TUE", "Wed", "thu", "fri", "sat"]
MONTHS = ["jan", "feb", "MAR", "apr", "may", "jun", "jul", "aug", "sep", "Oct", "nov", "dec"]

JAVASCRIPT = """
const { CronExpressionParser } = require('cron-parser');
const answer = ([expression, tz, start]) => {
  try {
    const found = CronExpressionParser.parse(expression, { currentDate: new Date(start * 1000), tz });
    return Array.from({ length: COUNT }, () => Math.floor(found.next().getTime() / 1000));
  } catch { return null; }
};
const cases = JSON.parse(require('fs').readFileSync(0, 'utf8'));
process.stdout.write(JSON.stringify(cases.map(answer)));
""".replace("COUNT", str(FIRINGS))


def changes(zone):
    """The instants at which the zone's clock jumps, found by halving the hours in which its offset differs."""
    def offset(at):
        return datetime.fromtimestamp(at, zone).utcoffset()

    found = []
    at = int(datetime(FIRST_YEAR, 1, 1, tzinfo=timezone.utc).timestamp())
    end = int(datetime(LAST_YEAR + 1, 1, 1, tzinfo=timezone.utc).timestamp())
    while at < end:
        if offset(at) != offset(at + 86400):
            low, high = at, at + 86400
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
            found.append(high)
        at += 86400
    return found


def number_list(rng, first, last, most):
    return ",".join(str(v) for v in sorted(rng.sample(range(first, last + 1), rng.randint(1, most))))


def number_range(rng, first, last):
    start = rng.randint(first, last - 1)
    return f"{start}-{rng.randint(start + 1, last)}"


def minute(rng):
    return rng.choice([
        "*",
        "0",
        "30",
        str(rng.randint(0, 59)),
        f"*/{rng.choice([5, 7, 10, 15, 20, 30])}",
        number_list(rng, 0, 59, 3),
        f"{number_range(rng, 0, 59)}/{rng.choice([5, 10, 20])}",
    ])


def hour(rng):
    small_hours = str(rng.choice([0, 0, 1, 1, 2, 2, 3, 23]))
    return rng.choice([
        "*",
        small_hours,
        small_hours,
        small_hours,
        number_list(rng, 0, 4, 3),
        "0-3",
        number_list(rng, 0, 23, 2),
        f"*/{rng.choice([1, 2, 3, 6])}",
        f"{number_range(rng, 0, 23)}/{rng.choice([1, 2, 3])}",
    ])


def days(rng):
    """Day of the month and day of the week: mostly every day, to stay near the changes of the clock."""
    some_day = rng.choice([str(rng.randint(1, 31)), number_list(rng, 1, 31, 4), number_range(rng, 1, 31)])
    some_weekday = rng.choice([
        str(rng.randint(0, 7)),
        rng.choice(WEEKDAYS),
        "0",
        "7",
        "sun",
        "1-5",
        "5-7",
        "mon-fri",
        number_list(rng, 0, 6, 3),
        f"{rng.choice(WEEKDAYS)},{rng.choice(WEEKDAYS)}",
    ])
    return rng.choices(
        [
            ("*", "*"),
            (some_day, "*"),
            ("*", some_weekday),
            (some_day, some_weekday),
            (f"*/{rng.randint(2, 10)}", some_weekday),
            (f"*/{rng.randint(2, 10)}", "*"),
            (some_day, "*/2"),
        ],
        weights=[60, 8, 12, 8, 5, 4, 3],
    )[0]


def expression(rng):
    if rng.random() < 0.03:
        return rng.choice(["@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly"])
    day, weekday = days(rng)
    month = "*"
    if rng.random() < 0.08:
        month = rng.choice([str(rng.randint(1, 12)), rng.choice(MONTHS), "1-6", "*/3"])
        # Days that every month has: no program should have to search for centuries.
        day = "*" if day == "*" else str(rng.randint(1, 28))
    fields = [minute(rng), hour(rng), day, month, weekday]
    if rng.random() < 0.1:
        fields.insert(0, rng.choice(["0", "0", "15", "*/20", "10,40"]))
    return " ".join(fields)


def draw_case(rng, jumps):
    zone = rng.choice(ZONES)
    if jumps[zone] and rng.random() < 0.75:
        start = rng.choice(jumps[zone]) + 60 * rng.randint(-30 * 60, 3 * 60)
        # Some starts are on the jump or just beside it.
        if rng.random() < 0.1:
            start = rng.choice(jumps[zone]) + rng.choice([-3600, -60, -1, 0, 1, 1800, 3600])
    else:
        first = datetime(FIRST_YEAR, 1, 1, tzinfo=timezone.utc)
        start = int((first + timedelta(seconds=rng.randrange(365 * 86400 * (LAST_YEAR - FIRST_YEAR + 1)))).timestamp())
    return expression(rng), zone, start


def ask_cronsim(text, zone, start):
    names = {"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
             "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *"}
    # cronsim leaves the names to the program around it.
    found = CronSim(names.get(text, text), datetime.fromtimestamp(start, ZoneInfo(zone)))
    return [int(next(found).timestamp()) for _ in range(FIRINGS)]


def ask_croniter(text, zone, start):
    found = croniter(text, datetime.fromtimestamp(start, ZoneInfo(zone)), second_at_beginning=True)
    return [int(found.get_next(datetime).timestamp()) for _ in range(FIRINGS)]


def guarded(ask, case):
    try:
        return ask(*case)
    except Exception:  # Whatever a program fails with, it has no answer.
        return None


def ask_cron_parser(cases, directory):
    run = subprocess.run(
        ["node", "-e", JAVASCRIPT], input=json.dumps(cases), capture_output=True, text=True, check=True, cwd=directory
    )
    return json.loads(run.stdout)


def written(times):
    return ",".join(map(str, times)) if times else "!"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    rng = random.Random(20240331)
    jumps = {zone: changes(ZoneInfo(zone)) for zone in ZONES}
    cases = []
    while len(cases) < CASES:
        case = draw_case(rng, jumps)
        if case not in cases:
            cases.append(case)
    answers = zip(
        (guarded(ask_cronsim, case) for case in cases),
        (guarded(ask_croniter, case) for case in cases),
        ask_cron_parser(cases, sys.argv[1]),
    )
    lines = ["# Written by make.py: expression, zone, start, next firings of cronsim 2.8, croniter 7.0.0, cron-parser 5.10.5"]
    for (text, zone, start), found in zip(cases, answers):
        lines.append("\t".join([text, zone, str(start), *map(written, found)]))
    Path(__file__).with_name("answers.tsv").write_text("\n".join(lines) + "\n")


main()
