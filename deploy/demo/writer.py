"""The demo's verifying writer: writes numbered blocks over NBD (libnbd) and keeps a ledger of those that were confirmed.

  writer.py write URI LEDGER   until it is ended by SIGTERM (exit 0) or the server fails (exit 3)
  writer.py check URI LEDGER   prints "confirmed lost damaged more" (numbers)
  writer.py probe URI          one read

Every write carries FUA, so that a confirmed one is stable. A line of the ledger is "block version"; it is on disk before the
block is written again. A block that was confirmed may later hold a newer version (one that was on its way), never an older one.
"""

import hashlib
import os
import random
import signal
import struct
import sys

import nbd

BLOCK = 4096
SPAN = 32768  # blocks: 128 MiB, so that blocks are overwritten
DEPTH = 8
MAGIC = b"tandemWR"


def content(block, version):
    head = MAGIC + struct.pack("<QQ", block, version)
    return head + hashlib.shake_128(head).digest(BLOCK - len(head))


def parse(block, data):
    """Version of the block, 0 if never written, None if damaged."""
    if data == bytes(BLOCK):
        return 0
    version = struct.unpack("<Q", data[16:24])[0]
    return version if data == content(block, version) else None


def connect(uri):
    h = nbd.NBD()
    h.set_opt_mode(False)
    h.connect_uri(uri)
    return h


def read_ledger(path):
    newest, lines = {}, 0
    if os.path.exists(path):
        with open(path) as f:
            for line in f:
                block, version = map(int, line.split())
                newest[block] = max(newest.get(block, 0), version)
                lines += 1
    return newest, lines


def write(uri, path):
    newest, _ = read_ledger(path)
    version = max(newest.values(), default=0) + 1000000  # above all that may have been on their way
    ending = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    h = connect(uri)
    span = min(SPAN, h.get_size() // BLOCK)
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed, flush=True)
    rng = random.Random(seed)
    busy, confirmed = set(), []

    def submit():
        nonlocal version
        block = rng.randrange(span)
        while block in busy:
            block = rng.randrange(span)
        version += 1
        busy.add(block)
        mine = version

        def completed(err):
            if err.value != 0:
                print("write failed:", os.strerror(err.value), file=sys.stderr)
                os._exit(3)
            confirmed.append((block, mine))
            return 1

        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(content(block, mine))), block * BLOCK,
                     completion=completed, flags=nbd.CMD_FLAG_FUA)

    with open(path, "a") as ledger:
        try:
            while busy or not ending:
                while len(busy) < DEPTH and not ending:
                    submit()
                h.poll(1000)
                if confirmed:
                    ledger.writelines("%d %d\n" % c for c in confirmed)
                    ledger.flush()
                    os.fsync(ledger.fileno())
                    busy.difference_update(b for b, _ in confirmed)
                    confirmed.clear()
        except nbd.Error as e:
            print("server failed:", e, file=sys.stderr)
            sys.exit(3)
    h.shutdown()


def check(uri, path):
    newest, lines = read_ledger(path)
    h = connect(uri)
    lost = damaged = more = 0
    for block in range(min(SPAN, h.get_size() // BLOCK)):
        version = parse(block, bytes(h.pread(BLOCK, block * BLOCK)))
        want = newest.get(block, 0)
        if version is None:
            damaged += 1
        elif version < want:
            lost += 1
        elif version > want:
            more += 1
    h.shutdown()
    print(lines, lost, damaged, more)


def probe(uri):
    h = connect(uri)
    h.pread(BLOCK, 0)
    h.shutdown()


if __name__ == "__main__":
    {"write": write, "check": check, "probe": probe}[sys.argv[1]](*sys.argv[2:])
