"""Three writers insert into one database, one of them is killed: what was
committed must be there, and the database must be in order.

    sqlite.py FILE DELETE|WAL
"""

import os
import signal
import sqlite3
import subprocess
import sys

ROWS = 300
WRITERS = 3


def connect(path, mode):
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    db.execute(f"PRAGMA journal_mode={mode}")
    db.execute("PRAGMA synchronous=FULL")
    return db


def write(path, mode, writer):
    """Inserts rows, and says of each on stdout that it is committed."""
    db = connect(path, mode)
    for n in range(ROWS):
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (?, ?, ?)", (writer, n, os.urandom(2000)))
        db.execute("COMMIT")
        print(n, flush=True)


def main(path, mode):
    connect(path, mode).execute("CREATE TABLE t (writer INTEGER, n INTEGER, data BLOB, PRIMARY KEY (writer, n))")
    writers = [
        subprocess.Popen([sys.executable, __file__, path, mode, str(w)], stdout=subprocess.PIPE, text=True)
        for w in range(WRITERS)
    ]
    while not writers[0].stdout.readline().startswith("50"):
        pass
    writers[0].send_signal(signal.SIGKILL)
    said = [51 + len(writers[0].stdout.readlines())]
    said += [len(w.stdout.readlines()) for w in writers[1:]]
    if [w.wait() for w in writers] != [-signal.SIGKILL, 0, 0]:
        sys.exit("a writer failed")

    db = connect(path, mode)
    there = [db.execute("SELECT count(*) FROM t WHERE writer = ?", (w,)).fetchone()[0] for w in range(WRITERS)]
    order = db.execute("PRAGMA integrity_check").fetchone()[0]
    print(f"{mode}: committed {said}, there {there}, integrity {order}")
    # The killed one may have committed one more than it could say.
    if order != "ok" or there[1:] != said[1:] or there[0] - said[0] not in (0, 1):
        sys.exit("rows are lost, or the database is damaged")


if __name__ == "__main__":
    if len(sys.argv) > 3:
        write(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1], sys.argv[2])
