"""A reader over NBD (libnbd) that notes when each read began and ended, and what it showed.

  reader.py put URI N       fills the first block with the byte N and flushes it
  reader.py read URI LINES  begins a read of the first block every 20 ms, whether or not those before have ended, until
                            SIGTERM or until the device has failed

Lines: BEGAN_NS ENDED_NS BYTE, or - for a read that failed.
"""

import signal
import sys
import time

import nbd

BLOCK = 4096
EVERY = 0.02
IN_FLIGHT = 200  # at most: the device takes no more at a time


def put(uri, n):
    h = nbd.NBD()
    h.connect_uri(uri)
    h.pwrite(bytes([n]) * BLOCK, 0)
    h.flush()
    h.shutdown()


def read(uri, path):
    h = nbd.NBD()
    h.connect_uri(uri)
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    with open(path, "a", buffering=1) as out:

        def begin():
            buf, began = nbd.Buffer(BLOCK), time.time_ns()

            def ended(err):
                seen = "-" if err.value else str(buf.to_bytearray()[0])
                out.write(f"{began} {time.time_ns()} {seen}\n")
                if err.value:
                    stop.append(True)
                return 1

            h.aio_pread(buf, 0, completion=ended)

        due = time.monotonic()
        while not stop or h.aio_in_flight():
            try:
                if not stop and time.monotonic() >= due and h.aio_in_flight() < IN_FLIGHT:
                    due = time.monotonic() + EVERY
                    begin()
                h.poll(int(EVERY * 500))
            except nbd.Error:
                break  # the connection is gone


if __name__ == "__main__":
    if sys.argv[1] == "put":
        put(sys.argv[2], int(sys.argv[3]))
    else:
        read(sys.argv[2], sys.argv[3])
