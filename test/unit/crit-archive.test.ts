// SPDX-License-Identifier: Apache-2.0
import { execFileSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createGzip, gzipSync } from "node:zlib";
import fc from "fast-check";
import { type Header, pack } from "tar-stream";
import { afterEach, beforeEach, expect, test } from "vitest";
import { openCheckpoint, readParts } from "../../crit/checkpoint.js";
import { decode, encode } from "../../crit/cli/convert.js";
import { details } from "../../crit/details.js";
import { diff } from "../../crit/diff.js";
import { htmlPage } from "../../crit/html.js";
import { encodeImage, type KindName } from "../../crit/image.js";
import { fdSource, type Sink } from "../../crit/io.js";
import { writeJson } from "../../crit/json/image.js";
import type { Message } from "../../crit/message.js";
import { netlinkEntries } from "../../crit/netlink.js";
import { overview } from "../../crit/overview.js";
import { dumpRegion, regionOf, writeRegion } from "../../crit/region.js";
import { type Hit, search } from "../../crit/search.js";
import { streamImage } from "../../crit/stream.js";

const RUNS = Number(process.env.FUZZ_RUNS ?? 300);
const PAGE = 4096;

let dir = "";
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "cryoshim-archive-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const image = (kind: KindName, ...messages: Message[]): Buffer =>
  Buffer.from(encodeImage({ kind, entries: messages.map((message) => ({ message })) }));
const START = 0x10000n;

/** One task with its memory: three pages, a gap of one, two pages. */
const memory = (): Buffer => Buffer.from(Array.from({ length: 5 * PAGE }, (_, i) => (i * 7) % 13));
const files = (pages = memory()): Record<string, Buffer> => ({
  "inventory.img": image("INVENTORY", { img_version: 2 }),
  "pstree.img": image("PSTREE", { pid: 1, ppid: 0, pgid: 1, sid: 1, threads: [1] }),
  "core-1.img": image("CORE", {
    mtype: 1,
    tc: { task_state: 1, exit_code: 0, personality: 0, flags: 0, blk_sigset: 0n, comm: "<b>&init" },
  }),
  "pagemap-1.img": image(
    "PAGEMAP",
    { pages_id: 1 },
    { vaddr: START, compat_nr_pages: 3, flags: 4 },
    { vaddr: START + 4n * 4096n, compat_nr_pages: 2, flags: 4 },
  ),
  "pages-1.img": pages,
});
const tar = async (members: Iterable<[Partial<Header> & { name: string }, Buffer]>): Promise<Buffer> => {
  const archive = pack();
  for (const [header, data] of members) header.type === "symlink" ? archive.entry(header) : archive.entry(header, data);
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
};
const members = (all: Record<string, Buffer>): [{ name: string }, Buffer][] =>
  Object.entries(all).map(([name, data]) => [{ name: `checkpoint/${name}` }, data]);
/** The same checkpoint as a directory and in each kind of archive. */
const everyWay = async (all: Record<string, Buffer>): Promise<string[]> => {
  mkdirSync(join(dir, "images"));
  for (const [name, data] of Object.entries(all)) writeFileSync(join(dir, "images", name), data);
  const plain = await tar([...members(all), [{ name: `${"long/".repeat(40)}rootfs` }, Buffer.from("x")]]);
  writeFileSync(join(dir, "c.tar"), plain);
  writeFileSync(join(dir, "c.tar.gz"), gzipSync(plain));
  execFileSync("zstd", ["-q", join(dir, "c.tar")]);
  return ["images", "c.tar", "c.tar.gz", "c.tar.zst"].map((name) => join(dir, name));
};

test("parts of the memory are the same from a directory and from every kind of archive", async () => {
  const pages = memory();
  for (const path of await everyWay(files(pages))) {
    const checkpoint = await openCheckpoint(path);
    const parts = [
      { name: "pages-1.img", from: 5000, size: 9000 },
      { name: "pages-1.img", from: 4096, size: 4096 },
    ];
    const [a, b] = await readParts(checkpoint, parts);
    expect(a!.equals(pages.subarray(5000, 14000)), path).toBe(true);
    expect(b!.equals(pages.subarray(4096, 8192)), path).toBe(true);
  }
});

