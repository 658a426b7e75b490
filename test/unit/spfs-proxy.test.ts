// SPDX-License-Identifier: Apache-2.0
// The proxy phase: what a task does through it is what it would have done to the backend itself.
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type Spfs, type SpfsOptions, startSpfs } from "../../spfs/control.js";
import { endTasks, isPending, makePlaces, recordAll, startTask } from "../support/spfs.js";

let spfs: Spfs | undefined;
let places: ReturnType<typeof makePlaces>;
let number = 0;
const at = (path: string): string => join(places.mountpoint, path);
const behind = (path: string): string => join(places.backend, path);
const proxy = () => places.lend((fd) => spfs!.proxy(fd, { gone: "error" }));
const start = async (options: Partial<SpfsOptions> = {}) => {
  spfs = await startSpfs(
    {
      id: `proxy-${process.pid}-${++number}`,
      mountpoint: places.mountpoint,
      timeoutMs: 0,
      passthrough: "auto",
      onLoss: "stub",
      ...options,
    },
    recordAll(places.backend),
  );
};

afterEach(async () => {
  endTasks();
  // A worker that died would have been replaced without anyone seeing it.
  if (spfs !== undefined) expect((await spfs.status()).restarts).toBe(0);
  await spfs?.stop();
  spfs = undefined;
  places.remove();
});

test.each(["auto", "off"] as const)(
  "files are made, changed, linked, renamed and removed at the backend (passthrough %s)",
  async (passthrough) => {
    places = makePlaces({ file: "x" });
    await start({ passthrough });
    await proxy();
    writeFileSync(at("new"), "contents");
    mkdirSync(at("d"));
    const task = startTask();
    await task.run(`
m = "${places.mountpoint}"
os.link(m + "/new", m + "/d/linked"); os.symlink("../new", m + "/d/symbolic"); os.mkfifo(m + "/d/fifo", 0o600)
os.mknod(m + "/d/null", 0o020666, os.makedev(1, 3))
os.rename(m + "/file", m + "/d/moved"); os.chmod(m + "/d/moved", 0o4711); os.utime(m + "/d/moved", (5, 6)); os.chown(m + "/d/moved", 12, 34)
os.chmod(m + "/d/moved", 0o4711)
os.truncate(m + "/new", 3)
tmp = os.open(m + "/d", os.O_TMPFILE | os.O_RDWR, 0o600); os.write(tmp, b"nameless")
libc = ctypes.CDLL(None, use_errno=True)
if libc.linkat(-100, b"/proc/self/fd/%d" % tmp, -100, (m + "/d/named").encode(), 0x400): raise OSError(ctypes.get_errno(), "linkat")
`);
    expect(readdirSync(behind("d")).sort()).toEqual(["fifo", "linked", "moved", "named", "null", "symbolic"]);
    expect(readFileSync(behind("d/linked"), "utf8")).toBe("con");
    expect(readlinkSync(behind("d/symbolic"))).toBe("../new");
    expect(readFileSync(behind("d/named"), "utf8")).toBe("nameless");
    expect(lstatSync(behind("d/null")).rdev).toBe(lstatSync("/dev/null").rdev);
    expect(lstatSync(at("d/null")).rdev).toBe(lstatSync("/dev/null").rdev);
    expect(statSync(behind("d/moved"))).toMatchObject({
      uid: 12,
      gid: 34,
      mode: 0o104711,
      atimeMs: 5000,
      mtimeMs: 6000,
    });
    expect(statSync(at("d/linked")).nlink).toBe(2);
    expect(statSync(at("d/linked")).ino).toBe(statSync(at("new")).ino);
    await task.run(`
def renameat2(a, b, flags):
    if libc.renameat2(-100, a.encode(), -100, b.encode(), flags): raise OSError(ctypes.get_errno(), "renameat2")
renameat2(m + "/new", m + "/d/named", 2)
os.unlink(m + "/d/fifo")
`);
    await expect(task.run('renameat2(m + "/new", m + "/d/named", 1)')).rejects.toThrow("EEXIST");
    expect(readFileSync(behind("new"), "utf8")).toBe("nameless");
    expect(readFileSync(at("d/named"), "utf8")).toBe("con");
    await expect(task.run('os.rmdir(m + "/d")')).rejects.toThrow("ENOTEMPTY");
    await expect(task.run('import shutil; shutil.rmtree(m + "/d"); os.stat(m + "/d")')).rejects.toThrow("ENOENT");
    expect(readdirSync(places.backend)).toEqual(["new"]);
  },
);

