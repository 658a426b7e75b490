# SPDX-License-Identifier: Apache-2.0
"""echoed.py ADDRESS PORT STATE: lines that an echo server must send back, over two connections, until STATE.stop exists.

Writes how many came back to STATE, again and again; says on stderr what is wrong, and ends with 1.
"""
import os
import socket
import sys
import time

address, port, state = sys.argv[1], int(sys.argv[2]), sys.argv[3]
connections = [socket.create_connection((address, port)) for _ in range(2)]
for connection in connections:
    connection.settimeout(60)
count = 0
while not os.path.exists(f"{state}.stop"):
    for connection in connections:
        line = f"line {count} ".encode() * 20
        connection.sendall(line)
        back = b""
        while len(back) < len(line):
            part = connection.recv(len(line) - len(back))
            if not part:
                sys.exit(f"closed after {count}")
            back += part
        if back != line:
            sys.exit(f"wrong after {count}: {back!r}")
        count += 1
    with open(f"{state}.new", "w") as f:
        f.write(str(count))
    os.rename(f"{state}.new", state)
    time.sleep(0.001)