test("a text is found where it is, not across a gap in memory, and is the same in every kind of archive", async () => {
  const pages = memory();
  pages.write("needle", PAGE + 100);
  pages.write("needle", 3 * PAGE - 3); // ends in pages that are not next to it in memory
  const found: Hit[][] = [];
  for (const path of await everyWay(files(pages))) {
    const hits: Hit[] = [];
    await search(await openCheckpoint(path), "ne+dle", { regex: true }, (hit) => hits.push(hit));
    found.push(hits);
  }
  expect(found[0]!.map(({ address }) => address)).toEqual([`0x${(START + 4096n + 100n).toString(16)}`]);
  for (const hits of found) expect(hits).toEqual(found[0]);
});

test("a text that lies across two pieces of a large file is found once", async () => {
  const pages = Buffer.alloc(3 << 20);
  pages.write("needle", (1 << 20) - 3);
  const all = files(pages);
  all["pagemap-1.img"] = image(
    "PAGEMAP",
    { pages_id: 1 },
    { vaddr: START, compat_nr_pages: pages.length / PAGE, flags: 4 },
  );
  for (const path of await everyWay(all))
    expect(await search(await openCheckpoint(path), "6e 65 65 64 6c 65", { hex: true }, () => {})).toBe(1);
});

test("a region is written with zeros where no image has pages, and dumped", async () => {
  const pages = memory();
  for (const path of await everyWay(files(pages))) {
    const checkpoint = await openCheckpoint(path);
    const region = regionOf(checkpoint, 1, "10000-16000");
    await writeRegion(checkpoint, region, join(dir, "region"));
    const gap = Buffer.alloc(PAGE);
    const expected = Buffer.concat([pages.subarray(0, 3 * PAGE), gap, pages.subarray(3 * PAGE)]);
    expect(readFileSync(join(dir, "region")).equals(expected), path).toBe(true);
    expect((await dumpRegion(checkpoint, region))[0]).toMatch(/^000000010000 {2}00 07 01 08/);
    expect(() => regionOf(checkpoint, 2, "10000-16000")).toThrow("there is no such task");
  }
});

test("an image that is an archive names its files; its bytes come back, damaged or not", async () => {
  const path = join(dir, "tmpfs-dev-7.tar.gz.img");
  const whole = gzipSync(await tar([[{ name: "./run/\u00fc.pid" }, Buffer.from("17")]]));
  for (const bytes of [whole, whole.subarray(0, 20), Buffer.alloc(0)]) {
    writeFileSync(path, bytes);
    await decode({ in: path, out: join(dir, "json"), pretty: true });
    const { entries } = JSON.parse(readFileSync(join(dir, "json"), "utf8")) as { entries: unknown[] };
    expect(entries).toEqual(bytes === whole ? [{ name: "run/\u00fc.pid", size: 2 }] : []);
    encode({ in: join(dir, "json"), out: join(dir, "again") });
    expect(readFileSync(join(dir, "again")).equals(bytes)).toBe(true);
  }
});

test("any bytes are a dump of ip's, or none, and never an error", () => {
  const magic = fc.constantFrom(0x47361222, 0x45311224, 0x71706986);
  fc.assert(
    fc.property(magic, fc.constantFrom(20, 24, 32, 99), fc.uint8Array({ maxLength: 60 }), (word, type, body) => {
      const head = Buffer.alloc(20);
      head.writeUInt32LE(word);
      head.writeUInt32LE(16 + body.length, 4);
      head.writeUInt16LE(type, 8);
      expect(netlinkEntries(Buffer.concat([head, body]))).toHaveLength(1);
      expect(netlinkEntries(Buffer.concat([head, body.subarray(1)]))).toEqual(
        body.length === 0 ? [expect.anything()] : undefined,
      );
    }),
    { numRuns: RUNS },
  );
});

test("a difference names what has changed, page by page", async () => {
  const [one] = await everyWay(files());
  const pages = memory();
  pages[PAGE + 5]! ^= 1;
  mkdirSync(join(dir, "other"));
  for (const [name, data] of Object.entries(files(pages))) writeFileSync(join(dir, "other", name), data);
  const [before, after] = [await openCheckpoint(one!), await openCheckpoint(join(dir, "other"))];
  expect(await diff(before, before, true)).toEqual({
    changes: [],
    pages: [{ pid: 1, onlyBefore: 0, onlyAfter: 0, changed: 0, same: 5 }],
  });
  expect(await diff(before, after, true)).toEqual({
    changes: [],
    pages: [{ pid: 1, onlyBefore: 0, onlyAfter: 0, changed: 1, same: 4 }],
  });
});

