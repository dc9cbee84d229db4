#!/usr/bin/env bash
# Two SQLite libraries in one process lose what another process has committed.
# Versions: Python's sqlite3 with whichever SQLite it has (seen: 3.40.1), and apsw 3.54.1.0 (PyPI), which has a SQLite of
# its own; Linux.
# Seen: a transaction of the first library is open; the second opens and closes the same file; then another process writes
# and commits, though the file is locked, and its row is gone when the first library commits. No error anywhere, and
# `PRAGMA integrity_check` says ok. Expected: the other process gets "database is locked" until the first commits.
# Why: POSIX locks belong to the process, and closing any descriptor of the file drops them all. SQLite keeps descriptors
# open to prevent that, but each library knows only its own. See https://www.sqlite.org/howtocorrupt.html, 2.2.1.
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" apsw==3.54.1.0
cd "$folder"
cat >two.py <<'PYTHON'
import sqlite3, subprocess, sys

import apsw

OTHER = """
import sqlite3
other = sqlite3.connect("shared.db", isolation_level=None, timeout=0.2)
other.execute("BEGIN IMMEDIATE")
other.execute("INSERT INTO t VALUES ('other')")
other.execute("COMMIT")
print("the other process has committed:", other.execute("SELECT who FROM t").fetchall())
"""

print("libraries:", sqlite3.sqlite_version, "and", apsw.sqlite_lib_version())
first = sqlite3.connect("shared.db", isolation_level=None)
first.execute("PRAGMA journal_mode = WAL")
first.execute("CREATE TABLE t (who TEXT)")
first.execute("BEGIN IMMEDIATE")
first.execute("INSERT INTO t VALUES ('first')")
second = apsw.Connection("shared.db")
second.execute("SELECT count(*) FROM t").fetchall()
second.close()
subprocess.run([sys.executable, "-c", OTHER], check=True)
first.execute("COMMIT")
first.close()
left = sqlite3.connect("shared.db").execute("SELECT who FROM t").fetchall()
print("left:", left)
sys.exit(0 if left == [("first",)] else 1)
PYTHON
PYTHONPATH=$folder/packages python3 two.py
