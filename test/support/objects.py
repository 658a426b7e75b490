# SPDX-License-Identifier: Apache-2.0
"""Holds one of nearly every kind of object that CRIU can save, then says "ready" in the file argv[1] and sleeps."""

import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "a call failed")
    return result


where = os.path.dirname(os.path.abspath(sys.argv[1]))
kept = []

reader, writer = os.pipe()
os.write(writer, bytes(range(256)) * 5)
os.mkfifo(f"{where}/fifo")
fifo = os.open(f"{where}/fifo", os.O_RDWR)
os.write(fifo, b"in the fifo")

left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
left.send(b"first")
left.send(b"second\0with zero")
named = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
named.bind(b"\0abstract=name \xff." + b"long" * 20)
named.listen(3)

server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
client.sendall(b"not read yet" * 100)
six = socket.create_server(("::1", 0), family=socket.AF_INET6)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
kept += [client, peer, six, udp, netlink, right]

event = os.eventfd(7)
poll = select.epoll()
poll.register(reader, select.EPOLLIN)
poll.register(event, select.EPOLLIN | select.EPOLLET)
timer = check(libc.timerfd_create(time.CLOCK_MONOTONIC, 0))
mask = ctypes.create_string_buffer(b"\0\2" + bytes(126))
signals = check(libc.signalfd(-1, mask, 0))
watch = check(libc.inotify_init1(0))
check(libc.inotify_add_watch(watch, where.encode(), 0x3C0))

memory = os.memfd_create("in memory", os.MFD_ALLOW_SEALING)
os.write(memory, b"memfd" * 1000)
fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
shared = mmap.mmap(-1, 1 << 16)
shared[:5] = b"share"

ghost = open(f"{where}/ghost", "w+b")
ghost.write(b"deleted" * 3000)
ghost.flush()
os.unlink(ghost.name)
sparse = open(f"{where}/sparse", "w+b")
sparse.write(b"start")
sparse.seek(300_000)
sparse.write(b"end")
sparse.flush()
os.unlink(sparse.name)
strange = open(f"{where}/\u00fcber\n".encode() + b"\xff\xfe", "w+b")
fcntl.flock(strange, fcntl.LOCK_EX)
locked = open(f"{where}/locked", "w+b")
fcntl.lockf(locked, fcntl.LOCK_EX, 5, 2)

IPC_PRIVATE, IPC_CREAT = 0, 0o1000
segment = check(libc.shmget(IPC_PRIVATE, 5000, IPC_CREAT | 0o600))
sems = check(libc.semget(IPC_PRIVATE, 3, IPC_CREAT | 0o600))
check(libc.semctl(sems, 1, 16, 42))
queue = check(libc.msgget(IPC_PRIVATE, IPC_CREAT | 0o600))
for text in (b"one", b"a longer message"):
    check(libc.msgsnd(queue, (1).to_bytes(8, "little") + text, len(text), 0))

signal.setitimer(signal.ITIMER_REAL, 10_000)
signal.signal(signal.SIGUSR1, lambda *_: None)
if os.fork() == 0:
    os.setsid()
    while True:
        time.sleep(1000)
if os.fork() == 0:
    os._exit(3)
with open(f"{sys.argv[1]}.new", "w") as ready:
    ready.write(str(os.getpid()))
os.rename(f"{sys.argv[1]}.new", sys.argv[1])
while True:
    time.sleep(1000)