test("the page holds no markup but its own, and loads nothing", async () => {
  const [path] = await everyWay(files());
  const page = htmlPage(await details(await openCheckpoint(path!), { commands: true }), "<script>alert(1)</script>");
  expect(page).toContain("&lt;b&gt;&amp;init");
  expect(page).not.toMatch(/<script|<b>&init|https?:|src=/);
  expect(page).toContain("default-src 'none'");
});

test.each([
  [
    "podman",
    { name: "web", id: "c0ffee", rootfsImageName: "busybox", ociRuntime: "runc", createdTime: "2026-11-24T00:00:00Z" },
    { "io.container.manager": "libpod" },
    { engine: "Podman", name: "web", image: "busybox", runtime: "runc", ip: "10.88.0.2", mac: "aa:bb" },
  ],
  [
    "CRI-O",
    { id: "c0ffee", rootfsImageName: "busybox" },
    {
      "io.container.manager": "cri-o",
      "io.kubernetes.cri-o.Metadata": '{"name":"web","attempt":1}',
      "io.kubernetes.cri-o.IP.0": "10.85.0.3",
      "io.kubernetes.pod.name": "pod",
      "io.kubernetes.pod.namespace": "default",
    },
    { engine: "CRI-O", name: "web", pod: "pod", namespace: "default", ip: "10.85.0.3", id: "c0ffee" },
  ],
  [
    "containerd",
    { id: "c0ffee" },
    {
      "io.kubernetes.cri.container-name": "web",
      "io.kubernetes.cri.sandbox-name": "pod",
      "io.kubernetes.cri.sandbox-namespace": "default",
    },
    { engine: "containerd", name: "web", pod: "pod", namespace: "default" },
  ],
])("what %s says of the container in its archive is told, and its mounts", async (_, config, annotations, expected) => {
  const mounts = [{ destination: "/data", type: "bind", source: "/srv" }];
  const network = { podman: { interfaces: { eth0: { mac_address: "aa:bb", subnets: [{ ipnet: "10.88.0.2/16" }] } } } };
  const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value));
  const archive = await tar([
    ...members(files()),
    [{ name: "config.dump" }, json(config)],
    [{ name: "spec.dump" }, json({ annotations, mounts })],
    [{ name: "network.status" }, json(network)],
    [{ name: "rootfs-diff.tar" }, Buffer.alloc(2048)],
  ]);
  writeFileSync(join(dir, "checkpoint-web.tar"), archive);
  const told = await details(await openCheckpoint(join(dir, "checkpoint-web.tar")));
  expect(told.container).toMatchObject(expected);
  expect(told.mounts).toEqual(mounts);
  expect(told.bytes.rootfsDiff).toBe(2048);
});

/** Memory of this process, in MiB, at its largest so far. */
const peak = (): number => process.resourceUsage().maxRSS / 1024;

test("100 GiB of pages are never in memory", async () => {
  const size = 100 * 2 ** 30;
  const [path] = await everyWay(files());
  truncateSync(join(path!, "pages-1.img"), size);
  const fd = openSync(join(path!, "pages-1.img"), "r+");
  writeSync(fd, "far away", 60 * 2 ** 30);
  closeSync(fd);
  writeFileSync(
    join(path!, "pagemap-1.img"),
    image("PAGEMAP", { pages_id: 1 }, { vaddr: START, compat_nr_pages: 0, nr_pages: BigInt(size / PAGE), flags: 4 }),
  );
  const before = peak();
  const checkpoint = await openCheckpoint(path!);
  expect(overview(checkpoint).bytes.pages).toBe(size);
  const start = START + 60n * (1n << 30n);
  expect((await dumpRegion(checkpoint, { pid: 1, start, end: start + 16n }))[0]).toContain("far away");
  expect(peak() - before).toBeLessThan(64);
});

