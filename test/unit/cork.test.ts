// SPDX-License-Identifier: Apache-2.0
// Corked UDP sockets, read by X-ray on the real kernel.
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { afterEach, expect, test } from "vitest";
import { addon, closeFd, pidfdGetfd, pidfdOpen } from "../../native/index.js";
import { CorkReader } from "../../shim/xray/corks.js";

const SOL_UDP = 17;
const UDP_CORK = 1;

/** Runs Python with socket as s; `socks` are its sockets to look at. The next line of input makes it uncork all. */
let child: ChildProcess | undefined;
const fds: number[] = [];
let reader: CorkReader | undefined;
afterEach(() => {
  child?.kill("SIGKILL");
  for (const fd of fds.splice(0)) closeFd(fd);
  reader?.close();
  reader = undefined;
});

const HEAD = `
import sys, socket as s, struct
R = s.socket(s.AF_INET, s.SOCK_DGRAM); R.bind(("127.0.0.1", 0)); to = R.getsockname()
R6 = s.socket(s.AF_INET6, s.SOCK_DGRAM); R6.bind(("::1", 0)); to6 = R6.getsockname()
CORK = 1
def cork(family=s.AF_INET, proto=0):
    one = s.socket(family, s.SOCK_DGRAM, proto); one.setsockopt(s.SOL_UDP, CORK, 1); return one
`;
const TAIL = `
print(to[1], to6[1], *[each.fileno() for each in socks], *globals().get("sums", []), flush=True)
sys.stdin.readline()
`;

const look = async (script: string) => {
  child = spawn("unshare", ["--net", "sh", "-c", 'ip link set lo up && exec python3 -c "$0"', HEAD + script + TAIL], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const [line] = await once(createInterface({ input: child.stdout! }), "line");
  const words = String(line).trim().split(" ");
  const sums = words.filter((word) => word.length === 32);
  const [port, port6, ...numbers] = words.slice(0, words.length - sums.length).map(Number);
  const pidfd = pidfdOpen(child.pid!);
  const mine = numbers.map((fd) => pidfdGetfd(pidfd, fd));
  closeFd(pidfd);
  fds.push(...mine);
  reader = new CorkReader();
  const all = reader.read();
  return { corks: mine.map((fd) => all.get(fd)), mine, port: port!, port6: port6!, sums };
};

test("bytes, destination and what was given with the first piece are read; the datagram waits on", async () => {
  const { corks, mine, port, port6 } = await look(`
a = cork(); a.sendto(b"one", to); a.sendto(b"two", to)
b = cork(); b.connect(to); b.sendmsg([b"x" * 65507], [(s.IPPROTO_IP, s.IP_TTL, struct.pack("i", 7)), (s.IPPROTO_IP, s.IP_TOS, struct.pack("i", 16))])
c = s.socket(s.AF_INET6, s.SOCK_DGRAM); c.sendmsg([b"six"], [(41, 52, struct.pack("i", 9)), (41, 67, struct.pack("i", 32))], s.MSG_MORE, to6)
d = s.socket(s.AF_INET6, s.SOCK_DGRAM); d.sendto(b"mapped", s.MSG_MORE, ("::ffff:127.0.0.1", to[1]))
e = cork()
f = s.socket(s.AF_INET, s.SOCK_DGRAM); f.sendto(b"gone", to)
socks = [a, b, c, d, e, f]`);
  const [a, b, c, d, e, f] = corks;
  const local = Buffer.from([127, 0, 0, 1]);
  expect(a).toMatchObject({
    corked: true,
    pending: { family: 2, data: Buffer.from("onetwo"), destination: local, port },
  });
  expect(b!.pending).toMatchObject({ ttl: 7, tos: 16, port });
  expect(b!.pending!.data.equals(Buffer.alloc(65507, "x"))).toBe(true);
  expect(c).toMatchObject({
    corked: false,
    pending: { family: 10, data: Buffer.from("six"), port: port6, hopLimit: 9, trafficClass: 32 },
  });
  expect(d).toMatchObject({
    corked: false,
    pending: { family: 2, data: Buffer.from("mapped"), destination: local, port },
  });
  expect(e).toEqual({ corked: true });
  expect(f).toBeUndefined();
  expect(addon.getSocketOption(mine[0]!, SOL_UDP, UDP_CORK)).toBe(1);
});

test("datagrams of random pieces are read byte by byte, whatever pages they lie in", async () => {
  const { corks, sums } = await look(`
import random, hashlib
socks, sums = [], []
for seed in range(60):
    r = random.Random(seed); six = seed % 2; one = cork(s.AF_INET6 if six else s.AF_INET)
    left = r.randint(1, 65000 if seed % 3 else 3000); whole = b""
    while left > 0:
        n = min(left, r.choice([1, 7, 100, 1472, 1500, 4096, 9000, 40000])); left -= n
        piece = r.randbytes(n); whole += piece; one.sendto(piece, to6 if six else to)
    socks.append(one); sums.append(hashlib.md5(whole).hexdigest())`);
  const md5 = (bytes: Buffer | undefined): string =>
    createHash("md5")
      .update(bytes ?? "")
      .digest("hex");
  expect(sums).toHaveLength(60);
  expect(corks.map((cork) => md5(cork?.pending?.data))).toEqual(sums);
});

test("a hidden socket says that it is not corked, others say that they are; afterwards it says so again", async () => {
  const { mine } = await look("socks = [cork(), cork()]; [each.sendto(b'x', to) for each in socks]");
  const corked = (): number[] => mine.map((fd) => addon.getSocketOption(fd, SOL_UDP, UDP_CORK));
  expect(corked()).toEqual([1, 1]);
  reader!.hide(Int32Array.of(mine[0]!));
  expect(corked()).toEqual([0, 1]);
  reader!.close();
  reader = undefined;
  expect(corked()).toEqual([1, 1]);
});
