"""A writer over NBD (libnbd) that keeps a ledger of what was confirmed to it, and a checker against that ledger.

  writer.py write URI LEDGER SEED   until SIGTERM (exit 0) or the first error (exit 3); blocks are in flight all the time
  writer.py check URI LEDGER [newer]  prints {"confirmed", "maybe", "lost", "damaged"} as JSON; exit 0 if it could read;
                                    newer: a writer is at work, what is newer than the ledger is right

A request writes 1 to 16 blocks, a part of them with FUA, or zeroes them; now and then there is a flush. No block has two
requests in flight. Lines of the ledger:

  a FIRST COUNT VERSION KIND NS   confirmed, at this time
  m FIRST COUNT VERSION KIND NS   in flight when the device failed: may be there or not, block by block
  r BLOCK 1 VERSION KIND NS       what a check found where either was right: from then on nothing else is

KIND is d (data) or z (zeroes). A block must hold what was last confirmed, or something newer that may be there.
"""

import hashlib
import json
import os
import random
import signal
import struct
import sys
import time

import nbd

BLOCK = 4096
SPAN = 16384  # blocks, spread over the whole device in four places
DEPTH = 8
MAGIC = b"tandemE2"
ZERO = bytes(BLOCK)


def content(block, version):
    head = MAGIC + struct.pack("<QQ", block, version)
    return head + hashlib.shake_128(head).digest(BLOCK - len(head))


def place(size, i):
    """The i-th block that is used, on a device of so many blocks."""
    span = min(SPAN, size)
    quarter = span // 4
    return (i // quarter) * (size // 4) + i % quarter


def connect(uri):
    h = nbd.NBD()
    h.connect_uri(uri)
    return h


class Ledger:
    def __init__(self, path):
        self.path = path
        self.newest = {}  # block -> (version, kind)
        self.maybe = {}  # block -> set of (version, kind)
        self.lines = self.maybes = self.top = 0
        if not os.path.exists(path):
            return
        with open(path) as f:
            for line in f:
                what, first, count, version, kind, _ = line.split()
                version = int(version)
                self.top = max(self.top, version)
                self.lines += what == "a"
                self.maybes += what == "m"
                for b in range(int(first), int(first) + int(count)):
                    if what == "m":
                        self.maybe.setdefault(b, set()).add((version, kind))
                    elif what == "r" or self.newest.get(b, (0, "z"))[0] < version:
                        self.newest[b] = (version, kind)
                        if what == "r":
                            self.maybe.pop(b, None)

    def allowed(self, b):
        newest = self.newest.get(b, (0, "z"))
        return {newest} | {m for m in self.maybe.get(b, ()) if m[0] > newest[0]}


def write(uri, path, seed):
    version = Ledger(path).top
    ending = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    h = connect(uri)
    size = h.get_size() // BLOCK
    quarter = min(SPAN, size) // 4
    rng = random.Random(int(seed))
    busy, flying, failed = set(), {}, []
    ledger = open(path, "a", buffering=1)

    def submit():
        nonlocal version
        while True:
            i = rng.randrange(quarter * 4)
            count = min(rng.choice([1, 1, 1, 2, 4, 16]), quarter - i % quarter)
            first = place(size, i)
            if busy.isdisjoint(range(first, first + count)):
                break
        version += 1
        kind = "z" if rng.random() < 0.1 else "d"
        flags = nbd.CMD_FLAG_FUA if rng.random() < 0.3 else 0
        mine = "%d %d %d %s" % (first, count, version, kind)
        blocks = range(first, first + count)
        busy.update(blocks)
        flying[version] = mine
        v = version

        def completed(err):
            if err.value != 0:
                failed.append("write failed: " + os.strerror(err.value))
                return 1
            ledger.write("a %s %d\n" % (mine, time.time_ns()))
            del flying[v]
            busy.difference_update(blocks)
            return 1

        if kind == "z":
            h.aio_zero(count * BLOCK, first * BLOCK, completion=completed, flags=flags)
        else:
            data = b"".join(content(b, v) for b in blocks)
            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), first * BLOCK, completion=completed, flags=flags)
        if rng.random() < 0.02:
            h.aio_flush(completion=lambda err: failed.append("flush failed: " + os.strerror(err.value)) or 1 if err.value else 1)

    try:
        while flying or not ending:
            while len(flying) < DEPTH and not ending and not failed:
                submit()
            if failed:
                break
            h.poll(200)
    except nbd.Error as e:
        failed.append("server failed: %s" % e)
    if failed:
        for mine in flying.values():
            ledger.write("m %s %d\n" % (mine, time.time_ns()))
        ledger.close()
        print(failed[0], file=sys.stderr, flush=True)
        os._exit(3)
    h.shutdown()


def check(uri, path, newer=None):
    l = Ledger(path)
    h = connect(uri)
    size = h.get_size() // BLOCK
    quarter = min(SPAN, size) // 4
    lost, damaged = [], []
    with open(path, "a") as ledger:
        for i in range(0, quarter * 4, 64):
            first = place(size, i)
            count = min(64, quarter - i % quarter)
            data = bytes(h.pread(count * BLOCK, first * BLOCK))
            for b in range(first, first + count):
                block = data[(b - first) * BLOCK:(b - first + 1) * BLOCK]
                allowed = l.allowed(b)
                found = [a for a in allowed if block == (ZERO if a[1] == "z" else content(b, a[0]))]
                if found:
                    if len(allowed) > 1:
                        ledger.write("r %d 1 %d %s %d\n" % (b, *max(found), time.time_ns()))
                elif newer and (block == ZERO or block[:8] == MAGIC and block == content(b, struct.unpack("<Q", block[16:24])[0])
                                and struct.unpack("<Q", block[16:24])[0] > max(allowed)[0]):
                    continue
                elif block == ZERO or block[:8] == MAGIC and block == content(b, struct.unpack("<Q", block[16:24])[0]):
                    lost.append("block %d holds version %d, allowed is one of %s" % (
                        b, struct.unpack("<Q", block[16:24])[0], sorted(allowed)))
                else:
                    damaged.append("block %d holds %s..., allowed is one of %s" % (b, block[:32].hex(), sorted(allowed)))
    h.shutdown()
    print(json.dumps({"confirmed": l.lines, "maybe": l.maybes, "lost": lost[:5], "damaged": damaged[:5],
                      "bad": len(lost) + len(damaged)}))


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](*sys.argv[2:])
