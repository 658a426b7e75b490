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
import { gzipSync } from "node:zlib";
import { pack } from "tar-stream";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Alias } from "../../crit/anonymise/alias.js";
import { anonymise } from "../../crit/anonymise/index.js";
import { ruleOf } from "../../crit/anonymise/message.js";
import { RULES } from "../../crit/anonymise/rules.js";
import { openCheckpoint } from "../../crit/checkpoint.js";
import { decodeImage, encodeImage, KINDS, type KindName } from "../../crit/image.js";
import type { Kind } from "../../crit/kind.js";
import { packingOf } from "../../crit/members.js";
import { type Message, type Schema, UNKNOWN } from "../../crit/message.js";

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
  expect([...texts]).toEqual([]);
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
    ["config.dump", "files.img", "inventory.img", "pages-1.img", "pipes-data.img"].sort(),
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
