"""A consumer over NBD (libnbd) that tells of every request, before and after.

  consumer.py run URI FILE SEED VERSION PLACES [LEFT]   until SIGTERM (exit 0) or until the device fails (exit 3)
  consumer.py read URI FILE SEED VERSION PLACES         reads every place once

It has slots for requests of all kinds, and slots that only read, and only where it has no write in flight: where all writes hang
they go on, if the server lets them. After SIGUSR1 it only reads, after SIGUSR2 it writes again.

Half of what it writes is for a few places, so that requests meet; the rest for any but LEFT (numbers, with commas), which an
earlier consumer had a write in flight for when it ended: those are read again and again as the fault left them.
Every write has a version of its own, the first is VERSION; what is zeroed has version 0. FILE gets lines:

  c ID KIND FIRST COUNT VERSION NS   a request begins; KIND is r, w, z or f
  r ID NS ERRNO [VERSION...]         it was answered, a read with these versions; -1 is damaged

NS is of CLOCK_MONOTONIC, FIRST counts places. A request without an answer was in flight at the end.
"""

import collections
import hashlib
import os
import random
import signal
import struct
import sys
import time

import nbd

BLOCK = 4096
DEPTH = {"all": 6, "read": 3}  # slots
PAUSE = {"all": 0.003, "read": 0.006}  # seconds between requests of those slots, on the average
HOT = 4  # places at the beginning of each run
MAGIC = b"tandemN1"
ENOSPC = 28


def content(place, version):
    head = MAGIC + struct.pack("<QQ", place, version)
    return head + hashlib.shake_128(head).digest(BLOCK - len(head))


def version_of(data, place):
    if data.count(0) == BLOCK:
        return 0
    version = struct.unpack_from("<Q", data, 16)[0]
    return version if data == content(place, version) else -1


class Consumer:
    def __init__(self, uri, path, seed, version, places, left=""):
        self.h = nbd.NBD()
        self.h.connect_uri(uri)
        self.file = open(path, "a", buffering=1)
        self.rng = random.Random(int(seed))
        self.version, self.places, self.ids = int(version), int(places), 0
        self.flying, self.failed = {"all": 0, "read": 0}, None
        self.writing = collections.Counter()  # writes in flight, by place
        # The places are in four runs, spread over the device: in different activity log regions and chunk files.
        self.run = self.places // 4
        self.stride = self.h.get_size() // 4
        self.left = [int(p) for p in left.split(",") if p]
        self.spared = {p for p in self.left if p % self.run >= HOT}

    def offset(self, place):
        return place // self.run * self.stride + place % self.run * BLOCK

    def begin(self, slots, kind, first, count):
        self.ids += 1
        me = self.ids
        version = 0
        if kind == "w":
            version = self.version
            self.version += 1
        self.file.write("c %d %s %d %d %d %d\n" % (me, kind, first, count, version, time.monotonic_ns()))
        self.flying[slots] += 1
        wrote = range(first, first + count) if kind in "wz" else ()
        self.writing.update(wrote)
        buf = nbd.Buffer(count * BLOCK) if kind == "r" else None

        def done(err):
            now = time.monotonic_ns()
            self.flying[slots] -= 1
            self.writing.subtract(wrote)
            line = "r %d %d %d" % (me, now, err.value)
            if err.value not in (0, ENOSPC):
                self.failed = "request failed: " + os.strerror(err.value)
            elif kind == "r" and not err.value:
                data = buf.to_bytearray()
                for i in range(count):
                    line += " %d" % version_of(bytes(data[i * BLOCK:(i + 1) * BLOCK]), first + i)
            self.file.write(line + "\n")
            return 1

        off = self.offset(first)
        fua = nbd.CMD_FLAG_FUA if kind in "wz" and self.rng.random() < 0.3 else 0
        if kind == "r":
            self.h.aio_pread(buf, off, completion=done)
        elif kind == "w":
            data = b"".join(content(first + i, version) for i in range(count))
            self.h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), off, completion=done, flags=fua)
        elif kind == "z":
            self.h.aio_zero(count * BLOCK, off, completion=done, flags=fua)
        else:
            self.h.aio_flush(completion=done)

    def anywhere(self, hot):
        """Returns a place, one of a few with that probability, and how many to take from it on."""
        first = self.rng.randrange(self.places)
        if self.rng.random() < hot:
            first -= first % self.run - self.rng.randrange(HOT)
        return first, self.fit(first)

    def fit(self, first):
        return min(self.rng.choice([1, 1, 1, 2, 4]), self.run - first % self.run)

    def any(self):
        first, count = self.anywhere(0.5)
        x = self.rng.random()
        if x < 0.02:
            self.begin("all", "f", 0, 0)
        elif x < 0.5:
            self.begin("all", "r", first, count)
        elif self.spared.isdisjoint(range(first, first + count)):
            self.begin("all", "z" if x < 0.55 else "w", first, count)

    def reader(self):
        if self.left and self.rng.random() < 0.4:
            first = self.rng.choice(self.left)
            count = self.fit(first)
        else:
            first, count = self.anywhere(0.5)
        if not any(self.writing[p] for p in range(first, first + count)):
            self.begin("read", "r", first, count)

    def work(self):
        ending, kinds = [], {"all": self.any, "read": self.reader}
        writes = [True]
        signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
        signal.signal(signal.SIGUSR1, lambda *_: writes.clear())
        signal.signal(signal.SIGUSR2, lambda *_: writes.append(True))
        at = {slots: time.monotonic() for slots in kinds}
        while not self.failed and (any(self.flying.values()) or not ending):
            now, wait = time.monotonic(), 100
            for slots, make in kinds.items():
                if ending or self.flying[slots] >= DEPTH[slots] or slots == "all" and not writes:
                    continue
                wait = 1
                if now >= at[slots]:
                    make()
                    at[slots] = max(at[slots], now - 1) + self.rng.expovariate(1 / PAUSE[slots])
            self.h.poll(wait)

    def all(self):
        count = min(64, self.run)
        for first in range(0, self.places, count):
            self.begin("read", "r", first, count)
            while self.flying["read"] and not self.failed:
                self.h.poll(100)


def main(what, *args):
    c = Consumer(*args)
    try:
        c.work() if what == "run" else c.all()
    except nbd.Error as e:
        c.failed = "server failed: %s" % e
    if c.failed:
        print(c.failed, file=sys.stderr, flush=True)
        os._exit(3)
    c.h.shutdown()


main(*sys.argv[1:])
