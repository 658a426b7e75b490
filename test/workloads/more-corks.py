# SPDX-License-Identifier: Apache-2.0
"""Corked UDP sockets that corks.c has not: more-corks.py OUT GO.

Says "ready"; once GO exists each socket is given its last byte and uncorked: "ok what" or "BAD what", then "done".
"""
import os, socket, struct, sys, time

out, go = sys.argv[1:]
UDP_CORK, UDP_SEGMENT, UDPLITE, RETOPTS, RECVTTL = 1, 103, 136, 7, 12
SOL_UDP = socket.IPPROTO_UDP
PAYLOAD = bytes((i * 131 + i // 251) & 255 for i in range(70000))


def say(text):
    with open(out, "a") as file:
        file.write(text + "\n")


def receiver(family, protocol):
    sk = socket.socket(family, socket.SOCK_DGRAM, protocol)
    sk.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sk.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    sk.settimeout(5)
    return sk


class Case:
    """`size`: of what waits, `control`: given with the first piece, `wants`: what comes with the datagram."""

    def __init__(self, what, family=socket.AF_INET, protocol=0, size=1, control=(), connect=False, more=False, mapped=False,
                 parts=None, source=None, arrives={}, pieces=1):
        self.what, self.parts, self.source = what, parts, source
        self.to = receiver(family, protocol)
        self.arrives = arrives
        self.sk = socket.socket(socket.AF_INET6 if mapped else family, socket.SOCK_DGRAM, protocol)
        self.sk.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        self.more = more
        if not more:
            self.sk.setsockopt(SOL_UDP, UDP_CORK, 1)
        self.address = self.to.getsockname()
        if mapped:
            self.address = ("::ffff:127.0.0.1", self.address[1])
        if connect:
            self.sk.connect(self.address)
            self.address = None
        for i in range(pieces):
            self.give(size * i // pieces, size * (i + 1) // pieces, control if i == 0 else ())
        self.size = size

    def give(self, start, end, control=(), flags=None):
        flags = (socket.MSG_MORE if self.more else 0) if flags is None else flags
        address = () if self.address is None else (self.address,)
        self.sk.sendmsg([PAYLOAD[start:end]], list(control), flags, *address)

    def complete(self):
        # CRIU knows nothing of these options.
        for level, name in self.arrives:
            self.to.setsockopt(level, name, 1)
        self.give(self.size, self.size + 1, flags=0)
        if not self.more:
            self.sk.setsockopt(SOL_UDP, UDP_CORK, 0)
        whole = PAYLOAD[: self.size + 1]
        for part in self.parts or (len(whole),):
            data, extra, _, sender = self.to.recvmsg(70000, 512)
            if data != whole[:part]:
                return False
            whole = whole[part:]
            if self.source is not None and sender[0] != self.source:
                return False
            for wanted in self.arrives.values():
                if not any(each[: len(wanted)] == wanted for _, _, each in extra):
                    return False
        return not whole


six = socket.AF_INET6
word = lambda n: struct.pack("i", n)
cases = [
    Case("one byte"),
    Case("one byte over IPv6", six),
    Case("the largest over IPv6, one byte short", six, size=65506, pieces=7),
    Case("connected over IPv6", six, size=60000, connect=True),
    Case("connected, v4-mapped", size=3000, connect=True, mapped=True),
    Case("v4-mapped with MSG_MORE and TTL", size=30, mapped=True, more=True, control=[(socket.IPPROTO_IP, socket.IP_TTL, word(7))],
         arrives={(socket.IPPROTO_IP, RECVTTL): word(7)}),
    Case("UDP-Lite over IPv6", six, UDPLITE, size=4000),
    Case("UDP-Lite with MSG_MORE, connected", protocol=UDPLITE, size=4000, connect=True, more=True),
    Case("segments over IPv6", six, size=2000, control=[(SOL_UDP, UDP_SEGMENT, struct.pack("H", 900))], parts=(900, 900, 201)),
    Case("a source address over IPv6", six, size=10, source="fd00::9",
         control=[(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, socket.inet_pton(six, "fd00::9") + struct.pack("I", 0))]),
    Case("a traffic class over IPv6, MSG_MORE", six, size=10, more=True, control=[(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, word(64))],
         arrives={(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS): word(64)}),
    Case("a record of the route among IP options", size=10, control=[(socket.IPPROTO_IP, RETOPTS, bytes([7, 11, 4]) + bytes(9))]),
    Case("beyond the largest packet of the device, MSG_MORE", size=65506, more=True, pieces=3),
]
say("ready")
while not os.path.exists(go):
    time.sleep(0.02)
for case in cases:
    try:
        say(("ok " if case.complete() else "BAD ") + case.what)
    except OSError as error:
        say(f"BAD {case.what}: {error}")
say("done")
while True:
    time.sleep(1)
