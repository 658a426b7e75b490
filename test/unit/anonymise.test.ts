// SPDX-License-Identifier: Apache-2.0
import { execFileSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { gunzipSync, gzipSync } from "node:zlib";
import { extract, pack } from "tar-stream";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Alias } from "../../crit/anonymise/alias.js";
import { anonymise } from "../../crit/anonymise/index.js";
import { ruleOf } from "../../crit/anonymise/message.js";
import { RULES } from "../../crit/anonymise/rules.js";
import { openCheckpoint, readFiles } from "../../crit/checkpoint.js";
import { decodeImage, encodeImage, KINDS, type KindName } from "../../crit/image.js";
import type { Kind } from "../../crit/kind.js";
import { packingOf } from "../../crit/members.js";
import { type Message, type Schema, UNKNOWN } from "../../crit/message.js";
import { netlinkEntries } from "../../crit/netlink.js";

let dir = "";
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "cryoshim-anonymise-"));
  mkdirSync(join(dir, "in"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const image = (kind: KindName, message: Message, extra?: Uint8Array): Uint8Array =>
  encodeImage({ kind, entries: [extra === undefined ? { message } : { message, extra }] });
const put = (files: Record<string, Uint8Array | string>): void => {
  for (const [name, bytes] of Object.entries({ "inventory.img": image("INVENTORY", { img_version: 2 }), ...files }))
    writeFileSync(join(dir, "in", name), bytes);
};
const run = (options = {}) => anonymise(join(dir, "in"), join(dir, "out"), options);
const out = (name: string): Message => decodeImage(readFileSync(join(dir, "out", name)), name).entries[0]!.message;

const fown = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };
const reg = (name: string): Message => ({ type: 1, id: 1, reg: { id: 1, flags: 0, pos: 0n, fown, name } });

test("every field of every message of every image has a rule, and every rule a field", () => {
  const schemas = new Map<string, Schema>();
  const walk = (schema: Schema): void => {
    if (schemas.has(schema.name)) return;
    schemas.set(schema.name, schema);
    for (const [name, [, type]] of Object.entries(schema.fields)) {
      expect(ruleOf(schema.name, name), `${schema.name}.${name}`).toBeDefined();
      if (typeof type === "function") walk(type());
    }
  };
  for (const kind of Object.values(KINDS) as Kind[])
    for (const schema of [kind.entry, kind.head, kind.nested?.schema]) if (schema !== undefined) walk(schema);
  for (const [message, rules] of Object.entries(RULES))
    for (const field of Object.values(rules).flatMap((fields) => fields.split(" ")))
      expect(schemas.get(message)?.fields[field], `${message}.${field}`).toBeDefined();
});

test("no text or bytes are kept, and no register", () => {
  for (const [message, { keep = "" }] of Object.entries(RULES)) {
    if (/_(regs|gpregs|fpregs|fpstate|xsave)_entry$/.test(message)) expect(["", "mode"]).toContain(keep);
  }
  const texts = new Set<string>();
  const walk = (schema: Schema, seen: Set<Schema>): void => {
    if (seen.has(schema)) return;
    seen.add(schema);
    for (const [name, [, type]] of Object.entries(schema.fields))
      if (typeof type === "function") walk(type(), seen);
      else if ((type === "string" || type === "bytes") && ruleOf(schema.name, name) === "keep") texts.add(name);
  };
  for (const kind of Object.values(KINDS) as Kind[]) walk(kind.entry, new Set());
  // A mask of processors: bits by number.
  expect([...texts]).toEqual(["processors"]);
});

test("the same seed replaces alike, another and none do not", () => {
  expect(new Alias("a").path("/x/y")).toBe(new Alias("a").path("/x/y"));
  expect(new Alias("a").path("/x/y")).not.toBe(new Alias("b").path("/x/y"));
  expect(new Alias().path("/x/y")).not.toBe(new Alias().path("/x/y"));
});

test("paths keep their relations, addresses their networks, loopback itself", () => {
  const alias = new Alias("a");
  const [one, two] = [alias.path("/a/b/c"), alias.path("/a/b/d")];
  expect(one.split("/").slice(0, 3)).toEqual(two.split("/").slice(0, 3));
  expect(one).not.toBe(two);
  const ip = (...bytes: number[]) => [...alias.ip(Uint8Array.from(bytes))];
  expect(ip(127, 0, 0, 1)).toEqual([127, 0, 0, 1]);
  expect(ip(10, 1, 2, 3).slice(0, 3)).toEqual(ip(10, 1, 2, 4).slice(0, 3));
  const seen = new Set(Array.from({ length: 256 }, (_, n) => ip(10, 1, 2, n).join(".")));
  expect(seen.size).toBe(256);
});

test("names of files go, contents of pipes become zeros, unknown fields and files are dropped", async () => {
  const unknown = reg("/srv/secret");
  unknown[UNKNOWN] = [[99, 2, Uint8Array.from([6, ...Buffer.from("secret")])]];
  put({
    "files.img": image("FILES", unknown),
    "pipes-data.img": image("PIPES_DATA", { pipe_id: 1, bytes: 6 }, Buffer.from("secret")),
    "pages-1.img": Buffer.alloc(8192, "secret"),
    "secret.txt": "secret",
    "dump.log": "secret",
    "config.dump": JSON.stringify({ name: "secret", secret: "secret" }),
  });
  const report = await run();
  expect(readdirSync(join(dir, "out")).sort()).toEqual(
    ["config.dump", "dump.log", "files.img", "inventory.img", "pages-1.img", "pipes-data.img"].sort(),
  );
  for (const name of readdirSync(join(dir, "out"))) {
    const path = join(dir, "out", name);
    expect(readFileSync(path).includes("secret"), name).toBe(false);
    expect(statSync(path).mode & 0o777).toBe(0o600);
  }
  expect(statSync(join(dir, "out", "pages-1.img"))).toMatchObject({ size: 8192, blocks: 0 });
  expect((out("files.img").reg as Message).name).toMatch(/^\/[a-z2-7]{8}\/[a-z2-7]{8}$/);
  expect(JSON.stringify(report)).not.toContain("secret");
  const fields = report.files.find(({ name }) => name === "files.img")?.fields;
  expect(fields?.["file_entry field 99"]).toEqual({ rule: "drop", count: 1 });
});

test("a large image is rewritten as a small one is", async () => {
  put({ "ghost-file-1.img": image("GHOST_FILE", { uid: 1, gid: 1, mode: 0o600 }, Buffer.alloc(20 << 20, "secret")) });
  await run();
  const path = join(dir, "out", "ghost-file-1.img");
  expect(statSync(path)).toMatchObject({ size: statSync(join(dir, "in", "ghost-file-1.img")).size });
  expect(readFileSync(path).includes("secret")).toBe(false);
  expect(out("ghost-file-1.img")).toMatchObject({ uid: 1, gid: 1, mode: 0o600 });
});

test("what is asked for is kept", async () => {
  put({ "files.img": image("FILES", reg("/srv/data")) });
  await run({ keep: ["path"] });
  expect((out("files.img").reg as Message).name).toBe("/srv/data");
});

test("a damaged image is told with its name and byte, and nothing is left", async () => {
  put({ "files.img": image("FILES", reg("/srv/data")).subarray(0, 20) });
  await expect(run()).rejects.toThrow(/files\.img` at byte 8/);
  expect(readdirSync(dir)).toEqual(["in"]);
});

test("a copy does not replace what is there", async () => {
  put({});
  mkdirSync(join(dir, "out"));
  await expect(run()).rejects.toThrow("there already");
  expect(existsSync(join(dir, "out", "inventory.img"))).toBe(false);
});

const packed = async (to: string, members: [string, Uint8Array | string][], gzip: boolean): Promise<void> => {
  const tar = pack();
  for (const [name, bytes] of members) tar.entry({ name }, Buffer.from(bytes as string));
  tar.finalize();
  const bytes = await buffer(tar);
  writeFileSync(to, gzip ? gzipSync(bytes) : bytes);
};
const INVENTORY: [string, Uint8Array] = ["checkpoint/inventory.img", image("INVENTORY", { img_version: 2 })];

test.each(["tar", "gzip", "zstd"])("an archive becomes one of the same form: %s", async (form) => {
  const [from, to] = [join(dir, "c.tar"), join(dir, "out.tar")];
  const members: [string, Uint8Array | string][] = [
    INVENTORY,
    ["checkpoint/files.img", image("FILES", reg("/secret"))],
    ["../escape.img", "secret"],
    ["checkpoint/../../core-1.img", "secret"],
    ["spec.dump", JSON.stringify({ hostname: "secret", annotations: { secret: "secret" } })],
  ];
  await packed(from, members, form === "gzip");
  const source = form === "zstd" ? `${from}.zst` : from;
  if (form === "zstd") execFileSync("zstd", ["-q", from, "-o", source]);
  await anonymise(source, to);
  expect(packingOf(to)).toBe(form);
  expect([...(await openCheckpoint(to)).sizes.keys()].sort()).toEqual(["files.img", "inventory.img", "spec.dump"]);
  expect(statSync(to).mode & 0o777).toBe(0o600);
  expect(readdirSync(dir).filter((name) => name.startsWith("."))).toEqual([]);
});

test("an archive that is cut off, or has an image twice, is refused and leaves nothing", async () => {
  const [from, to] = [join(dir, "c.tar"), join(dir, "out.tar")];
  await packed(from, [INVENTORY, INVENTORY], false);
  await expect(anonymise(from, to)).rejects.toThrow("twice");
  writeFileSync(from, readFileSync(from).subarray(0, 1300));
  await expect(anonymise(from, to)).rejects.toThrow(/at byte \d+/);
  expect(readdirSync(dir).sort()).toEqual(["c.tar", "in"]);
});

const read = (name: string): string => readFileSync(join(dir, "out", name), "latin1");

test("a log keeps times, places in CRIU's source and its words; names of files are those of the images", async () => {
  put({
    "files.img": image("FILES", reg("/srv/secret")),
    "dump.log": [
      "(00.012345) Error (criu/files-reg.c:1907): Can't open file /srv/secret on mount 42: No such file",
      "(00.012346) Collected [secret/criu.c:12] secret.c:12 ino 0x7f3",
      "(00.012347)      1: Restoring 10.1.2.3:8080 -> fe80::1234 at 02:42:ac:11:00:02, hunter2 deadbeef",
    ].join("\n"),
  });
  await run();
  const [first, second, third] = read("dump.log").split("\n");
  const name = (out("files.img").reg as Message).name as string;
  expect(first).toBe(`(00.012345) Error (criu/files-reg.c:1907): Can't open file ${name} on mount 42: No such file`);
  expect(second).toMatch(/^\(00\.012346\) Collected \[[a-z2-7]{8}\/[a-z2-7]{8}\] [a-z2-7]{8} ino 0x7f3$/);
  expect(third).toMatch(
    /^\(00\.012347\) {6}1: Restoring 10\.\d+\.\d+\.\d+:8080 -> fe80:[0-9a-f:]+ at ([0-9a-f]{2}:){5}[0-9a-f]{2}, /,
  );
  for (const secret of ["10.1.2.3", "fe80::1234", "02:42:ac:11:00:02", "hunter2", "deadbeef", "secret"])
    expect(read("dump.log")).not.toContain(secret);
});

test("a log that ends within a line, or has one without end, is written whole, or without that line", async () => {
  put({ "dump.log": "(00.1) Error", "restore.log": `(00.1) Dump\n${"secret ".repeat(20_000)}\n(00.2) Done` });
  await run();
  expect(read("dump.log")).toBe("(00.1) Error");
  expect(read("restore.log")).toMatch(/^\(00\.1\) Dump\n/);
  expect(read("restore.log")).toMatch(/\n\(00\.2\) Done$/);
  expect(read("restore.log")).not.toContain("secret");
});

test("rules of packet filters keep their words, chains of one's own and addresses are replaced alike", async () => {
  put({
    "iptables-9.img":
      "# Generated by iptables-save v1.8.11 on secret\n*filter\n:INPUT ACCEPT [1:52]\n:SECRET - [0:0]\n" +
      '-A INPUT -s 10.88.1.0/24 -i eth0 -p tcp -m tcp --dport 443 -m comment --comment "secret shop" -j SECRET\nCOMMIT\n',
    "nftables-9.img":
      'table inet secret {\n\tchain input {\n\t\tip saddr 10.88.1.7 iifname "eth0" tcp dport 443 drop\n\t}\n}\n',
  });
  await run();
  const lines = read("iptables-9.img").split("\n");
  expect(lines.slice(0, 2)).toEqual(["*filter", ":INPUT ACCEPT [1:52]"]);
  const chain = /^:([a-z2-7]{8}) - \[0:0\]$/.exec(lines[2]!)?.[1];
  expect(lines[3]).toMatch(
    new RegExp(
      `^-A INPUT -s 10\\.[\\d.]+/24 -i eth0 -p tcp -m tcp --dport 443 -m comment --comment "\\w{8} \\w{8}" -j ${chain}$`,
    ),
  );
  const nft = read("nftables-9.img");
  expect(nft).toMatch(
    /^table inet \w{8} \{\n\tchain input \{\n\t\tip saddr 10\.[\d.]+ iifname "eth0" tcp dport 443 drop\n/,
  );
  const network = (text: string): string | undefined => /10\.\d+\.\d+/.exec(text)?.[0];
  expect(network(nft)).toBe(network(lines[3]!));
  expect(nft + lines).not.toMatch(/secret|10\.88\.1\.|shop/i);
});

/** One netlink message of attributes. */
const attribute = (type: number, value: Buffer): Buffer => {
  const head = Buffer.from(Uint16Array.of(4 + value.length, type).buffer);
  return Buffer.concat([head, value, Buffer.alloc(-value.length & 3)]);
};
const netlink = (type: number, fixed: number, ...attributes: Buffer[]): Buffer => {
  const body = Buffer.concat([Buffer.alloc(fixed, 1), ...attributes]);
  const head = Buffer.alloc(16);
  head.writeUInt32LE(16 + body.length, 0);
  head.writeUInt16LE(type, 4);
  return Buffer.concat([head, body]);
};

test("dumps of ip and of connection tracking keep their structure; addresses are replaced, what nobody knows is left out", async () => {
  const [host, gateway] = [Buffer.from([10, 88, 0, 2]), Buffer.from([10, 88, 0, 1])];
  const magic = (n: number): Buffer => Buffer.from(Uint32Array.of(n).buffer);
  const hop = Buffer.concat([Buffer.from([16, 0, 0, 0, 2, 0, 0, 0]), attribute(5, gateway)]);
  put({
    "ifaddr-9.img": Buffer.concat([
      magic(0x47361222),
      netlink(20, 8, attribute(2, host), attribute(3, Buffer.from("secret0\0")), attribute(99, Buffer.from("secret"))),
    ]),
    "route-9.img": Buffer.concat([magic(0x45311224), netlink(24, 12, attribute(5, gateway), attribute(9, hop))]),
    "netns-ct-9.img": netlink(0x100, 4, attribute(0x8001, attribute(0x8001, attribute(1, host)))),
  });
  await run({ seed: "a" });
  const alias = new Alias("a");
  const files = ["ifaddr-9.img", "route-9.img", "netns-ct-9.img"].map((name) => readFileSync(join(dir, "out", name)));
  const [address, route, tracked] = files as [Buffer, Buffer, Buffer];
  expect(netlinkEntries(address)).toEqual([
    expect.objectContaining({ address: `${alias.ip(host).join(".")}/1`, label: alias.name("secret0") }),
  ]);
  expect(address.includes("secret")).toBe(false);
  expect(netlinkEntries(route)).toEqual([expect.objectContaining({ gateway: alias.ip(gateway).join(".") })]);
  const found = (bytes: Buffer, ip: Buffer): number => bytes.toString("latin1").split(ip.toString("latin1")).length - 1;
  expect(found(route, Buffer.from(alias.ip(gateway)))).toBe(2);
  expect(found(tracked, Buffer.from(alias.ip(host)))).toBe(1);
  for (const each of files) expect([found(each, host), found(each, gateway)]).toEqual([0, 0]);
});

test("a damaged dump of ip is told with its byte", async () => {
  put({ "ifaddr-9.img": Buffer.concat([Buffer.from(Uint32Array.of(0x47361222).buffer), Buffer.alloc(20, 255)]) });
  await expect(run()).rejects.toThrow(/ifaddr-9\.img` at byte 4/);
});

test("an archive of a tmpfs keeps its tree: types, sizes, modes; names are those of the images, contents zeros", async () => {
  const tar = pack();
  tar.entry({ name: "./srv", type: "directory", mode: 0o700 });
  tar.entry({ name: "./srv/secret", mode: 0o640, uid: 1000, uname: "secret" }, Buffer.from("secret".repeat(100)));
  tar.entry({ name: "./link", type: "symlink", linkname: "/srv/secret" });
  tar.entry({ name: "./srv/.wh.secret", pax: { "SCHILY.xattr.user.secret": "secret" } }, Buffer.alloc(0));
  tar.finalize();
  put({
    "files.img": image("FILES", reg("/srv/secret")),
    "tmpfs-dev-7.tar.gz.img": gzipSync(await buffer(tar)),
  });
  await run({ ids: true });
  const bytes = gunzipSync(readFileSync(join(dir, "out", "tmpfs-dev-7.tar.gz.img")));
  expect(bytes.includes("secret")).toBe(false);
  const members: { name: string; type: string; size: number; linkname: string; uid: number }[] = [];
  const reader = extract();
  reader.end(bytes);
  for await (const member of reader) {
    const { name, type, size, linkname, uid } = member.header;
    members.push({ name, type: type!, size: size!, linkname: linkname!, uid });
    member.resume();
  }
  const name = (out("files.img").reg as Message).name as string;
  const [, srv, secret] = name.split("/");
  expect(members.map((member) => [member.name, member.type, member.size, member.linkname])).toEqual([
    [`./${srv}`, "directory", 0, null],
    [`./${srv}/${secret}`, "file", 600, null],
    [expect.stringMatching(/^\.\/[a-z2-7]{8}$/), "symlink", 0, name],
    [`./${srv}/.wh.${secret}`, "file", 0, null],
  ]);
  expect(members[1]!.uid).toBeGreaterThanOrEqual(100_000);
});

test("an archive within the checkpoint that is damaged is told, and nothing is left", async () => {
  put({ "tmpfs-7.tar.gz.img": gzipSync(Buffer.alloc(2048, 7)).subarray(0, 20) });
  await expect(run()).rejects.toThrow(/cannot read `tmpfs-7\.tar\.gz\.img`/);
  expect(readdirSync(dir)).toEqual(["in"]);
});

test("what runtimes add is rewritten, as far as it is known", async () => {
  put({
    "network.status": JSON.stringify({
      secret: {
        interfaces: {
          eth0: { subnets: [{ ipnet: "10.88.0.2/16", gateway: "10.88.0.1" }], mac_address: "02:7f:a3:c9:79:87" },
        },
        dns_server_ips: ["10.88.0.1"],
      },
    }),
    "deleted.files": JSON.stringify(["/srv/secret"]),
    "descriptors.json": JSON.stringify(["/dev/null", "pipe:[123]", "/srv/secret"]),
    "bind.mounts": JSON.stringify([{ destination: "/srv/secret", source: "/secret", type: "bind", secret: 1 }]),
  });
  await run({ seed: "a" });
  const alias = new Alias("a");
  const status = JSON.parse(read("network.status"));
  const { eth0 } = status[alias.name("secret")].interfaces;
  expect(eth0.subnets[0].gateway).toBe(alias.ip(Uint8Array.of(10, 88, 0, 1)).join("."));
  expect(eth0.subnets[0].ipnet).toBe(`${alias.ip(Uint8Array.of(10, 88, 0, 2)).join(".")}/16`);
  expect(eth0.mac_address).toMatch(/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/);
  expect(JSON.parse(read("deleted.files"))).toEqual([alias.path("/srv/secret")]);
  expect(JSON.parse(read("bind.mounts"))).toEqual([
    { destination: alias.path("/srv/secret"), source: alias.path("/secret"), type: "bind" },
  ]);
  for (const name of ["network.status", "deleted.files", "descriptors.json", "bind.mounts"])
    expect(read(name)).not.toMatch(/secret|10\.88\.0\.|02:7f/);
});

test("numbers of users and groups stay, or are replaced where that is asked for; root and nobody stay", async () => {
  const alias = new Alias("a");
  expect([0, 65534, 0xffffffff].map((each) => alias.id(each))).toEqual([0, 65534, 0xffffffff]);
  const owned = {
    type: 1,
    id: 1,
    reg: { id: 1, flags: 0, pos: 0n, fown: { ...fown, uid: 1000, euid: 0 }, name: "/a" },
  };
  put({ "files.img": image("FILES", owned) });
  await run();
  const owner = (): Message => (out("files.img").reg as Message).fown as Message;
  expect(owner()).toMatchObject({ uid: 1000, euid: 0 });
  rmSync(join(dir, "out"), { recursive: true });
  await run({ seed: "a", ids: true });
  expect(owner()).toMatchObject({ uid: alias.id(1000), euid: 0 });
});

test("archives as CRI-O and containerd make them for Kubernetes: images beside what they add, names of pods replaced", async () => {
  const rootfs = pack();
  rootfs.entry({ name: "srv/secret" }, "secret");
  rootfs.finalize();
  const annotations = {
    "io.kubernetes.pod.name": "secret-0",
    "io.kubernetes.pod.namespace": "secret",
    "io.kubernetes.container.name": "secret",
    "io.kubernetes.cri-o.Labels": '{"app":"secret"}',
  };
  const [from, to] = [join(dir, "checkpoint-secret.tar"), join(dir, "out.tar")];
  await packed(
    from,
    [
      INVENTORY,
      ["checkpoint/files.img", image("FILES", reg("/srv/secret"))],
      ["checkpoint/descriptors.json", '["/dev/null","/srv/secret"]'],
      ["spec.dump", JSON.stringify({ hostname: "secret-0", annotations, process: { env: ["TOKEN=secret"] } })],
      ["config.dump", JSON.stringify({ id: "secret", rootfsImageName: "registry/secret:1", runtime: "runc" })],
      ["bind.mounts", '[{"destination":"/etc/secret","is_dir":true}]'],
      ["rootfs-diff.tar", await buffer(rootfs)],
      ["dump.log", "(00.000001) Dumping /srv/secret\n"],
      ["stats-dump", encodeImage({ kind: "STATS", entries: [{ message: {} }] })],
      ["io.kubernetes.cri-o.LogPath", "/var/log/pods/secret/0.log"],
      ["container.log", "secret"],
      ["status", '{"Message":"secret"}'],
    ],
    false,
  );
  const report = await anonymise(from, to);
  const names: string[] = [];
  const reader = extract();
  reader.end(readFileSync(to));
  for await (const member of reader) {
    names.push(member.header.name);
    member.resume();
  }
  expect(names.sort()).toEqual([
    "bind.mounts",
    "checkpoint/descriptors.json",
    "checkpoint/files.img",
    "checkpoint/inventory.img",
    "config.dump",
    "dump.log",
    "rootfs-diff.tar",
    "spec.dump",
    "stats-dump",
  ]);
  expect(readFileSync(to).includes("secret")).toBe(false);
  expect(JSON.stringify(report)).not.toContain("secret");
  const spec = JSON.parse((await readFiles(to, (name) => name === "spec.dump")).files.get("spec.dump")!.toString());
  expect(Object.keys(spec.annotations)).toEqual(Object.keys(annotations).slice(0, 3));
  // A host's name is its pod's.
  expect(spec.annotations["io.kubernetes.pod.name"]).toBe(spec.hostname);
});
