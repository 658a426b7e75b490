# SPDX-License-Identifier: Apache-2.0
"""swrk.py [CASE]: speaks to `criu swrk` as a client may, also a bad one; prints what came back and how criu ended.

Without CASE: the names of the cases."""

import os
import socket
import subprocess
import sys
import threading

DUMP, RESTORE, CHECK, PRE_DUMP, NOTIFY, FEATURE_CHECK, VERSION, WAIT_PID, SINGLE_PRE_DUMP = 1, 2, 3, 4, 6, 9, 10, 11, 13


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field, value):
    return varint(field << 3) + varint(value)


def nested(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data


images = os.open("/tmp/i", os.O_RDONLY | os.O_DIRECTORY)


def request(kind, *, pid=None, keep_open=False, features=b"", opts=True, extra=b""):
    data = number(1, kind)
    if opts:
        inner = number(1, images) + (number(2, pid) if pid is not None else b"")
        data += nested(2, inner + number(9, 4) + nested(10, b"swrk.log"))  # log_level, log_file
    if keep_open:
        data += number(4, 1)
    return data + (nested(5, features) if features else b"") + extra


UNKNOWN = nested(1000, b"a field of tomorrow")  # must reach the engine as it is, and do no harm
cases = {
    "version": [request(VERSION, opts=False)],
    "version with opts": [request(VERSION)],
    "version twice": [request(VERSION, opts=False, keep_open=True)] * 2,
    "version with an unknown field": [request(VERSION, opts=False, extra=UNKNOWN)],
    "check": [request(CHECK)],
    "feature check": [request(FEATURE_CHECK, opts=False, features=number(1, 1) + number(2, 1) + number(3, 1))],
    "feature check, then version": [
        request(FEATURE_CHECK, opts=False, keep_open=True, features=number(1, 1)),
        request(VERSION, opts=False),
    ],
    "unknown type": [request(99, opts=False)],
    "notify out of turn": [request(NOTIFY, opts=False)],
    "wait for a pid that is not there": [number(1, WAIT_PID) + number(6, 999999)],
    "dump without options": [request(DUMP, opts=False)],
    "dump of a pid that is not there": [request(DUMP, pid=999999)],
    "dump of a pid that is not there, unknown field": [request(DUMP, pid=999999, extra=UNKNOWN)],
    "pre-dump of a pid that is not there": [request(PRE_DUMP, pid=999999)],
    "single pre-dump of a pid that is not there": [request(SINGLE_PRE_DUMP, pid=999999)],
    "restore without options": [request(RESTORE, opts=False)],
    "restore from an empty directory": [request(RESTORE)],
    "failed dump, then version": [request(DUMP, pid=999999, keep_open=True), request(VERSION, opts=False)],
    "version, then failed dump": [request(VERSION, opts=False, keep_open=True), request(DUMP, pid=999999)],
    "empty message": [b""],
    "malformed message": [b"\xff" * 40],
    "truncated message": [request(DUMP, pid=999999)[:-3]],
    "dump, then malformed": [request(DUMP, pid=999999, keep_open=True), b"\xff" * 40],
    "oversized message": [number(1, VERSION) + nested(1000, b"x" * 150_000)],
    "oversized dump": [request(DUMP, pid=999999, extra=nested(1000, b"x" * 150_000))],
    "client gone at once": None,
    "client gone after a dump request": [request(DUMP, pid=999999, keep_open=True), None],
}


def main(name):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    ours.settimeout(20)
    criu = subprocess.Popen(
        ["criu", "swrk", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    theirs.close()
    said = {}
    readers = [
        threading.Thread(target=lambda name=name, pipe=pipe: said.update({name: pipe.read()}))
        for name, pipe in (("stdout", criu.stdout), ("stderr", criu.stderr))
    ]
    for reader in readers:
        reader.start()
    for message in cases[name] or [None]:
        if message is None:
            break
        try:
            ours.send(message)
            answer = ours.recv(1 << 20)
            print("answer", answer.hex() or "end")
            if not answer:
                break
        except OSError as error:
            print("answer", type(error).__name__, error.errno)
            break
    ours.close()
    try:
        print("code", criu.wait(20))
    except subprocess.TimeoutExpired:
        criu.kill()
        print("code: it did not end")
    for reader in readers:
        reader.join()
    for stream in ("stdout", "stderr"):
        print(stream, said[stream].decode(errors="replace"))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print("\n".join(cases))
    else:
        main(sys.argv[1])
