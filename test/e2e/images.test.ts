// SPDX-License-Identifier: Apache-2.0
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { openCheckpoint } from "../../crit/checkpoint.js";
import { decode, encode } from "../../crit/cli/convert.js";
import { decodeImage, encodeImage, identify, KINDS } from "../../crit/image.js";
import { COMMON_MAGIC, type Kind, SERVICE_MAGIC } from "../../crit/kind.js";
import type { Schema, Show } from "../../crit/message.js";
import { overview } from "../../crit/overview.js";
import { rawContents } from "../../crit/raw.js";
import { criuReq, criuResp } from "../../crit/schema/rpc.js";
import { flowsOf } from "../../shim/netlock/images.js";
import { OPTIONS } from "../../shim/session/command-line.js";
import { holds, inLab } from "../support/lab.js";
import { beforeTests } from "../support/once.js";

let scratch = "";
let shown = "";
beforeTests(async (directory) => {
  scratch = directory;
  shown = await holds(
    `lab-podman-image >/dev/null
    mkdir s c; cp /cryoshim/build/workloads/workload s; cp /cryoshim/build/workloads/workload c
    podman run -d --name s -v /tmp/s:/lab localhost/busybox /lab/workload serve 7000 /lab >/dev/null
    address=$(podman inspect s --format '{{.NetworkSettings.IPAddress}}')
    podman run -d --name c -v /tmp/c:/lab localhost/busybox /lab/workload count $address 7000 /lab >/dev/null
    until_true test -s c/numbers
    for compress in zstd gzip none; do
      podman container checkpoint --tcp-established --leave-running -c $compress -e /scratch/c-$compress.tar c >/dev/null
    done
    podman container checkpoint --tcp-established --keep c >/dev/null
    mkdir /scratch/images
    cp -r /var/lib/containers/storage/overlay-containers/*/userdata/checkpoint/. /scratch/images
    cp /var/lib/containers/storage/overlay-containers/*/userdata/stats-dump /scratch/images
    node dist/cli.js show /scratch/images
    for compress in zstd gzip none; do
      echo "== $compress"; node dist/cli.js show /scratch/c-$compress.tar
    done
    for what in ps fds mems rss; do diff <(node dist/cli.js crit x /scratch/images $what) <(crit x /scratch/images $what); done
    diff <(node dist/cli.js crit x /scratch/c-zstd.tar mems) <(crit x /scratch/images mems)
    criu --help >/scratch/help || true
    python3 /cryoshim/test/support/descriptors.py >/scratch/descriptors.json`.replaceAll(
      "dist/cli",
      "/cryoshim/dist/cli",
    ),
    { LAB_SCRATCH: scratch },
  );
});

