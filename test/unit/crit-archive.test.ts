// SPDX-License-Identifier: Apache-2.0
// What is in checkpoints of every form: memory, differences, lists, what runtimes say.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, expect, test } from "vitest";
import { openCheckpoint, readParts } from "../../crit/checkpoint.js";
import { decode, encode } from "../../crit/cli/convert.js";
import { details } from "../../crit/details.js";
import { diff } from "../../crit/diff.js";
import { htmlPage } from "../../crit/html.js";
import { KINDS } from "../../crit/image.js";
import { listCheckpoints, listText } from "../../crit/list.js";
import { dumpRegion, dumpTask, regionOf, writeRegion } from "../../crit/region.js";
import { type Hit, search } from "../../crit/search.js";

import { everyWay, files, image, members, memory, PAGE, START, tar } from "../support/checkpoints.js";

let dir = "";
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "cryoshim-archive-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

test("parts of the memory are the same from a directory and from every kind of archive", async () => {
  const pages = memory();
  for (const path of await everyWay(dir, files(pages))) {
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
  for (const path of await everyWay(dir, files(pages))) {
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
  for (const path of await everyWay(dir, all))
    expect(await search(await openCheckpoint(path), "6e 65 65 64 6c 65", { hex: true }, () => {})).toBe(1);
});

test("a region is written with zeros where no image has pages, and dumped", async () => {
  const pages = memory();
  for (const path of await everyWay(dir, files(pages))) {
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

test("a difference names what has changed, page by page", async () => {
  const [one] = await everyWay(dir, files());
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

test("a task's memory that has grown is a difference, and so is a command line that is asked for", async () => {
  const [one] = await everyWay(dir, files());
  const more = files(Buffer.concat([memory(), Buffer.from("sh\0-c\0".padEnd(PAGE, "\0"))]));
  const at = 0x20000n;
  const runs = [
    { pages_id: 1 },
    { vaddr: START, compat_nr_pages: 3, flags: 4 },
    { vaddr: START + 4n * 4096n, compat_nr_pages: 2, flags: 4 },
    { vaddr: at, compat_nr_pages: 1, flags: 4 },
  ];
  const vma = { start: at, end: at + 4096n, pgoff: 0n, shmid: 0n, prot: 3, flags: 34, status: 513, fd: -1n };
  const mm = Object.fromEntries(
    Object.keys(KINDS.MM.entry.fields)
      .filter((key) => key.startsWith("mm_") && key !== "mm_saved_auxv")
      .map((key) => [key, 0n]),
  );
  more["pagemap-1.img"] = image("PAGEMAP", ...runs);
  more["mm-1.img"] = image("MM", { ...mm, mm_arg_start: at, mm_arg_end: at + 6n, exe_file_id: 0, vmas: [vma] });
  mkdirSync(join(dir, "more"));
  for (const [name, data] of Object.entries(more)) writeFileSync(join(dir, "more", name), data);
  const [before, after] = [await openCheckpoint(one!), await openCheckpoint(join(dir, "more"))];
  const { changes } = await diff(before, after, false);
  expect(changes).toContainEqual({ what: "task 1 memory", before: "0 bytes", after: "4096 bytes" });
  expect(changes.map(({ what }) => what)).not.toContain("task 1 command");
  expect((await diff(before, after, false, true)).changes).toContainEqual({
    what: "task 1 command",
    before: "",
    after: "sh -c",
  });
});

test("a task that is not there is an error, wherever one is named", async () => {
  const checkpoint = await openCheckpoint((await everyWay(dir, files()))[0]!);
  const missing = { code: "ERR_USAGE", why: "there is no such task" };
  await expect(details(checkpoint, { pid: 2 })).rejects.toMatchObject(missing);
  await expect(search(checkpoint, "x", { pid: 2 }, () => {})).rejects.toMatchObject(missing);
  await expect(dumpTask(checkpoint, 2, () => {})).rejects.toMatchObject(missing);
});

test("a list names checkpoints by what their runtimes say, and what is wrong with others", async () => {
  const config = Buffer.from(JSON.stringify({ id: "c0ffee", name: "web", checkpointedTime: "2026-11-24T00:00:00Z" }));
  writeFileSync(join(dir, "checkpoint-web.tar"), await tar([[{ name: "config.dump" }, config]]));
  writeFileSync(join(dir, "checkpoint-bad.tar"), "x".repeat(600));
  writeFileSync(join(dir, "checkpoint-none.tar"), await tar(members(files())));
  writeFileSync(join(dir, "notes"), "");
  const found = await listCheckpoints([dir]);
  expect(found).toMatchObject([
    { path: join(dir, "checkpoint-bad.tar"), error: "there is no tar header at byte 0" },
    { path: join(dir, "checkpoint-none.tar"), error: "no runtime says what it is of" },
    { path: join(dir, "checkpoint-web.tar"), container: { name: "web", checkpointedAt: "2026-11-24T00:00:00Z" } },
  ]);
  expect(listText(found)).toHaveLength(4);
  await expect(listCheckpoints([join(dir, "nowhere")])).rejects.toMatchObject({ code: "ERR_FILE" });
});

test("the page holds no markup but its own, and loads nothing", async () => {
  const [path] = await everyWay(dir, files());
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
