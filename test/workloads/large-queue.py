# SPDX-License-Identifier: Apache-2.0
"""A queue of 1000 messages of 64 KiB, each with a number and a pattern of its own: large-queue.py OUT GO.

Needs CAP_SYS_RESOURCE for that many bytes. Says "ready"; once GO exists it receives them all, and says "ok" or "BAD" and "done".
"""
import ctypes, os, resource, sys, time

COUNT, SIZE = 1000, 65536
out, go = sys.argv[1:]
rt = ctypes.CDLL("librt.so.1", use_errno=True)
rt.mq_receive.restype = ctypes.c_ssize_t


class Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("flags", "maxmsg", "msgsize", "curmsgs")] + [("rest", ctypes.c_long * 4)]


def say(text):
    with open(out, "a") as file:
        file.write(text + "\n")


def message(number):
    return number.to_bytes(8, "little") + bytes([(number * 7 + 1) & 255]) * (SIZE - 8)


for name, value in (("msg_max", COUNT), ("msgsize_max", SIZE)):
    with open(f"/proc/sys/fs/mqueue/{name}", "w") as file:
        file.write(str(value))
resource.setrlimit(resource.RLIMIT_MSGQUEUE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
queue = rt.mq_open(b"/sixty-four-megabytes", os.O_RDWR | os.O_CREAT, 0o600, ctypes.byref(Attributes(0, COUNT, SIZE, 0)))
if queue < 0:
    sys.exit(f"mq_open: {os.strerror(ctypes.get_errno())}")
for number in range(COUNT):
    # Priorities go round: those of one are in the order in which they were sent.
    if rt.mq_send(queue, message(number), SIZE, number % 10) != 0:
        sys.exit(f"mq_send: {os.strerror(ctypes.get_errno())}")
say("ready")
while not os.path.exists(go):
    time.sleep(0.05)
buffer, priority = ctypes.create_string_buffer(SIZE), ctypes.c_uint()
wanted = [number for level in range(9, -1, -1) for number in range(level, COUNT, 10)]
wrong = sum(
    rt.mq_receive(queue, buffer, SIZE, ctypes.byref(priority)) != SIZE
    or buffer.raw != message(number)
    or priority.value != number % 10
    for number in wanted
)
say("ok every message" if wrong == 0 else f"BAD {wrong} messages")
say("done")
