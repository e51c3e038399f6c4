"""The consumer whose pauses are measured: one write of a block after another over NBD (libnbd), each with FUA.

  client.py FILE   FILE has the URI to connect to; it is read again before every connection

Writes go round a small span, numbered. One whose connection ended before its answer is sent again on the next connection,
as a block device above NBD does. What it tells, a line each, times in nanoseconds of CLOCK_MONOTONIC:

  connected T      a connection stands
  resumed T        the first answer on it
  pause FROM TO    between two answers, if longer than 5 ms
  tick T N         now and then: N writes were answered so far
  error T ERRNO    a request was answered with an error
  lost T N         N of the blocks that were answered are not what they were, looked at after "resumed"
"""

import hashlib
import signal
import struct
import sys
import time

import nbd

BLOCK = 4096
SPAN = 256  # blocks
PAUSE = 5_000_000
TICK = 100_000_000


def content(number):
    head = struct.pack("<Q", number)
    return head + hashlib.shake_128(head).digest(BLOCK - len(head))


def say(*words):
    print(*words, flush=True)


def lost(h, answered):
    """Blocks that hold neither the newest write that was answered nor the one after it in the same place."""
    data = h.pread(SPAN * BLOCK, 0)
    wrong = 0
    for number in range(max(1, answered - SPAN + 1), answered + 1):
        at = number % SPAN * BLOCK
        if data[at:at + BLOCK] not in (content(number), content(number + SPAN)):
            wrong += 1
    return wrong


def main(where):
    ending = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    answered, last, ticked = 0, time.monotonic_ns(), 0
    while not ending:
        h = nbd.NBD()
        try:
            with open(where) as f:
                h.connect_uri(f.read().strip())
        except (nbd.Error, OSError):
            time.sleep(0.005)
            continue
        say("connected", time.monotonic_ns())
        first = True
        while not ending:
            number = answered + 1
            try:
                h.pwrite(content(number), number % SPAN * BLOCK, nbd.CMD_FLAG_FUA)
                now = time.monotonic_ns()
                answered = number
                if now - last > PAUSE:
                    say("pause", last, now)
                last = now
                if first:
                    first = False
                    say("resumed", now)
                    say("lost", now, lost(h, answered))
                    last = time.monotonic_ns()
                if now - ticked > TICK:
                    ticked = now
                    say("tick", now, answered)
            except nbd.Error as e:
                if not h.aio_is_dead() and not h.aio_is_closed():
                    say("error", time.monotonic_ns(), e.errnum or 0)
                break
            time.sleep(0.001)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