describe("a real checkpoint of podman", () => {
  test("every image of a kind that is known is written back byte by byte", () => {
    const dir = join(scratch, "images");
    const kinds = new Set<string>();
    for (const name of readdirSync(dir)) {
      if (!/\.img$|^stats-/.test(name) || /^(pages|tmpfs)-/.test(name)) continue;
      const bytes = readFileSync(join(dir, name));
      if (identify(bytes, name) === undefined) continue;
      const image = decodeImage(bytes, name);
      kinds.add(image.kind);
      expect(Buffer.from(encodeImage(image)).equals(bytes), name).toBe(true);
    }
    for (const kind of ["INVENTORY", "PSTREE", "CORE", "MM", "FDINFO", "FILES", "PAGEMAP", "CGROUP", "MNTS", "STATS"])
      expect([...kinds]).toContain(kind);
  });

  test("what has no framing of CRIU's becomes JSON and the same bytes again", async () => {
    const dir = join(scratch, "images");
    const kinds = new Set<string>();
    for (const name of readdirSync(dir).filter((each) => rawContents(each) !== undefined)) {
      const out = join(scratch, "raw");
      await decode({ in: join(dir, name), out: `${out}.json`, pretty: true });
      encode({ in: `${out}.json`, out: `${out}.img` });
      expect(readFileSync(`${out}.img`).equals(readFileSync(join(dir, name))), name).toBe(true);
      kinds.add(name.replace(/-[\d.].*/, ""));
    }
    expect([...kinds]).toEqual(expect.arrayContaining(["pages", "tmpfs-dev"]));
  });

  test("its tasks, files and times are read, from the directory and from each archive", async () => {
    const dir = overview(await openCheckpoint(join(scratch, "images")));
    expect(dir.tasks.map(({ comm }) => comm)).toContain("workload");
    expect(dir.times?.frozen).toBeGreaterThan(0);
    for (const name of ["c-zstd.tar", "c-gzip.tar", "c-none.tar"]) {
      if (name.includes("zstd") && !("createZstdDecompress" in (await import("node:zlib")))) continue;
      const archive = overview(await openCheckpoint(join(scratch, name)));
      expect(archive.tasks).toEqual(dir.tasks);
      expect(archive.container?.name).toBe("c");
    }
  });

  test("the sockets that its restore will bring back are found in it", () => {
    const flows = flowsOf(join(scratch, "images"));
    expect(flows).toHaveLength(1);
    expect(flows[0]).toMatchObject({ remotePort: 7000, protocol: 6, localPort: expect.any(Number) });
    const mapped = Buffer.from("00000000000000000000ffff", "hex");
    for (const address of [flows[0]!.local, flows[0]!.remote]) expect(address.subarray(0, 12)).toEqual(mapped);
    expect(flows[0]!.remote.subarray(12)).not.toEqual(flows[0]!.local.subarray(12));
  });

  test("show prints it on one screen", () => {
    const screens = shown.split(/^== .*\n/m);
    expect(screens).toHaveLength(4);
    for (const screen of screens) {
      expect(screen).toMatch(/^size +\d/m);
      expect(screen).toMatch(/^frozen +[\d.]+ ms/m);
      expect(screen).toMatch(/^files .*inet socket/im);
      expect(screen).toMatch(/^ +1 workload \(/m);
      expect(screen.split("\n").length).toBeLessThan(25);
    }
    expect(screens[1]).toMatch(/^container +c$/m);
  });
});

/** All message types that can be reached from some. */
const reachable = (from: readonly Schema[]): Map<string, Schema> => {
  const all = new Map<string, Schema>();
  const add = (schema: Schema): void => {
    if (all.has(schema.name)) return;
    all.set(schema.name, schema);
    for (const [, type] of Object.values(schema.fields)) if (typeof type === "function") add(type());
  };
  from.forEach(add);
  return all;
};

/** What Debian's python3-pycriu says. */
interface Oracle {
  messages: Record<string, Record<string, [number, string, string, Show | null]>>;
  magics: Record<string, number>;
  handlers: string[];
}
const oracle = (): Oracle => JSON.parse(readFileSync(join(scratch, "descriptors.json"), "utf8")) as Oracle;

/** CRIU's, without our own. */
const theirKinds = Object.fromEntries(Object.entries(KINDS).filter(([name]) => !name.startsWith("CRYOSHIM")));

test("numbers, types, labels and ways to show of all fields are those of CRIU's own descriptors, and none is missing", () => {
  const { messages } = oracle();
  const roots = Object.values(theirKinds).flatMap((kind: Kind) => [kind.entry, kind.head, kind.nested?.schema]);
  const all = reachable([...roots.filter((root) => root !== undefined), criuReq, criuResp]);
  const wrong: string[] = [];
  for (const { name, fields } of all.values()) {
    // Requests are never shown, so their enums have no names here.
    const bare = name.startsWith("criu_");
    const theirs = Object.fromEntries(
      Object.entries(messages[name] ?? {})
        .map(([field, [number, type, label, show]]): [string, unknown] => [
          field,
          [number, type, label, bare ? null : show],
        ])
        .sort(),
    );
    const ours = Object.fromEntries(
      Object.entries(fields)
        .map(([field, [number, type, label, show]]): [string, unknown] => [
          field,
          [number, typeof type === "function" ? type().name : type, label ?? "optional", show ?? null],
        ])
        .sort(),
    );
    try {
      expect(ours).toEqual(theirs);
    } catch (error) {
      wrong.push(`${name}: ${(error as Error).message}`);
    }
  }
  expect(wrong).toEqual([]);
  // What is left belongs to protocols, or to nothing that CRIU 4.2 writes.
  expect(Object.keys(messages).filter((name) => !all.has(name))).toEqual([
    "img_streamer_request_entry",
    "img_streamer_reply_entry",
    "CRIU_Opts",
  ]);
});

test("every magic of CRIU 4.2 is known by its name", () => {
  const { IMG_COMMON, IMG_SERVICE, KDAT, CRTOOLS_IMAGES_V1_1, ...magics } = oracle().magics;
  expect([KDAT, CRTOOLS_IMAGES_V1_1]).not.toContain(undefined);
  expect([IMG_COMMON, IMG_SERVICE]).toEqual([COMMON_MAGIC, SERVICE_MAGIC]);
  expect(Object.fromEntries(Object.entries(theirKinds).map(([name, { magic }]) => [name, magic]))).toEqual(magics);
  const ours = Object.entries(KINDS).filter(([name]) => name.startsWith("CRYOSHIM"));
  for (const [, { magic }] of ours) expect(Object.values(magics)).not.toContain(magic);
});

test("every option that CRIU's help names is known, and none that it refuses", async () => {
  const named = new Set<string>();
  for (const [, no, name] of readFileSync(join(scratch, "help"), "utf8").matchAll(/--(\[no-\])?([a-z][a-z-]+[a-z])/g)) {
    named.add(name!);
    if (no) named.add(`no-${name}`);
  }
  expect(named.size).toBeGreaterThan(60);
  expect([...named].filter((name) => !OPTIONS.has(name))).toEqual([]);
  const words = [...OPTIONS].map(([name, arity]) => (arity === "required" ? `--${name}=1` : `--${name}`));
  const script = `for word in "$@"; do criu $word nonsense 2>&1 </dev/null | grep -E "option .* (is ambiguous|requires an argument)|unrecognized option|allow an argument" && echo "$word"; done; true`;
  const { stdout, code } = await inLab(["bash", "-c", script, "sh", ...words], "bare");
  expect(code).toBe(0);
  expect(stdout).toBe("");
});
