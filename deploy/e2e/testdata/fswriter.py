"""A writer on a mounted file system that keeps a ledger of what was confirmed to it, and a checker against that ledger.

  fswriter.py write DIR LEDGER   until SIGTERM (exit 0) or the first error (exit 3)
  fswriter.py check DIR LEDGER   prints {"confirmed", "lost"} as JSON; exit 0 if it could read

Round i writes a new content into file i modulo FILES and calls fsync; every eighth time under a temporary name, with
a rename and an fsync of the directory. When that has returned, "i NS" is appended to the ledger. A file has to
hold what was last confirmed for it, or something newer.
"""

import hashlib
import json
import os
import signal
import sys
import time

FILES = 24
SIZE = 96 << 10


def content(i):
    head = b"%020d" % i
    return head + hashlib.shake_128(head).digest(SIZE - len(head))


def write_all(fd, data):
    while data:
        data = data[os.write(fd, data):]


def put(directory, i):
    name = path = os.path.join(directory, str(i % FILES))
    if i // FILES % 8 == 7:
        path += ".new"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        write_all(fd, content(i))
        os.fsync(fd)
    finally:
        os.close(fd)
    if path != name:
        os.rename(path, name)
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write(directory, path):
    going = [True]
    signal.signal(signal.SIGTERM, lambda *_: going.clear())
    with open(path, "a", buffering=1) as ledger:
        i = 0
        while going:
            try:
                put(directory, i)
            except OSError as e:
                print("round %d: %s" % (i, e), file=sys.stderr)
                return 3
            ledger.write("%d %d\n" % (i, time.time_ns()))
            i += 1
    return 0


def check(directory, path):
    newest = {}
    with open(path) as f:
        for line in f:
            i = int(line.split()[0])
            newest[i % FILES] = i
    lost = []
    for k, i in newest.items():
        with open(os.path.join(directory, str(k)), "rb") as f:
            data = f.read()
        if len(data) != SIZE or int(data[:20]) < i or data != content(int(data[:20])):
            lost.append(i)
    print(json.dumps({"confirmed": max(newest.values()) + 1, "lost": lost}))
    return 0


if __name__ == "__main__":
    sys.exit({"write": write, "check": check}[sys.argv[1]](*sys.argv[2:]))
