# SPDX-License-Identifier: Apache-2.0
"""POSIX queues as queues.c has not got them: more-queues.py OUT GO [wait].

Says "ready"; once GO exists all is compared with what it was: "ok what" or "BAD what", then "done".
"""
import ctypes, os, select, sys, threading, time

out, go, *wait = sys.argv[1:]
rt = ctypes.CDLL("librt.so.1", use_errno=True)
rt.mq_receive.restype = rt.mq_timedreceive.restype = ctypes.c_ssize_t
EBUSY, EAGAIN, ETIMEDOUT, SIGEV_NONE = 16, 11, 110, 1


class Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("flags", "maxmsg", "msgsize", "curmsgs")] + [("rest", ctypes.c_long * 4)]


class Event(ctypes.Structure):
    _fields_ = [("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int), ("rest", ctypes.c_char * 48)]


class Time(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def say(text):
    with open(out, "a") as file:
        file.write(text + "\n")


def check(what, ok):
    say(("ok " if ok else "BAD ") + what)


def make(name, maxmsg=3, flags=os.O_RDWR):
    attributes = Attributes(0, maxmsg, 32)
    fd = rt.mq_open(name.encode(), flags | os.O_CREAT, 0o600, ctypes.byref(attributes))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


def send(fd, data, priority=1):
    return rt.mq_send(fd, data, len(data), priority) == 0


def receive(fd):
    buffer, priority = ctypes.create_string_buffer(32), ctypes.c_uint()
    n = rt.mq_receive(fd, buffer, 32, ctypes.byref(priority))
    return (buffer.raw[:n], priority.value) if n >= 0 else ctypes.get_errno()


def notify(fd):
    return 0 if rt.mq_notify(fd, ctypes.byref(Event(None, 0, SIGEV_NONE))) == 0 else ctypes.get_errno()


class Waits(threading.Thread):
    """In mq_timedreceive for so many seconds, of which the time of a checkpoint does not count."""

    def __init__(self, fd, seconds):
        super().__init__(daemon=True)
        self.fd, self.seconds, self.result, self.ended = fd, seconds, None, None
        self.start()

    def run(self):
        until = time.time() + self.seconds
        buffer = ctypes.create_string_buffer(32)
        n = rt.mq_timedreceive(self.fd, buffer, 32, None, ctypes.byref(Time(int(until), int(until % 1 * 1e9))))
        self.result, self.ended = (ctypes.get_errno() if n < 0 else buffer.raw[:n]), time.time()


class Polls(threading.Thread):
    def __init__(self, fd):
        super().__init__(daemon=True)
        self.fd, self.result = fd, None
        self.start()

    def run(self):
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        self.result = poll.poll(60000)


none, limited, polled = make("/none"), make("/limited"), make("/polled")
several, large = make("/several"), None
# Where it is mounted, and the queues of this namespace.
by_path = os.open("/dev/mqueue/none", os.O_RDWR) if os.path.exists("/dev/mqueue/none") else None
assert notify(none) == 0
if os.access("/proc/sys/fs/mqueue/msg_max", os.W_OK):
    with open("/proc/sys/fs/mqueue/msg_max", "w") as file:
        file.write("77")
    large = make("/large", 77)
    for i in range(77):
        send(large, b"%d" % i, i % 5)
limited_wait, polling = Waits(limited, 8) if wait else None, Polls(polled)
waiting = [Waits(several, 600) for _ in range(3)]
time.sleep(0.3)
say("ready")
while not os.path.exists(go):
    time.sleep(0.02)
back = time.time()

check("notification of nobody is registered", notify(none) == EBUSY)
check("and goes with a message", send(none, b"x") and notify(none) == 0)
if by_path is not None:
    check("one that was opened by its path is the same queue", receive(by_path) == (b"x", 1))
send(polled, b"y")
polling.join(5)
check("a poll that waited", polling.result is not None and polling.result[0][0] == polled)
for i in range(3):
    send(several, b"%d" % i)
for each in waiting:
    each.join(5)
check("several threads waited on one queue", sorted(each.result for each in waiting) == [b"0", b"1", b"2"])
if large is not None:
    with open("/proc/sys/fs/mqueue/msg_max") as file:
        check("limits of the namespace", int(file.read()) == 77)
    got = [receive(large) for _ in range(77)]
    check("a queue beyond the default limits", got == sorted(((b"%d" % i, i % 5) for i in range(77)), key=lambda m: -m[1]))
if limited_wait is not None:
    limited_wait.join(20)
    left = (limited_wait.ended or 0) - back
    # Of eight seconds some were over at the dump; all of them would be by now.
    check(f"what was left of a wait ({left:.1f} s)", limited_wait.result == ETIMEDOUT and 1 < left < 8)
say("done")
while True:
    time.sleep(1)
