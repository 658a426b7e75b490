# SPDX-License-Identifier: Apache-2.0
"""A tree of mounts of whatever shape, descriptors of it, and then none of the mounts is in the namespace any more.

mount-tree.py SCENARIO DIR OUT GO: makes what SCENARIO (test/e2e/detached-trees.test.ts) describes below DIR, opens files there,
unmounts all lazily, writes "ready" to OUT. When GO exists it looks at every descriptor again and writes "same", or "BAD what".
"""
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
import time

scenario, top, out, go = sys.argv[1:5]
plan = json.load(open(scenario))
os.umask(0)
os.mkdir(top)
os.mkdir(top + "/sub")
os.mkdir(top + "/at")
AT = top + "/at"


def mount(*args):
    subprocess.run(["mount", *args], check=True)


if plan["base"] == "bind":
    mount("--bind", top + "/sub", AT)
else:
    mount("-t", "tmpfs", "-o", "size=16m", "none", AT)

paths = [AT]
directories = [AT]
fifos = set()
sockets = []
bound = []
for i, node in enumerate(plan["nodes"]):
    path = "%s/%s%d" % (directories[node["parent"] % len(directories)], node["name"], i)
    kind = node["kind"]
    files = [p for p in paths if os.path.isfile(p) and not os.path.islink(p) and p not in fifos]
    if kind == "link":
        target = files[node["target"] % len(files)] if files else None
        if target is None:
            continue
        try:
            os.link(target, path)
        except OSError:  # on another mount
            continue
    elif kind == "file":
        with open(path, "wb") as f:
            f.truncate(node["size"] * 3000)
            f.seek(node["size"] * 1000)
            f.write(b"%d" % i * node["size"])
        os.chmod(path, 0o600 | node["target"] % 0o100)
    elif kind == "fifo":
        os.mkfifo(path)
        fifos.add(path)
    elif kind == "socket":
        if len(os.fsencode(path)) > 107:
            continue
        sk = socket.socket(socket.AF_UNIX, [socket.SOCK_STREAM, socket.SOCK_DGRAM][node["target"] % 2])
        sk.bind(path)
        if node["target"] % 2 == 0:
            sk.listen()
        os.chmod(path, 0o600 | node["target"] % 0o100)
        sockets.append(sk)
        bound.append(path)
        continue
    elif kind == "symlink":
        os.symlink(os.path.basename(paths[node["target"] % len(paths)]), path)
        continue
    else:
        os.mkdir(path, 0o700 | node["target"] % 0o100)
        if kind == "tmpfs":
            mount("-t", "tmpfs", "-o", "size=4m,mode=0750", "none", path)
        elif kind == "bind":
            source = directories[node["target"] % len(directories)]
            mount("--bind", source, path)
        directories.append(path)
    paths.append(path)

fds = []
for each in plan["opens"]:
    path = paths[each["node"] % len(paths)]
    flags = os.O_RDONLY
    # CRIU takes no O_PATH descriptor of a FIFO, wherever it is.
    if each["how"] == "path" and path not in fifos:
        flags = os.O_PATH
    elif path in fifos:
        flags = os.O_RDWR
    elif not os.path.isdir(path):
        flags = {"read": os.O_RDONLY, "write": os.O_RDWR, "append": os.O_WRONLY | os.O_APPEND}[each["how"]]
    fd = os.open(path, flags)
    if flags != os.O_PATH and stat.S_ISREG(os.fstat(fd).st_mode):
        os.lseek(fd, each["offset"], os.SEEK_SET)
    if path in fifos and flags == os.O_RDWR:
        os.write(fd, b"x" * each["offset"])
    fds.append(fd)
    if each["offset"] % 5 == 0:
        fds.append(os.dup(fd))
if plan["inside"]:
    os.chdir(directories[plan["inside"] % len(directories)])
for each in plan["gone"]:
    path = (paths + bound)[each % len(paths + bound)]
    if path in directories:
        continue
    try:
        os.unlink(path)
    except OSError:
        pass
subprocess.run(["umount", "-l", AT], check=True)
with open("/proc/self/mountinfo") as f:
    assert AT not in f.read()


def mount_ids():
    with open("/proc/self/mountinfo") as f:
        return {line.split()[0] for line in f}


def listing(fd, depth=0):
    """What is reached by names from a directory, and what is in it."""
    if depth > 6:
        return "deep"
    found = {}
    for name in sorted(os.listdir(fd)):
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        what = [oct(st.st_mode), st.st_uid, st.st_mtime_ns]
        if stat.S_ISDIR(st.st_mode):
            sub = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            what.append(listing(sub, depth + 1))
            os.close(sub)
        elif stat.S_ISREG(st.st_mode):
            file = os.open(name, os.O_RDONLY, dir_fd=fd)
            what += [st.st_nlink, st.st_size, os.read(file, 1 << 20).strip(b"\0").decode()]
            os.close(file)
        elif stat.S_ISLNK(st.st_mode):
            what.append(os.readlink(name, dir_fd=fd))
        found[name] = what
    return found


def look(fd):
    st = os.fstat(fd)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    info = open("/proc/self/fdinfo/%d" % fd).read()
    seen = {
        "mode": oct(st.st_mode),
        "flags": oct(flags),
        "listed": [line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:")][0] in mount_ids(),
        "gone": st.st_nlink == 0,
    }
    if flags & os.O_PATH:
        return seen
    if stat.S_ISREG(st.st_mode):
        seen["position"] = os.lseek(fd, 0, os.SEEK_CUR)
        seen["size"] = st.st_size
        seen["content"] = open("/proc/self/fd/%d" % fd, "rb").read().strip(b"\0").decode()
    elif stat.S_ISDIR(st.st_mode):
        seen["listing"] = listing(fd)
    elif stat.S_ISFIFO(st.st_mode):
        import array
        import termios

        pending = array.array("i", [0])
        fcntl.ioctl(fd, termios.FIONREAD, pending)
        seen["pending"] = pending[0]
    return seen


def look_at(sk):
    """A socket, its file, and whether who comes by that finds it."""
    fd = fcntl.ioctl(sk, 0x89E0)  # SIOCUNIXFILE
    st = os.fstat(fd)
    seen = look(fd) | {"name": sk.getsockname(), "owner": st.st_uid, "time": st.st_mtime_ns}
    client = socket.socket(socket.AF_UNIX, sk.type)
    client.connect("/proc/self/fd/%d" % fd)
    os.close(fd)
    client.send(b"hello")
    end = sk if sk.type == socket.SOCK_DGRAM else sk.accept()[0]
    seen["found"] = end.recv(100).decode()
    return seen


def all_of_it():
    seen = [look(fd) for fd in fds] + [look_at(sk) for sk in sockets]
    # The same files are the same, whoever opened them.
    inodes = [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in fds]
    seen.append([inodes.index(inode) for inode in inodes])
    if plan["inside"]:
        fd = os.open(".", os.O_RDONLY)
        seen.append(look(fd))
        os.close(fd)
    return seen


before = all_of_it()
with open(out, "w") as f:
    f.write("ready\n")
while not os.path.exists(go):
    time.sleep(0.02)
after = all_of_it()
with open(out, "a") as f:
    for one, other in zip(before, after):
        if one != other:
            f.write("BAD %s IS %s\n" % (json.dumps(one), json.dumps(other)))
    f.write("done\n")
time.sleep(1000)