test("a deleted file of any size goes through decode in pieces", () => {
  const path = join(dir, "ghost-file-1.img");
  writeFileSync(path, image("GHOST_FILE", { uid: 0, gid: 0, mode: 0o100644 }));
  const head = readFileSync(path).length;
  truncateSync(path, head + 256 * 2 ** 20);
  let written = 0;
  const sink: Sink = {
    write: (data) => {
      written += data.length;
    },
    flush: () => {},
  };
  const before = peak();
  const fd = openSync(path, "r");
  writeJson(sink, streamImage(fdSource(fd), path));
  closeSync(fd);
  expect(written).toBeGreaterThan(256 * 2 ** 20);
  expect(peak() - before).toBeLessThan(100);
});

test("a bomb of zeros goes by in pieces; one that would have to be kept is refused", async () => {
  const bomb = async (name: string, size: number, path: string): Promise<void> => {
    const archive = pack();
    const packed = archive.pipe(createGzip({ level: 1 }));
    for (const [header, data] of members(files())) if (!header.name.endsWith(name)) archive.entry(header, data);
    const entry = archive.entry({ name: `checkpoint/${name}`, size });
    const chunks: Buffer[] = [];
    const end = (async () => {
      for await (const chunk of packed) chunks.push(chunk as Buffer);
    })();
    const zeros = Buffer.alloc(1 << 20);
    for (let left = size; left > 0; left -= zeros.length)
      if (!entry.write(zeros)) await new Promise<void>((resolve) => entry.once("drain", () => resolve()));
    entry.end(undefined);
    archive.finalize();
    await end;
    writeFileSync(path, Buffer.concat(chunks));
  };
  await bomb("pages-1.img", 400 << 20, join(dir, "pages"));
  await bomb("core-1.img", 65 << 20, join(dir, "core"));
  const before = peak();
  expect(overview(await openCheckpoint(join(dir, "pages"))).bytes.pages).toBe(400 << 20);
  await expect(openCheckpoint(join(dir, "core"))).rejects.toThrow("core-1.img has 68157440 bytes");
  expect(peak() - before).toBeLessThan(100);
});

test("members that point elsewhere, and links, are never followed, and nothing is written", async () => {
  const hostile = await tar([
    ...members(files()).filter(([{ name }]) => name !== "checkpoint/core-1.img"),
    [{ name: "checkpoint/core-1.img", type: "symlink", linkname: "/etc/passwd" }, Buffer.alloc(0)],
    [{ name: "../../escape" }, Buffer.from("x")],
    [{ name: "/tmp/cryoshim-escape" }, Buffer.from("x")],
  ]);
  for (const [name, data] of [
    ["h.tar", hostile],
    ["h.tar.gz", gzipSync(hostile)],
  ] as const) {
    writeFileSync(join(dir, name), data);
    expect(overview(await openCheckpoint(join(dir, name))).tasks[0]?.comm).toBe("?");
  }
  expect(readdirSync(dir).sort()).toEqual(["h.tar", "h.tar.gz"]);
  expect(existsSync("/tmp/cryoshim-escape")).toBe(false);
});

test("an archive that is cut, flipped or full of lies: a checkpoint or an error of its own, from each kind", async () => {
  const plain = await tar(members(files()));
  const [, , , zst] = await everyWay(files());
  const kinds = { tar: plain, gz: gzipSync(plain), zst: readFileSync(zst!) };
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom("tar" as const, "gz" as const),
      fc.nat(),
      fc.nat(7),
      fc.boolean(),
      async (kind, at, bit, cut) => {
        const data = Buffer.from(kinds[kind]);
        // Headers are few: aim at one of them half of the time.
        const place = at % 2 ? at % data.length : (at % 5) * 512 + (at % 512);
        if (!cut) data[place % data.length]! ^= 1 << bit;
        const path = join(dir, "damaged");
        writeFileSync(path, cut ? data.subarray(0, place % data.length) : data);
        try {
          await details(await openCheckpoint(path), { commands: true, environment: true });
        } catch (error) {
          expect((error as { code?: string }).code).toMatch(/^ERR_(CHECKPOINT|IMAGE)$/);
        }
      },
    ),
    { numRuns: RUNS },
  );
  for (const cut of [5, 20, 0.5, -1]) {
    const end = Number.isInteger(cut) ? (cut < 0 ? kinds.zst.length + cut : cut) : Math.floor(kinds.zst.length * cut);
    writeFileSync(join(dir, "cut.zst"), kinds.zst.subarray(0, end));
    await expect(openCheckpoint(join(dir, "cut.zst"))).rejects.toMatchObject({ code: "ERR_CHECKPOINT" });
  }
});
