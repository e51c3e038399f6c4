"""A writer over NBD (libnbd) whose every write depends on the one before, on whatever volume that was.

  chain.py LEDGER SEED URI URI...   until SIGTERM (exit 0) or the first error (exit 3)

Tag n goes into block n of a volume chosen by SEED and n, when tag n-1 is confirmed. A line of the ledger: a VOLUME TAG NS, confirmed at this time.
"""

import hashlib
import signal
import struct
import sys
import time

import nbd

BLOCK = 4096
MAGIC = b"tandemCH"


def content(tag):
    head = MAGIC + struct.pack("<Q", tag)
    return head + hashlib.shake_128(head).digest(BLOCK - len(head))


def volume(seed, tag, volumes):
    return hashlib.shake_128(struct.pack("<QQ", seed, tag)).digest(1)[0] % volumes


def main():
    ledger, seed, uris = open(sys.argv[1], "a", buffering=1), int(sys.argv[2]), sys.argv[3:]
    handles = []
    for uri in uris:
        h = nbd.NBD()
        h.connect_uri(uri)
        handles.append(h)
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    tag = 0
    while not ended:
        v = volume(seed, tag, len(uris))
        try:
            handles[v].pwrite(content(tag), tag * BLOCK)
        except nbd.Error as e:
            print("volume", v, "tag", tag, e, file=sys.stderr)
            sys.exit(3)
        print("a", v, tag, time.time_ns(), file=ledger)
        tag += 1
        time.sleep(0.002)


main()