describe("an open file", () => {
  // Opened in restore (never passed through), in proxy with passthrough, in proxy without.
  describe.each(["restore", "passthrough", "page cache"])("of %s", (kind) => {
    const task = () => current;
    let current: ReturnType<typeof startTask>;
    const open = async (flags: string): Promise<void> => {
      if (kind !== "restore") {
        await proxy();
        expect((await spfs!.status()).passthrough).toBe(kind === "passthrough");
      }
      await current.run(`path = "${at("file")}"; fd = os.open(path, ${flags})`);
      if (kind === "restore") await proxy();
    };
    beforeEach(async () => {
      places = makePlaces({ file: "0123456789".repeat(1000) });
      await start({ passthrough: kind === "page cache" ? "off" : "auto" });
      current = startTask();
    });

    test("is read, written, truncated, and has its holes", async () => {
      await open("os.O_RDWR");
      expect(
        await task().run(`
os.pwrite(fd, b"abc", 5)
os.ftruncate(fd, 1 << 20); os.pwrite(fd, b"end", (1 << 20) - 3); os.fsync(fd); os.fdatasync(fd)
r = [os.pread(fd, 10, 0).decode(), os.lseek(fd, 0, os.SEEK_HOLE) >= 10000, os.lseek(fd, 20000, os.SEEK_DATA) > 20000, os.fstat(fd).st_size]
os.posix_fallocate(fd, 0, 2 << 20)
r.append(os.fstat(fd).st_size)
`),
      ).toEqual(["01234abc89", true, true, 1 << 20, 2 << 20]);
      expect(readFileSync(behind("file")).subarray(0, 10).toString()).toBe("01234abc89");
    });

    test("is mapped, shared and private, and what is written in a shared mapping is at the backend", async () => {
      await open("os.O_RDWR");
      expect(
        await task().run(`
shared = mmap.mmap(fd, 10000, mmap.MAP_SHARED); private = mmap.mmap(fd, 10000, mmap.MAP_PRIVATE)
shared[0:3] = b"sha"; private[4096:4099] = b"pri"; shared.flush()
r = [shared[0:5].decode(), private[4096:4099].decode(), os.pread(fd, 3, 0).decode(), os.pread(fd, 3, 4096).decode()]
`),
      ).toEqual(["sha34", "pri", "sha", "678"]);
      expect(readFileSync(behind("file"), "utf8").slice(0, 5)).toBe("sha34");
    });

    test("is appended to by several at once, and no line is lost", async () => {
      await open("os.O_WRONLY | os.O_APPEND");
      await task().run(`
os.ftruncate(fd, 0)
fds = [fd] + [os.open(path, os.O_WRONLY | os.O_APPEND) for _ in range(3)]
def lines(n, f):
    for i in range(100): os.write(f, b"%d-%d\\n" % (n, i))
threads = [threading.Thread(target=lines, args=(n, f)) for n, f in enumerate(fds)]
[t.start() for t in threads]; [t.join() for t in threads]
`);
      const lines = readFileSync(behind("file"), "utf8").trim().split("\n");
      expect(lines).toHaveLength(400);
      expect(new Set(lines).size).toBe(400);
    });

    test("opened with O_DIRECT is read, written and mapped", async () => {
      await open("os.O_RDWR | os.O_DIRECT");
      expect(
        await task().run(`
page = mmap.mmap(-1, 4096); page[0:6] = b"direct"
os.pwritev(fd, [page], 4096)
back = mmap.mmap(-1, 4096); os.preadv(fd, [back], 4096)
shared = mmap.mmap(fd, 8192, mmap.MAP_SHARED)
r = [back[0:6].decode(), shared[4096:4102].decode()]
`),
      ).toEqual(["direct", "direct"]);
      expect(readFileSync(behind("file")).subarray(4096, 4102).toString()).toBe("direct");
    });

    test("goes on without its name", async () => {
      await open("os.O_RDWR");
      expect(
        await task().run(`
os.unlink(path); os.pwrite(fd, b"gone", 0)
r = [os.fstat(fd).st_nlink, os.pread(fd, 6, 0).decode(), os.path.exists(path), os.fstat(fd).st_size]
os.ftruncate(fd, 5); os.fchmod(fd, 0o600)
r += [os.fstat(fd).st_size, os.fstat(fd).st_mode & 0o777]
with open("/proc/self/fd/%d" % fd) as f: r.append(f.read())
`),
      ).toEqual([0, "gone45", false, 10000, 5, 0o600, "gone4"]);
      expect(readdirSync(places.backend)).toEqual([]);
    });

    test("loses the bits that give rights to who runs it when it is changed, as at the backend itself", async () => {
      writeFileSync(behind("real"), "0123456789".repeat(1000));
      chmodSync(places.backend, 0o755);
      chmodSync(join(places.backend, ".."), 0o755);
      await open("os.O_RDWR");
      const modes = (path: string, fd: string): Promise<unknown> =>
        task().run(`
def after(path, fd, uid, change):
    os.chown(path, 1234, 0); os.chmod(path, 0o6777); os.setxattr(path, "security.capability", bytes.fromhex("0100000200040000" + "00" * 12))
    os.seteuid(uid)
    try: change(path, fd)
    finally: os.seteuid(0)
    return ["%o" % (os.stat(path).st_mode & 0o7777), "security.capability" in os.listxattr(path)]
def copy(path, fd):
    other = os.open(path, os.O_RDONLY)
    os.copy_file_range(other, fd, 100, 0, 200); os.close(other)
changes = [lambda path, fd: os.pwrite(fd, b"x", 1), lambda path, fd: os.ftruncate(fd, 9000), lambda path, fd: os.truncate(path, 8000),
    lambda path, fd: os.posix_fallocate(fd, 0, 9000), copy, lambda path, fd: os.pread(fd, 1, 1),
    lambda path, fd: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))]
r = [after("${path}", ${fd}, 1234, change) for change in changes] + [after("${path}", ${fd}, 0, lambda path, fd: os.chown(path, 5, 6))]
`);
      await task().run(`real = os.open("${behind("real")}", os.O_RDWR)`);
      const real = await modes(behind("real"), "real");
      expect(real).toContainEqual(["777", false]);
      expect(real).toContainEqual(["6777", true]);
      expect(await modes(at("file"), "fd")).toEqual(real);
      expect(statSync(behind("file")).mode & 0o7777).toBe(0o777);
      // The bits that the kernel remembers are not what it runs a program by.
      const ids = (change: string): Promise<unknown> =>
        task().run(`
import shutil, subprocess
program = "${at("program")}"; shutil.copy("/usr/bin/id", program)
fd2 = os.open(program, os.O_RDWR); first = os.pread(fd2, 1, 0); os.chmod(program, 0o4755)
os.seteuid(1234); ${change}; os.seteuid(0); os.close(fd2)
r = subprocess.run([program, "-u"], user=1234, group=1234, extra_groups=[], capture_output=True, text=True).stdout
`);
      expect(await ids("pass")).toBe("0\n");
      expect(await ids("os.pwrite(fd2, first, 0)")).toBe("1234\n");
    });

    test("copies to another by copy_file_range, and refuses an ioctl that nobody knows", async () => {
      await open("os.O_RDWR");
      await task().run(`
to = os.open("${at("to")}", os.O_CREAT | os.O_RDWR)
done = 0
while done < 10000: done += os.copy_file_range(fd, to, 10000 - done, done, done)
`);
      expect(readFileSync(behind("to"))).toEqual(readFileSync(behind("file")));
      await expect(task().run("fcntl.ioctl(fd, 0x12345678, 0)")).rejects.toThrow("ENOTTY");
    });
  });
});

