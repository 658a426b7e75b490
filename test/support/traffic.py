# SPDX-License-Identifier: Apache-2.0
"""traffic.py DEVICE PORT ADDRESS...: talks to `echo` at each address by TCP and UDP without a pause, until SIGTERM.

Then prints what became of it as JSON. TCP: every byte must come back in order over the first connection. UDP: numbered
datagrams; those that get no answer are lost, which is allowed, but no error may come for them. A datagram exchange that
waits for each answer and sends again, as QUIC does, must go on. New connections are tried all the time: none may be
refused. On DEVICE everything is watched for RST and ICMP errors. The files /tmp/quiet-begin and /tmp/quiet-end, by their
times of change, limit the span in which nothing may come from the addresses.
"""

import errno
import json
import os
import signal
import socket
import struct
import sys
import threading
import time

device, port, addresses = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
seen = {"rst": 0, "icmp": 0, "packets": 0, "said": []}
result = {}
from_container = []


def watch():
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
    if device != "any":
        wire.bind((device, 0))
    wire.settimeout(0.2)
    numeric = [socket.inet_pton(socket.AF_INET6 if ":" in a else socket.AF_INET, a) for a in addresses]
    while not stop.is_set():
        try:
            frame = wire.recv(65536)
        except TimeoutError:
            continue
        now = time.time()
        seen["packets"] += 1
        kind, rest = struct.unpack("!H", frame[12:14])[0], frame[14:]
        if kind == 0x0800:
            protocol, source, payload = rest[9], rest[12:16], rest[(rest[0] & 15) * 4 :]
            destination = rest[16:20]
        elif kind == 0x86DD:
            protocol, source, payload = rest[6], rest[8:24], rest[40:]
            destination = rest[24:40]
        else:
            continue
        if source not in numeric and destination not in numeric:
            continue
        ports = struct.unpack("!HH", payload[:4]) if len(payload) >= 4 else (0, 0)
        if protocol == 6 and port in ports and payload[13] & 4:
            seen["rst"] += 1
        if protocol == 1 and payload[0] == 3 or protocol == 58 and payload[0] == 1:
            seen["icmp"] += 1
        neighbours = protocol == 58 and payload[0] in range(130, 144)
        if source in numeric and not neighbours and (protocol not in (6, 17) or ports[0] == port):
            from_container.append(now)


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def stream(address, mine):
    sk = socket.create_connection((address, port), timeout=20)
    mine["port"] = sk.getsockname()[1]
    number = 0
    while not stop.is_set():
        data = struct.pack("!Q", number) * 64
        start = time.time()
        try:
            sk.sendall(data)
            back = b""
            while len(back) < len(data):
                part = sk.recv(65536)
                if not part:
                    mine["error"] = "closed"
                    return
                back += part
        except OSError as error:
            mine["error"] = errno.errorcode.get(error.errno, str(error))
            return
        if back != data:
            mine["error"] = "other bytes came back"
            return
        mine["gap"] = max(mine["gap"], time.time() - start)
        mine["sent"] += len(data)
        number += 1
        time.sleep(0.003)


def datagrams(address, mine):
    sk = socket.socket(family(address), socket.SOCK_DGRAM)
    sk.connect((address, port))
    sk.setblocking(False)
    while not stop.is_set():
        try:
            sk.send(struct.pack("!Q", mine["sent"]))
            mine["sent"] += 1
            while sk.recv(64):
                mine["back"] += 1
        except BlockingIOError:
            pass
        except OSError as error:
            mine["error"] = errno.errorcode[error.errno]
        time.sleep(0.003)


def exchange(address, mine):
    """Stop and wait with retransmission over an unconnected socket: the peer's address must not change either."""
    sk = socket.socket(family(address), socket.SOCK_DGRAM)
    sk.settimeout(0.05)
    number = 0
    while not stop.is_set():
        sk.sendto(struct.pack("!Q", number), (address, port))
        mine["sent"] += 1
        try:
            data, peer = sk.recvfrom(64)
        except TimeoutError:
            continue
        except OSError as error:
            mine["error"] = errno.errorcode[error.errno]
            continue
        if data == struct.pack("!Q", number):
            mine["back"] += 1
            number += 1
            mine["last"] = time.time()
        time.sleep(0.003)


def connects(address, mine):
    # Not before the dump: CRIU refuses listeners with a connection in flight, unless it is told to skip those.
    while not stop.is_set() and not os.path.exists("/tmp/quiet-begin"):
        time.sleep(0.05)
    while not stop.is_set():
        sk = socket.socket(family(address), socket.SOCK_STREAM)
        sk.settimeout(0.1)
        mine["sent"] += 1
        try:
            sk.connect((address, port))
            mine["back"] += 1
            sk.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        except TimeoutError:
            pass
        except OSError as error:
            mine["error"] = errno.errorcode.get(error.errno, str(error))
        sk.close()
        time.sleep(0.05)


threads = [threading.Thread(target=watch)]
for address in addresses:
    for work in (stream, datagrams, exchange, connects):
        mine = result[f"{work.__name__} {address}"] = {"sent": 0, "back": 0, "gap": 0, "error": None}
        threads.append(threading.Thread(target=work, args=(address, mine), daemon=True))
for thread in threads:
    thread.start()
open("/tmp/traffic-started", "w").close()
while not stop.is_set():
    time.sleep(0.05)
threads[0].join()
time.sleep(0.3)
try:
    begin, end = (os.stat(f"/tmp/quiet-{edge}").st_mtime for edge in ("begin", "end"))
    seen["leaked"] = sum(1 for moment in from_container if begin <= moment <= end)
except FileNotFoundError:
    pass
seen["fromContainer"] = len(from_container)
print(json.dumps({"seen": seen, "flows": result}))
sys.stdout.flush()
os._exit(0)
