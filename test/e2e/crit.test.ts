// SPDX-License-Identifier: Apache-2.0
// crit against CRIU's own Python crit, on a checkpoint of nearly every kind of object.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { decode, encode } from "../../crit/cli/convert.js";
import { decodeImage, encodeImage } from "../../crit/image.js";
import { bytesSource, type Sink } from "../../crit/io.js";
import { type DecodeOptions, writeImage, writeJson } from "../../crit/json/image.js";
import { parseJson } from "../../crit/json/read.js";
import { rawContents } from "../../crit/raw.js";
import { streamImage } from "../../crit/stream.js";
import { holds } from "../support/lab.js";
import { beforeTests } from "../support/once.js";

const MODES: Record<string, DecodeOptions> = {
  plain: {},
  pretty: { pretty: true },
  nopl: { pretty: true, nopl: true },
};

let scratch = "";
let names: string[] = [];
let theirs: Record<string, Record<string, string>> = {};
beforeTests(async (directory) => {
  scratch = directory;
  await holds(
    `. /cryoshim/test/support/objects.sh
    crit=/tmp/crit; ln -s /cryoshim/dist/cli.js $crit
    python3 /cryoshim/test/support/pycriu-decode.py /scratch/images >/scratch/theirs.json 2>/dev/null
    cd /scratch/images
    for image in pstree.img pipes-data.img sk-queues.img core-*.img tcp-stream-*.img ghost-file-*.img; do
      $crit decode -i $image | crit encode | cmp - $image
      crit decode --pretty -i $image | $crit encode -o /tmp/again.img; cmp /tmp/again.img $image
      [ "$($crit show --nopl $image)" = "$(crit show --nopl $image)" ]
    done
    # Who reads may stop; a full disk is told.
    $crit show files.img 2>/tmp/err | head -c 10 >/dev/null; [ ! -s /tmp/err ]
    ! $crit show files.img >/dev/full 2>/tmp/err; grep -q ERR_FILE /tmp/err
    # CRIU's crit miscounts what has data between its entries.
    for image in pstree.img core-*.img pagemap-1*.img files.img; do
      [ "$($crit info $image)" = "$(crit info $image)" ]
    done`,
    { LAB_SCRATCH: scratch },
  );
  theirs = JSON.parse(readFileSync(join(scratch, "theirs.json"), "utf8")) as typeof theirs;
  names = readdirSync(join(scratch, "images")).filter(
    (name) => !name.endsWith(".json") && rawContents(name) === undefined,
  );
});

const image = (name: string): Buffer => readFileSync(join(scratch, "images", name));
const sink = (): Sink & { text(): string; bytes(): Buffer } => {
  const parts: Buffer[] = [];
  return {
    write: (data) => parts.push(Buffer.from(data as string)),
    flush: () => {},
    text: () => Buffer.concat(parts).toString(),
    bytes: () => Buffer.concat(parts),
  };
};
const decoded = (name: string, options: DecodeOptions): string => {
  const out = sink();
  writeJson(out, streamImage(bytesSource(image(name)), name), options);
  return out.text();
};
const encoded = (json: string): Buffer => {
  const out = sink();
  writeImage(out, parseJson(json, "json"));
  return out.bytes();
};

test("the checkpoint holds images of every kind that its objects make", () => {
  const kinds = new Set(names.map((name) => decodeImage(image(name), name).kind));
  for (const kind of "INVENTORY PSTREE CORE MM IDS FS FDINFO FILES PAGEMAP PIPES_DATA FIFO_DATA SK_QUEUES TCP_STREAM GHOST_FILE REMAP_FPATH FILE_LOCKS MEMFD_INODE IPC_VAR IPCNS_MSG IPCNS_SEM IPCNS_SHM NETNS NETDEV UTSNS TIMENS SECCOMP STATS".split(
    " ",
  ))
    expect([...kinds]).toContain(kind);
});

test("every image is written back byte by byte, from messages and from JSON of either kind", () => {
  for (const name of names) {
    const bytes = image(name);
    expect(Buffer.from(encodeImage(decodeImage(bytes, name))).equals(bytes), name).toBe(true);
    expect(encoded(decoded(name, {})).equals(bytes), `${name} through JSON`).toBe(true);
    expect(encoded(decoded(name, { pretty: true })).equals(bytes), `${name} through pretty JSON`).toBe(true);
  }
});

test("addresses and rules of a network namespace are told, and their dumps are written back byte by byte", async () => {
  const told = async (kind: string): Promise<unknown[]> => {
    const name = readdirSync(join(scratch, "images")).find((each) => new RegExp(`^${kind}-\\d+\\.img$`).test(each))!;
    await decode({ in: join(scratch, "images", name), out: join(scratch, "raw.json") });
    encode({ in: join(scratch, "raw.json"), out: join(scratch, "raw.img") });
    expect(readFileSync(join(scratch, "raw.img")).equals(image(name)), name).toBe(true);
    return (JSON.parse(readFileSync(join(scratch, "raw.json"), "utf8")) as { entries: unknown[] }).entries;
  };
  const loopback = { interface: 1, family: "inet", address: "127.0.0.1/8", scope: "host", label: "lo" };
  expect(await told("ifaddr")).toContainEqual(loopback);
  expect(await told("rule")).toContainEqual({ family: "inet", priority: 32766, table: 254 });
});

test("JSON is letter for letter what CRIU's crit prints, but for names that are no UTF-8, which it cannot tell", () => {
  let compared = 0;
  for (const name of names)
    for (const [mode, options] of Object.entries(MODES)) {
      if (theirs[name]?.[mode] === undefined) continue;
      const ours = decoded(name, options).replace('/\\u00fcber\\n\\udcff\\udcfe"', '/#"');
      const text = theirs[name]?.[mode]
        ?.replace("/b'", "/")
        .replace(/"(b')?\/tmp\/objects\/\\\\xc3[^"]*"/, '"/tmp/objects/#"');
      if (text === undefined) continue;
      expect(ours, `${name}, ${mode}`).toBe(text);
      compared++;
    }
  expect(compared).toBeGreaterThan(3 * 25);
});

test("what CRIU's crit has decoded is encoded to the image again", () => {
  for (const name of names)
    for (const mode of ["plain", "pretty"]) {
      const text = theirs[name]?.[mode];
      if (text === undefined || text.includes("\\\\xff")) continue;
      expect(encoded(text).equals(image(name)), `${name}, ${mode}`).toBe(true);
    }
});

test("an image that has no messages is refused with what it holds", () => {
  writeFileSync(join(scratch, "pages-1.img"), Buffer.alloc(4096));
  expect(() => streamImage(bytesSource(Buffer.alloc(4096)), "pages-1.img")).toThrow("it holds memory pages");
});
