# SPDX-License-Identifier: Apache-2.0
"""secrets.py READY: holds a secret in nearly every place that a checkpoint has. The test tells them by the same words."""

import ctypes
import hashlib
import os
import socket
import sys
import threading
import tty

libc = ctypes.CDLL(None, use_errno=True)


def secrets(place, count):
    return ["q" + hashlib.md5(f"{place}{n}".encode()).hexdigest()[:11] for n in range(count)]


keep = [os.dup(1)]
heap = ["".join(reversed(word[::-1])) for word in secrets("heap", 40)]
for word in secrets("file", 20):
    keep.append(os.open(f"/var/{word}", os.O_CREAT | os.O_RDWR, 0o600))
for word in secrets("tmpfsname", 10):
    open(f"/tmp/{word}", "w").close()
for n, word in enumerate(secrets("tmpfs", 20)):
    with open(f"/tmp/{n}", "w") as out:
        out.write(word)
ghosts = []
for n, word in enumerate(secrets("ghost", 10)):
    ghosts.append(open(f"/var/g{n}", "w+"))
    ghosts[-1].write(word)
    ghosts[-1].flush()
    os.unlink(f"/var/g{n}")
for word in secrets("pipe", 10):
    ends = os.pipe()
    os.write(ends[1], word.encode())
    keep.append(ends)
for word in secrets("unix", 10):
    one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.bind(f"\0{word}")
    keep.append(one)
for word in secrets("queue", 10):
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    pair[0].send(word.encode())
    keep.append(pair)
listener = socket.create_server(("127.0.0.1", 0))
for word in secrets("tcp", 10):
    one = socket.create_connection(listener.getsockname())
    keep.append((one, listener.accept()[0]))
    one.send(word.encode())
for n, word in enumerate(secrets("mq", 10)):
    queue = libc.msgget(4000 + n, 0o1600)
    if libc.msgsnd(queue, ctypes.c_char_p((1).to_bytes(8, "little") + word.encode()), len(word), 0) != 0:
        raise OSError(ctypes.get_errno(), "msgsnd")
for n, word in enumerate(secrets("fifo", 10)):
    os.mkfifo(f"/tmp/fifo{n}")
    keep.append(os.open(f"/tmp/fifo{n}", os.O_RDWR))
    os.write(keep[-1], word.encode())
for word in secrets("tty", 10):
    ends = os.openpty()
    tty.setraw(ends[1])
    os.write(ends[0], word.encode())
    keep.append(ends)
for n, word in enumerate(secrets("symlink", 10)):
    os.symlink(word, f"/tmp/link{n}")
for word, note in zip(secrets("rootfs", 10), secrets("xattr", 10)):
    with open(f"/{word}", "w") as out:
        out.write(word)
    os.setxattr(f"/{word}", "user.note", note.encode())
small = (ctypes.c_long * 8)(0, 2, 16)
for n, word in enumerate(secrets("posixmq", 10)):
    queue = libc.mq_open(f"/{n}".encode(), os.O_CREAT | os.O_RDWR, 0o600, small)
    if queue < 0 or libc.mq_send(queue, word.encode(), len(word), 0) != 0:
        raise OSError(ctypes.get_errno(), "mq_send")
for word in secrets("mqname", 5):
    if libc.mq_open(f"/{word}".encode(), os.O_CREAT | os.O_RDWR, 0o600, small) < 0:
        raise OSError(ctypes.get_errno(), "mq_open")
# Both ends have the container's own address.
server = socket.create_server((socket.gethostbyname(socket.gethostname()), 0))
keep.append((socket.create_connection(server.getsockname()), server.accept()))
barrier = threading.Barrier(11)


def named(word):
    libc.prctl(15, word.encode(), 0, 0, 0)
    barrier.wait()
    threading.Event().wait()


for word in secrets("thread", 10):
    threading.Thread(target=named, args=(word,), daemon=True).start()
barrier.wait()
open(sys.argv[1], "w").close()
threading.Event().wait()