test("extended attributes and ACLs are the backend's, and an ACL is obeyed", async () => {
  places = makePlaces({ file: "secret" });
  chmodSync(places.backend, 0o755);
  chmodSync(join(places.backend, ".."), 0o755);
  chmodSync(behind("file"), 0o600);
  await start();
  await proxy();
  const task = startTask();
  // Version 2; user::rw-, user:1234:r--, group::---, mask::r--, other::---
  const acl = Buffer.from(
    [
      [1, 6, 0xffffffff],
      [2, 4, 1234],
      [4, 0, 0xffffffff],
      [16, 4, 0xffffffff],
      [32, 0, 0xffffffff],
    ].reduce(
      (all, [tag, permission, id]) => {
        const entry = Buffer.alloc(8);
        entry.writeUInt16LE(tag!, 0);
        entry.writeUInt16LE(permission!, 2);
        entry.writeUInt32LE(id!, 4);
        return Buffer.concat([all, entry]);
      },
      Buffer.from([2, 0, 0, 0]),
    ),
  ).toString("hex");
  expect(
    await task.run(`
p = "${at("file")}"
os.setxattr(p, "user.one", b"1"); os.setxattr(p, "user.two", b"x" * 2000); os.removexattr(p, "user.one")
os.setxattr(p, "trusted.three", b"3")
r = [sorted(os.listxattr(p)), len(os.getxattr(p, "user.two"))]
os.setxattr(p, "system.posix_acl_access", bytes.fromhex("${acl}"))
`),
  ).toEqual([["trusted.three", "user.two"], 2000]);
  await expect(task.run('os.setxattr(p, "user.two", b"", os.XATTR_CREATE)')).rejects.toThrow("EEXIST");
  await expect(task.run('os.getxattr(p, "user.one")')).rejects.toThrow("ENODATA");
  expect(await task.run(`r = os.getxattr("${behind("file")}", "system.posix_acl_access").hex()`)).toBe(acl);
  const readAs = (uid: number): string =>
    execFileSync("setpriv", ["--reuid", `${uid}`, "--regid", `${uid}`, "--clear-groups", "cat", at("file")], {
      stdio: ["ignore", "pipe", "ignore"],
    }).toString();
  expect(readAs(1234)).toBe("secret");
  expect(() => readAs(1235)).toThrow();
});

