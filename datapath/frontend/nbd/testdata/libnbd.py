"""Asserts what an export promises, through libnbd. Arguments: URI, size, block size."""
import errno
import os
import random
import sys

import nbd

uri, size, block = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def connect(structured=True, context=True):
    h = nbd.NBD()
    h.set_strict_mode(0)  # our mistakes have to reach the server
    h.set_request_structured_replies(structured)
    if context:
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    return h


def fails(want, f, *args, **kw):
    try:
        f(*args, **kw)
    except nbd.Error as e:
        assert e.errnum == want, "%s: %r, want %s" % (f.__name__, e, errno.errorcode[want])
    else:
        raise AssertionError("%s%r succeeded, want %s" % (f.__name__, args, errno.errorcode[want]))


def pattern(n, seed):
    return random.Random(seed).randbytes(n)


for structured in (True, False):
    h = connect(structured, structured)
    assert h.get_protocol() == "newstyle-fixed", h.get_protocol()
    assert h.get_structured_replies_negotiated() == structured
    assert h.get_size() == size
    assert not h.is_read_only()
    assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_multi_conn()
    assert not h.can_fast_zero() and not h.can_cache() and not h.is_rotational()
    assert h.can_df() == structured
    assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION) == structured
    assert h.get_block_size(nbd.SIZE_MINIMUM) == block
    assert h.get_block_size(nbd.SIZE_PREFERRED) == max(block, 4096)
    assert h.get_block_size(nbd.SIZE_MAXIMUM) == 1 << 20

    # Sizes around the server's buffers and thresholds.
    for n in (block, 4096, 65536 - block, 65536, 65536 + block, 262144, 1 << 20):
        data = pattern(n, n)
        h.pwrite(data, 8 * block)
        assert h.pread(n, 8 * block) == data, n
        if structured:
            chunks = []
            h.pread_structured(n, 8 * block, lambda b, off, st, err: chunks.append((bytes(b), off, st)))
            assert chunks == [(data, 8 * block, nbd.READ_DATA)], [(len(c[0]), c[1], c[2]) for c in chunks]
            assert h.pread(n, 8 * block, nbd.CMD_FLAG_DF) == data
    h.pwrite(pattern(block, 1), size - block, nbd.CMD_FLAG_FUA)
    assert h.pread(block, size - block) == pattern(block, 1)
    h.flush()

    data = pattern(4 * block, 2)
    h.pwrite(data, 0)
    h.trim(block, 0, nbd.CMD_FLAG_FUA)
    h.zero(block, block)
    h.zero(block, 2 * block, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    assert h.pread(4 * block, 0) == bytes(3 * block) + data[3 * block:]
    h.trim(size, 0)  # more than the maximum of a payload
    h.zero(size, 0)
    assert h.pread(1 << 20, 0) == bytes(1 << 20)

    # FUA is to be accepted wherever it makes no sense.
    assert h.pread(block, 0) == bytes(block)

    before = pattern(2 * block, 3)
    h.pwrite(before, size - 2 * block)
    buf = bytes(2 * block)
    fails(errno.EINVAL, h.pread, 2 * block, size - block)
    fails(errno.EINVAL, h.pread, block, size)
    fails(errno.EINVAL, h.pread, block, 1 << 62)
    fails(errno.EINVAL, h.trim, 2 * block, size - block)
    fails(errno.ENOSPC, h.pwrite, buf, size - block)
    fails(errno.ENOSPC, h.pwrite, buf, 1 << 62)
    fails(errno.ENOSPC, h.zero, 2 * block, size - block)
    fails(errno.EINVAL, h.pread, block, block // 2)
    fails(errno.EINVAL, h.pread, block // 2, 0)
    fails(errno.EINVAL, h.pwrite, buf[:block // 2], 0)
    fails(errno.EINVAL, h.pwrite, buf[:block], block // 2)
    fails(errno.EINVAL, h.zero, block // 2, 0)
    fails(errno.EINVAL, h.trim, block // 2, 0)
    fails(errno.EINVAL, h.pread, (1 << 20) + block, 0)
    fails(errno.EINVAL, h.pwrite, bytes((1 << 20) + block), 0)
    fails(errno.EINVAL, h.pwrite, bytes(32 << 20), 0)
    fails(errno.EINVAL, h.pwrite, buf, 0, nbd.CMD_FLAG_DF)
    fails(errno.EINVAL, h.zero, block, 0, nbd.CMD_FLAG_FAST_ZERO)
    fails(errno.EINVAL, h.trim, block, 0, nbd.CMD_FLAG_NO_HOLE)
    fails(errno.EINVAL, h.cache, block, 0)
    assert h.pread(2 * block, size - 2 * block) == before, "a refused request changed something"

    if structured:
        for flags in (0, nbd.CMD_FLAG_REQ_ONE):
            seen = []

            def extent(context, off, entries, err):
                assert context == nbd.CONTEXT_BASE_ALLOCATION
                seen.append((off, list(entries)))

            h.block_status(16 * block, 4 * block, extent, flags)
            assert seen == [(4 * block, [16 * block, 0])], seen
        fails(errno.EINVAL, h.block_status, 2 * block, size - block, lambda *a: None)
        fails(errno.EINVAL, h.block_status, block, 0, lambda *a: None, nbd.CMD_FLAG_DF)
    h.shutdown()

# What one connection wrote and flushed, another reads.
a, b = connect(), connect()
a.pwrite(pattern(block, 4), 0)
b.flush()
assert b.pread(block, 0) == pattern(block, 4)

# Many requests in flight on one connection, the replies in any order.
h = connect()
n, each = 200, 64 * 1024
span = size // each
bufs = []
for i in range(n):
    src = nbd.Buffer.from_bytearray(bytearray(pattern(each, i)))
    bufs.append((src, h.aio_pwrite(src, (i % span) * each)))
while h.aio_in_flight():
    h.poll(-1)
for _, cookie in bufs:
    assert h.aio_command_completed(cookie)
reads = []
for i in range(max(0, n - span), n):
    dst = nbd.Buffer(each)
    reads.append((i, dst, h.aio_pread(dst, (i % span) * each)))
while h.aio_in_flight():
    h.poll(-1)
for i, dst, cookie in reads:
    assert h.aio_command_completed(cookie)
    assert bytes(dst.to_bytearray()) == pattern(each, i), i
print("ok")
