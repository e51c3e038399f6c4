"""A client over NBD (libnbd) whose volume moves: it connects again to where the volume is now, and asks again what was not answered.

  follower.py URIFILE SEED    until SIGTERM; URIFILE has the newest URI, and may be replaced at any time

Some connections at once, each with blocks of its own, write unique tags, flush and read back what they wrote last. A
connection that ends is no error; an answer that says so is one, and so is a tag that is not the last one. At the end it prints
{"requests", "reconnects", "errors", "wrong", "longest_pause_ms"} as JSON, after it has read every block once more.
"""

import json
import os
import random
import signal
import struct
import sys
import threading
import time

import nbd

BLOCK = 4096
THREADS = 4
SPAN = 64  # blocks of each connection
PATIENCE = 40  # seconds without an answer are an error

stop = threading.Event()


class Follower(threading.Thread):
    def __init__(self, path, number, seed):
        super().__init__()
        self.path, self.number = path, number
        self.rng = random.Random(seed)
        self.requests = self.reconnects = 0
        self.errors, self.wrong = [], []
        self.longest = 0.0
        self.tags = {}
        self.h = None

    def connect(self):
        """One attempt; the volume may be nowhere at the moment."""
        self.h = None
        h = nbd.NBD()
        try:
            with open(self.path) as f:
                h.connect_uri(f.read().strip())
            self.h = h
        except nbd.Error:
            time.sleep(0.005)

    def ask(self, request):
        """Carries a request out, over as many connections as it takes."""
        began = time.monotonic()
        while True:
            if self.h is None:
                self.reconnects += 1
                self.connect()
            if self.h is not None:
                try:
                    answer = request(self.h)
                    self.requests += 1
                    self.longest = max(self.longest, time.monotonic() - began)
                    return answer
                except nbd.Error as e:
                    if self.h.aio_is_ready():  # the connection is well: this was the answer
                        self.errors.append(str(e))
                        return None
                    self.h = None
            if time.monotonic() - began > PATIENCE:
                self.errors.append("no answer for %d s" % PATIENCE)
                stop.set()
                return None

    def check(self, i):
        block = (self.number * SPAN + i) * BLOCK
        data = self.ask(lambda h: h.pread(BLOCK, block))
        if data is not None and bytes(data) != content(self.number, i, self.tags[i]):
            self.wrong.append("block %d of %d: %r, want tag %d" % (i, self.number, bytes(data[:24]), self.tags[i]))

    def run(self):
        tag = 0
        while not stop.is_set():
            tag += 1
            i = self.rng.randrange(SPAN)
            data = content(self.number, i, tag)
            self.ask(lambda h: h.pwrite(data, (self.number * SPAN + i) * BLOCK))
            self.tags[i] = tag
            if self.rng.randrange(8) == 0:
                self.ask(lambda h: h.flush())
            self.check(self.rng.choice(list(self.tags)))
        for i in self.tags:
            self.check(i)


def content(number, i, tag):
    return struct.pack("<QQQ", number, i, tag) * (BLOCK // 24) + bytes(BLOCK % 24)


def main():
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    all_ = [Follower(sys.argv[1], n, int(sys.argv[2]) + n) for n in range(THREADS)]
    for f in all_:
        f.start()
    print("began", flush=True)
    for f in all_:
        f.join()
    print(json.dumps({
        "requests": sum(f.requests for f in all_), "reconnects": sum(f.reconnects for f in all_),
        "errors": [e for f in all_ for e in f.errors][:10], "wrong": [e for f in all_ for e in f.wrong][:10],
        "longest_pause_ms": round(1000 * max(f.longest for f in all_)),
    }), flush=True)
    os._exit(0)


main()
