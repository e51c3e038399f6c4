"""A writer over NBD (libnbd) whose every write depends on the one before, on whatever volume that was.

  chain.py LEDGER SEED WHERE WHERE...   until SIGTERM (exit 0) or the first error (exit 3)

Tag n goes into block n of a volume chosen by SEED and n, when tag n-1 is confirmed. A line of the ledger: a VOLUME TAG NS, confirmed at this time.
WHERE is the URI of a volume, or the path of a file that has it and may be replaced at any time: when a connection to such a volume ends, it connects
to where the volume is then, and asks again. If the ledger has something already it goes on behind that, when it has seen that all of it is there and nothing after
the next tag (exit 4).
"""

import hashlib
import signal
import struct
import sys
import time

import nbd

BLOCK = 4096
MAGIC = b"tandemCH"
PATIENCE = 60  # seconds without an answer are an error
AHEAD = 64  # tags behind the newest one that are looked for
PIECE = 256  # blocks that are read at once


def content(tag):
    head = MAGIC + struct.pack("<Q", tag)
    return head + hashlib.shake_128(head).digest(BLOCK - len(head))


def volume(seed, tag, volumes):
    return hashlib.shake_128(struct.pack("<QQ", seed, tag)).digest(1)[0] % volumes


class Volume:
    def __init__(self, where):
        self.where = where
        self.h = None

    def connect(self):
        where = self.where
        if where.startswith("/"):
            with open(where) as f:
                where = f.read().strip()
        h = nbd.NBD()
        h.connect_uri(where)
        self.h = h

    def ask(self, request):
        """Carries a request out, over as many connections as it takes."""
        began = time.monotonic()
        while True:
            try:
                if self.h is None:
                    self.connect()
                return request(self.h)
            except nbd.Error:
                well = self.h is not None and self.h.aio_is_ready()  # then this was the answer
                if well or not self.where.startswith("/") or time.monotonic() - began > PATIENCE:
                    raise
                self.h = None
                time.sleep(0.005)


def check(volumes, seed, tags):
    """Ends the process unless the first so many tags are there, and none that was not asked for.

    Each volume is read in long pieces: a request for each tag would take as long as it took to write them all.
    """
    for first in range(0, tags + AHEAD, PIECE):
        count = min(PIECE, tags + AHEAD - first)
        pieces = [bytes(v.ask(lambda h: h.pread(count * BLOCK, first * BLOCK))) for v in volumes]
        for tag in range(first, first + count):
            v = volume(seed, tag, len(volumes))
            at = (tag - first) * BLOCK
            there = pieces[v][at:at + BLOCK] == content(tag)
            if there != (tag < tags) and tag != tags:
                print("volume", v, "tag", tag, "there:", there, "confirmed:", tags, file=sys.stderr)
                sys.exit(4)


def main():
    seed, volumes = int(sys.argv[2]), [Volume(where) for where in sys.argv[3:]]
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    ledger = open(sys.argv[1], "a+", buffering=1)
    ledger.seek(0)
    tag = len(ledger.readlines())
    if tag:
        check(volumes, seed, tag)
    while not ended:
        v = volume(seed, tag, len(volumes))
        try:
            volumes[v].ask(lambda h: h.pwrite(content(tag), tag * BLOCK))
        except nbd.Error as e:
            print("volume", v, "tag", tag, e, file=sys.stderr)
            sys.exit(3)
        print("a", v, tag, time.time_ns(), file=ledger)
        tag += 1
        time.sleep(0.002)


main()