test("what a task makes is its own, with its umask, in a directory's group if that has the bit", async () => {
  places = makePlaces({ "open/x": "", "shared/x": "", "group/x": "" });
  chmodSync(join(places.backend, ".."), 0o755);
  for (const [name, mode] of [
    ["open", 0o777],
    ["shared", 0o2777],
    ["group", 0o770],
  ] as const) {
    chownSync(behind(name), 0, 4321);
    chmodSync(behind(name), mode);
  }
  await start();
  await proxy();
  execFileSync("setpriv", [
    "--reuid",
    "1234",
    "--regid",
    "1234",
    "--groups",
    "4321",
    "sh",
    "-c",
    `umask 027; cd ${places.mountpoint}; for d in open shared group; do echo > $d/file; mkdir $d/dir; ln -s x $d/link; mkfifo $d/fifo; done`,
  ]);
  for (const [name, gid] of [
    ["open", 1234],
    ["shared", 4321],
    ["group", 1234],
  ] as const) {
    for (const made of ["file", "dir", "link", "fifo"])
      expect(lstatSync(behind(`${name}/${made}`)), `${name}/${made}`).toMatchObject({ uid: 1234, gid });
    expect(lstatSync(behind(`${name}/file`)).mode).toBe(0o100640);
    expect(lstatSync(behind(`${name}/dir`)).mode & 0o777).toBe(0o750);
  }
  expect(() =>
    execFileSync("setpriv", ["--reuid", "1234", "--regid", "1", "--clear-groups", "ls", at("group")], {
      stdio: "ignore",
    }),
  ).toThrow();
});

test("a directory of 10,000 entries is told whole, once, and a stream that began before goes on where it was", async () => {
  const files = Object.fromEntries(Array.from({ length: 10_000 }, (_, i) => [`many/entry-${i}`, ""]));
  places = makePlaces(files);
  await start();
  const task = startTask();
  await spfs!.stub();
  await proxy();
  await task.run(`
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("${at("many")}", os.O_RDONLY | os.O_DIRECTORY)
buf = ctypes.create_string_buffer(8192)
def names():
    n = libc.syscall(217, fd, buf, 8192)
    if n < 0: raise OSError(ctypes.get_errno(), "getdents64")
    at = 0; found = []
    while at < n:
        length, = struct.unpack_from("H", buf, at + 16)
        found.append(buf.raw[at + 19:at + length].split(b"\\0")[0].decode()); at += length
    return found
all = names() + names() + names()
`);
  await spfs!.stub();
  await proxy();
  expect(
    await task.run(`
while True:
    more = names()
    if not more: break
    all += more
r = [len(all), len(set(all)), sorted(all) == sorted([".", ".."] + os.listdir("${behind("many")}"))]
`),
  ).toEqual([10_002, 10_002, true]);
  expect(readdirSync(at("many"))).toHaveLength(10_000);
  expect(
    execFileSync("sh", ["-c", `ls -l ${at("many")} | wc -l`])
      .toString()
      .trim(),
  ).toBe("10001");
  // In the place that telldir gave, after others have come and gone.
  expect(
    await task.run(`
os.lseek(fd, 0, 0); first = names(); place = os.lseek(fd, 0, 1); next = names()
os.unlink("${at("many")}/" + first[5]); os.close(os.open("${at("many/fresh")}", os.O_CREAT))
os.lseek(fd, place, 0)
again = [n for n in names() if n != "fresh"]; next = [n for n in next if n != "fresh"]
r = len(again) > 20 and again[:20] == next[:20]
`),
  ).toBe(true);
});

