# SPDX-License-Identifier: Apache-2.0
"""swrk.py HEX...: starts `criu swrk`, sends one message after the other, prints each answer in hex, then the exit code.

A word "x1000000" stands for a message of that many bytes. With --time: prints the milliseconds from start to answer.
"""
import socket
import subprocess
import sys
import time

words = sys.argv[1:]
timed = words[:1] == ["--time"]
words = words[1:] if timed else words
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 23)
ours.settimeout(20)
start = time.monotonic()
engine = subprocess.Popen(["criu", "swrk", str(theirs.fileno())], pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
theirs.close()
for word in words:
    message = b"\xff" * int(word[1:]) if word.startswith("x") else bytes.fromhex(word)
    try:
        ours.send(message)
        answer = ours.recv(1 << 20).hex() or "closed"
    except OSError as error:
        answer = f"error {error.errno}"
    if timed:
        print((time.monotonic() - start) * 1000)
    else:
        print(answer)
ours.close()
code = engine.wait(timeout=20)
if not timed:
    print("code", code)
