"""A consumer over NBD (libnbd) that tells of every request, before and after.

  consumer.py run URI FILE SEED VERSION PLACES   until SIGTERM (exit 0) or until the device fails (exit 3)
  consumer.py read URI FILE SEED VERSION PLACES  reads every place once

Half of its requests are for a few places, so that they meet; the others are for any, of which many stay as some fault left them.
Every write has a version of its own, the first is VERSION; what is zeroed has version 0. FILE gets lines:

  c ID KIND FIRST COUNT VERSION NS   a request begins; KIND is r, w, z or f
  r ID NS ERRNO [VERSION...]         it was answered, a read with these versions; -1 is damaged

NS is of CLOCK_MONOTONIC, FIRST counts places. A request without an answer was in flight at the end.
"""

import hashlib
import os
import random
import signal
import struct
import sys
import time

import nbd

BLOCK = 4096
DEPTH = 6
HOT = 4  # places at the beginning of each run
PAUSE = 0.003  # seconds between requests, on the average
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
    def __init__(self, uri, path, seed, version, places):
        self.h = nbd.NBD()
        self.h.connect_uri(uri)
        self.file = open(path, "a", buffering=1)
        self.rng = random.Random(int(seed))
        self.version, self.places, self.ids = int(version), int(places), 0
        self.flying, self.failed = 0, None
        # The places are in four runs, spread over the device: in different activity log regions and chunk files.
        self.run = self.places // 4
        self.stride = self.h.get_size() // 4

    def offset(self, place):
        return place // self.run * self.stride + place % self.run * BLOCK

    def begin(self, kind, first, count):
        self.ids += 1
        me = self.ids
        version = 0
        if kind == "w":
            version = self.version
            self.version += 1
        self.file.write("c %d %s %d %d %d %d\n" % (me, kind, first, count, version, time.monotonic_ns()))
        self.flying += 1
        buf = nbd.Buffer(count * BLOCK) if kind == "r" else None

        def done(err):
            now = time.monotonic_ns()
            self.flying -= 1
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

    def random(self):
        first = self.rng.randrange(self.places)
        if self.rng.random() < 0.5:
            first -= first % self.run - self.rng.randrange(HOT)
        count = min(self.rng.choice([1, 1, 1, 2, 4]), self.run - first % self.run)
        x = self.rng.random()
        if x < 0.02:
            self.begin("f", 0, 0)
        else:
            self.begin("r" if x < 0.5 else "z" if x < 0.55 else "w", first, count)

    def work(self):
        ending = []
        signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
        at = time.monotonic()
        while not self.failed and (self.flying or not ending):
            now = time.monotonic()
            if not ending and self.flying < DEPTH and now >= at:
                self.random()
                at = max(at, now - 1) + self.rng.expovariate(1 / PAUSE)
            else:
                self.h.poll(1 if self.flying < DEPTH and not ending else 100)

    def all(self):
        count = min(64, self.run)
        for first in range(0, self.places, count):
            self.begin("r", first, count)
            while self.flying and not self.failed:
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
