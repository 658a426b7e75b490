# SPDX-License-Identifier: Apache-2.0
"""Whether two checkpoints say the same of the sockets whose inodes both have: direct-images.py FIRST SECOND COUNT.

The first has read them by X-ray, the second through descriptors. Left out is what is each checkpoint's own: numbers of files, clocks, which
segment told the window last; that CRIU names the system's own values, too; and how much of a connection waits, as its backlog.
"""
import json
import os
import subprocess
import sys


def decode(path):
    return json.loads(subprocess.check_output(["cryoshim", "crit", "decode", "-i", path]))["entries"]


def sockets(images):
    found = {}
    for isk in (entry["isk"] for entry in decode(f"{images}/files.img") if "isk" in entry):
        isk.pop("id")
        isk.pop("fown")
        if isk["state"] != "LISTEN":
            isk.pop("backlog")
        for options, key, usual in (("ip_opts", "ttl", 64), ("tcp_opts", "keepcnt", 9), ("tcp_opts", "keepintvl", 75)):
            if isk[options].get(key) == usual:
                isk[options].pop(key)
        path = f"{images}/tcp-stream-{isk['ino']:x}.img"
        if os.path.exists(path):
            (stream,) = decode(path)
            stream.pop("timestamp")
            stream.pop("snd_wl1")
            isk["stream"] = stream
        found[isk["ino"]] = isk
    return found


first, second = sockets(sys.argv[1]), sockets(sys.argv[2])
# By descriptors a process has the same sockets, and more of them.
same = [ino for ino in first if ino in second]
bad = [(first[ino], second[ino]) for ino in same if first[ino] != second[ino]]
for one, other in bad:
    for key in sorted(set(one) | set(other)):
        if one.get(key) != other.get(key):
            print(f"{key}: {str(one.get(key))[:300]} by X-ray, {str(other.get(key))[:300]} by CRIU")
sys.exit(1 if bad or len(same) != int(sys.argv[3]) else 0)
