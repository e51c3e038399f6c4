"""nbdkit plugin: a volume that moves. Requests go to the NBD export that the file WHERE names; when the connection ends, the file is
read again and what was not answered is asked again. An error that the server answers is passed on.

  nbdkit python follow.py where=FILE
"""

import io
import threading
import time

import nbd
import nbdkit

API_VERSION = 2
where = None
lock = threading.Lock()
connection = None


def config(key, value):
    global where
    if key != "where":
        raise RuntimeError("unknown parameter " + key)
    where = value


def config_complete():
    if where is None:
        raise RuntimeError("where=FILE is missing")


def thread_model():
    return nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS


def connect():
    """Connects for as long as it takes."""
    global connection
    while connection is None:
        h = nbd.NBD()
        try:
            with io.open(where) as f:
                h.connect_uri(f.read().strip())
            connection = h
        except (nbd.Error, OSError):
            time.sleep(0.005)
    return connection


def ask(request):
    global connection
    with lock:
        while True:
            h = connect()
            try:
                return request(h)
            except nbd.Error as e:
                if not h.aio_is_dead() and not h.aio_is_closed():
                    nbdkit.set_error(e.errnum or 5)
                    raise
                connection = None


def open(readonly):
    return 1


def get_size(h):
    return ask(lambda c: c.get_size())


def pread(h, buf, offset, flags):
    def request(c):
        buf[:] = c.pread(len(buf), offset)
    ask(request)


def pwrite(h, buf, offset, flags):
    data = bytes(buf)
    ask(lambda c: c.pwrite(data, offset))


def flush(h, flags):
    ask(lambda c: c.flush())
