# SPDX-License-Identifier: Apache-2.0
"""swrk-live.py: a client of `criu swrk` with a living task, as a runtime is: notifications, several requests, a client that dies.

Prints each answer decoded (the task's pid as PID), how criu ended, and what became of the task.
"""

import os
import signal
import socket
import subprocess
import time

from swrk import DUMP, PRE_DUMP, RESTORE, VERSION, images, nested, number

NOTIFY = 6


def decode(data, pid):
    """The fields of a message: numbers, strings, messages in messages."""
    fields, at = [], 0

    def read():
        nonlocal at
        value, shift = 0, 0
        while True:
            value |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if data[at - 1] < 128:
                return value

    while at < len(data):
        key = read()
        if key & 7 == 0:
            value = read()
            fields.append(f"{key >> 3}={'PID' if value == pid else value}")
        else:
            size = read()
            part = data[at : at + size]
            at += size
            text = part.decode(errors="replace")
            printable = size > 3 and text.isprintable() or key >> 3 == 9
            fields.append(f"{key >> 3}={text if printable else decode(part, pid)}")
    return "{" + " ".join(fields) + "}"


class Task:
    """A task of a session of its own, that counts into a file."""

    def __init__(self):
        program = "i=0; while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.02; done"
        null = subprocess.DEVNULL
        child = subprocess.Popen(["setsid", "sh", "-c", program], stdin=null, stdout=null, stderr=null)
        self.pid = child.pid
        time.sleep(0.2)

    def fate(self):
        """What has become of it: it counts, it stands, or it is gone."""
        for pid in (self.pid, -1):  # a dead child must not stay
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass
        if not os.path.isdir(f"/proc/{self.pid}"):
            return "gone"
        seen = set()
        for _ in range(60):
            with open("/tmp/count", encoding="ascii") as file:
                seen.add(file.read().strip())
            if len(seen - {""}) > 2:
                return "counts"
            time.sleep(0.05)
        return "stands"

    def end(self):
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def options(fields):
    fields = {1: images, 9: 4} | fields
    return b"".join(number(field, value) for field, value in sorted(fields.items())) + nested(10, b"swrk.log")


class Client:
    def __init__(self, pid):
        self.pid = pid
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(20)
        self.criu = subprocess.Popen(
            ["criu", "swrk", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()

    def ask(self, kind, fields, keep_open=False):
        self.ours.send(number(1, kind) + nested(2, options(fields)) + (number(4, 1) if keep_open else b""))

    def hear(self):
        """Prints the next answer; gives the name of the notification if it is one."""
        try:
            answer = self.ours.recv(1 << 20)
        except ConnectionResetError:  # an end as well: whether CRIU had read all that it was sent is a race
            answer = b""
        print("answer", decode(answer, self.pid) if answer else "end")
        if answer[:2] != number(1, NOTIFY):
            return None
        return next(name for name in STAGES if name.encode() in answer)

    def acknowledge(self, success=True):
        self.ours.send(number(1, NOTIFY) + number(3, int(success)))

    def finish(self):
        self.ours.close()
        try:
            print("code", self.criu.wait(20))
        except subprocess.TimeoutExpired:
            self.criu.kill()
            print("code: it did not end")


STAGES = """pre-dump post-dump pre-restore post-restore pre-resume post-resume network-lock network-unlock
setup-namespaces post-setup-namespaces orphan-pts-master query-ext-files""".split()
LEAVE_RUNNING, NOTIFY_SCRIPTS, RST_SIBLING = {3: 1}, {12: 1}, {26: 1}


def session(name, kind, fields, react=lambda client, stage: client.acknowledge(), task=None):
    """One request with its notifications; react answers each, and ends the session by giving True."""
    print(f"--- {name}")
    task = task or Task()
    client = Client(task.pid)
    client.ask(kind, fields if kind == RESTORE else {2: task.pid} | fields)
    while stage := client.hear():
        if react(client, stage):
            break
    client.finish()
    # The shim, and an engine that has lost its client, may still be undoing what they did.
    time.sleep(0.5)
    print("task", task.fate())
    return task


def refuse(at):
    return lambda client, stage: client.acknowledge(stage != at)


def leave(at):
    return lambda client, stage: stage == at or client.acknowledge()


def garble(at):
    return lambda client, stage: client.ours.send(b"\xff" * 20) if stage == at else client.acknowledge()


running = LEAVE_RUNNING | NOTIFY_SCRIPTS
session("dump, left running", DUMP, LEAVE_RUNNING).end()
session("dump with notifications, left running", DUMP, running).end()
for stage in ("pre-dump", "query-ext-files", "post-dump"):
    session(f"dump refused at {stage}", DUMP, running, refuse(stage)).end()
    session(f"dump, client gone at {stage}", DUMP, running, leave(stage)).end()
    session(f"dump, malformed answer at {stage}", DUMP, running, garble(stage)).end()

print("--- a pre-dump and a dump on one connection")
task = Task()
client = Client(task.pid)
client.ask(PRE_DUMP, {2: task.pid})
client.hear()
try:
    client.ask(DUMP, {2: task.pid} | LEAVE_RUNNING)
    client.hear()
except BrokenPipeError:  # where the kernel tracks no memory CRIU has ended by now, or is about to
    print("answer end")
client.finish()
print("task", task.fate())
print("--- a version and a dump on one connection")
client = Client(task.pid)
client.ask(VERSION, {}, keep_open=True)
client.hear()
client.ask(DUMP, {2: task.pid} | running)
while client.hear():
    client.acknowledge()
client.finish()
print("task", task.fate())
task.end()

gone = session("dump with notifications", DUMP, NOTIFY_SCRIPTS)
for stage in ("pre-restore", "post-restore", "pre-resume", "post-resume"):
    # After a failure CRIU kills what it has restored; the images stay good for the next try.
    session(f"restore refused at {stage}", RESTORE, NOTIFY_SCRIPTS | RST_SIBLING, refuse(stage), gone).end()
    time.sleep(0.1)
    gone.fate()
    session(f"restore, client gone at {stage}", RESTORE, NOTIFY_SCRIPTS | RST_SIBLING, leave(stage), gone).end()
    time.sleep(0.1)
    gone.fate()
session("restore with notifications", RESTORE, NOTIFY_SCRIPTS | RST_SIBLING, task=gone)
parent = next(line for line in open(f"/proc/{gone.pid}/status", encoding="ascii") if line.startswith("PPid"))
print("its parent is the client:", int(parent.split()[1]) == os.getpid())
gone.end()