test("what another changes at the backend is seen after a moment: contents, sizes, names", async () => {
  places = makePlaces({ file: "before", gone: "" });
  await start({ passthrough: "off" });
  await proxy();
  const task = startTask();
  expect(await task.run(`fd = os.open("${at("file")}", os.O_RDONLY); r = os.pread(fd, 99, 0).decode()`)).toBe("before");
  expect(readdirSync(places.mountpoint).sort()).toEqual(["file", "gone"]);
  execFileSync("sh", ["-c", "rm gone; printf 'after, and longer' > file; : > come"], { cwd: places.backend });
  await sleep(1100);
  expect(readdirSync(places.mountpoint).sort()).toEqual(["come", "file"]);
  expect(await task.run("r = [os.pread(fd, 99, 0).decode(), os.fstat(fd).st_size]")).toEqual(["after, and longer", 17]);
  expect(() => statSync(at("gone"))).toThrow("ENOENT");
});

test("mounted read-only it refuses changes and reads on", async () => {
  places = makePlaces({ file: "contents" });
  await start({ readOnly: true });
  await proxy();
  expect(() => writeFileSync(at("file"), "")).toThrow("EROFS");
  expect(() => mkdirSync(at("d"))).toThrow("EROFS");
  expect(readFileSync(at("file"), "utf8")).toBe("contents");
});

test("10,000 open files go on at their offsets", async () => {
  places = makePlaces(Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`f${i}`, `contents of ${i}`])));
  await start();
  const tasks = [startTask(), startTask()];
  for (const task of tasks)
    await task.run(`
import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
fds = [os.open("${places.mountpoint}/f%d" % i, os.O_RDWR) for i in range(5000)]
for fd in fds: os.lseek(fd, 9, 0)
`);
  await spfs!.stub();
  expect(await proxy()).toEqual({ reopened: 10_000, differs: [] });
  for (const task of tasks)
    expect(await task.run('r = [i for i, fd in enumerate(fds) if os.read(fd, 99).decode() != "of %d" % i]')).toEqual(
      [],
    );
});

test("locks of each kind hold between tasks, are told in /proc, where CRIU looks, and outlive switches", async () => {
  places = makePlaces({ file: "0123456789" });
  await start();
  const [first, second] = [startTask(), startTask()];
  for (const task of [first, second])
    await task.run(`
fds = [os.open("${at("file")}", os.O_RDWR) for _ in range(3)]
def ofd(fd, kind, start, length):
    fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", kind, 0, start, length, 0))
`);
  await first.run(`
fcntl.lockf(fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 0)
ofd(fds[1], fcntl.F_WRLCK, 4, 2)
fcntl.flock(fds[2], fcntl.LOCK_EX | fcntl.LOCK_NB)
`);
  await spfs!.stub();
  await proxy();
  await expect(second.run("fcntl.lockf(fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 0)")).rejects.toThrow("EAGAIN");
  await expect(second.run("ofd(fds[1], fcntl.F_WRLCK, 5, 1)")).rejects.toThrow("EAGAIN");
  await expect(second.run("fcntl.flock(fds[2], fcntl.LOCK_SH | fcntl.LOCK_NB)")).rejects.toThrow("EAGAIN");
  await second.run("fcntl.lockf(fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 2)");
  const kinds = (await first.run(
    'r = [line.split()[2] for fd in fds for line in open("/proc/self/fdinfo/%d" % fd) if line.startswith("lock:")]',
  )) as string[];
  expect([...new Set(kinds)].sort()).toEqual(["FLOCK", "OFDLCK", "POSIX"]);
  const waits = second.run("fcntl.lockf(fds[0], fcntl.LOCK_EX, 2, 0)");
  expect(await isPending(waits)).toBe(true);
  first.kill();
  await first.ended;
  await waits;
  await second.run("fcntl.flock(fds[2], fcntl.LOCK_EX | fcntl.LOCK_NB)");
});
