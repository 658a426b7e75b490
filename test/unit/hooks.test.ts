// SPDX-License-Identifier: Apache-2.0
// The hooks' program on states of every kind, as `node hook.cjs STAGE` and in its parts. Its directory is the machine's own
// /run/cryoshim: ids here begin with a name that no container has.
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { sweep } from "../../hooks/clean-up.js";
import {
  type ContainerRecord,
  directoryOf,
  processOf,
  readRecord,
  recorded,
  removeRecord,
  writeRecord,
} from "../../hooks/record.js";
import { lxcEntries, remoteIn } from "../../hooks/remote.js";
import { readState } from "../../hooks/state.js";
import { mountLines } from "../../shim/carriers/remote-mounts.js";

const id = `unit-test-${process.pid}`;
const name = { runtime: "oci", id } as const;
let bundle = "";
beforeEach(() => {
  bundle = mkdtempSync(join(tmpdir(), "cryoshim-hooks-"));
  writeFileSync(join(bundle, "config.json"), JSON.stringify({ mounts: [] }));
});
afterEach(() => {
  removeRecord(name);
  rmSync(bundle, { recursive: true });
});

const state = (more: object = {}): string =>
  JSON.stringify({
    ociVersion: "1.2.0",
    id,
    status: "creating",
    pid: process.pid,
    bundle: bundle || "/b",
    annotations: {},
    ...more,
  });
const annotations = { "io.cryoshim.log.level": "warn", "org.example": "x" };
const run = (stage: string, input: string, env: NodeJS.ProcessEnv = {}) => {
  const { status, stderr } = spawnSync(process.execPath, ["dist/hook.cjs", ...stage.split(" ")], { input, env });
  return { status, said: stderr.toString() };
};
const record = (more: Partial<ContainerRecord> = {}): ContainerRecord => ({
  version: 1,
  ...name,
  place: bundle,
  annotations: {},
  remote: [],
  process: processOf(process.pid),
  time: new Date().toISOString(),
  ...more,
});

describe("the program", () => {
  test("takes down a container with annotations of ours, and at its end forgets it", () => {
    expect(run("createRuntime", state({ annotations }))).toEqual({ status: 0, said: "" });
    expect(readRecord(name)).toMatchObject({
      id,
      place: bundle,
      annotations: { "io.cryoshim.log.level": "warn" },
      process: processOf(process.pid),
    });
    expect(statSync(directoryOf(name)).mode & 0o777).toBe(0o700);
    expect(statSync(join(directoryOf(name), "container.json")).mode & 0o777).toBe(0o600);
    expect(run("poststop", state({ status: "stopped", pid: 0 }))).toEqual({ status: 0, said: "" });
    expect(existsSync(directoryOf(name))).toBe(false);
  });

  test("takes nothing down of a container without", () => {
    expect(run("createRuntime", state({ annotations: { "org.example": "x" } })).status).toBe(0);
    expect(readRecord(name)).toBeUndefined();
  });

  test.each([
    ["", /it is no JSON/],
    ["{", /it is no JSON/],
    ["[]", /state that the runtime sent: it: Invalid input/],
    [state({ id: "../../x" }), /id: is no id of a container/],
    [state({ id: ".." }), /id: is no id/],
    [state({ id: "a/b" }), /id: is no id/],
    [state({ bundle: "b" }), /bundle: must be an absolute path/],
    [state({ annotations: { "io.cryoshim.log.level": 3 } }), /annotations\.io/],
    [state({ pid: -1, annotations }), /pid/],
    [state({ pid: 0x7ffffff0, annotations }), /there is no process/],
    [state({ bundle: "/nonexistent", annotations }), /ENOENT/],
  ])("refuses the state %j", (text, why) => {
    const { status, said } = run("createRuntime", text);
    expect(said).toMatch(why);
    expect(status).toBe(1);
    expect(recorded().filter((each) => each.id === id)).toEqual([]);
  });

  test("told of another bundle's container of the same id it leaves ours alone", () => {
    writeRecord(record());
    expect(run("poststop", state({ bundle: "/elsewhere" })).status).toBe(0);
    expect(readRecord(name)).toBeDefined();
    expect(run("poststop", state({ id: "../../x" })).status).toBe(1);
    expect(readRecord(name)).toBeDefined();
  });

  test("keeps what it says to one printable line", () => {
    const { said } = run("createRuntime", state({ annotations: { "io.cryoshim.\n2026 fake": "\u001b[31m" } }));
    expect(said).toMatch(/^cryoshim: annotation .*there is no such annotation\n$/);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: that is what must not be there.
    expect(said).not.toMatch(/\u001b/);
  });

  test("knows no other stage", () => {
    expect(run("prestart", state()).status).toBe(1);
    expect(run("lxc pre-start ../x", "", { LXC_CONFIG_FILE: "/etc/passwd" }).status).toBe(1);
  });
});

test("no text makes reading a state end in anything but a state or ERR_HOOK", () => {
  const anyState = fc.record({ id: fc.string(), bundle: fc.string(), pid: fc.anything(), annotations: fc.anything() });
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.json(),
        anyState.map((value) => JSON.stringify(value)),
      ),
      (text) => {
        try {
          expect(readState(text).id).toMatch(/^[A-Za-z0-9_+.-]+$/);
        } catch (error) {
          expect(error).toMatchObject({ code: "ERR_HOOK" });
        }
      },
    ),
  );
});

test("a container whose process has ended is swept, also where its number has been given again; a living one stays", async () => {
  writeRecord(record());
  await sweep(() => {});
  expect(readRecord(name)).toBeDefined();
  writeRecord(record({ process: { pid: process.pid, startTime: "1" } }));
  await sweep(() => {});
  expect(existsSync(directoryOf(name))).toBe(false);
});

test("what we have not put into a container's directory stays, and is told", async () => {
  writeRecord(record({ process: undefined }));
  mkdirSync(join(directoryOf(name), "mounted"));
  const said: string[] = [];
  await sweep((text) => said.push(text));
  expect(said).toEqual([expect.stringMatching(/ENOTEMPTY/)]);
  expect(existsSync(join(directoryOf(name), "mounted"))).toBe(true);
  rmSync(join(directoryOf(name), "mounted"), { recursive: true });
});

test("a record that is damaged is none", () => {
  writeRecord(record());
  writeFileSync(join(directoryOf(name), "container.json"), "{");
  expect(readRecord(name)).toBeUndefined();
});

test("an id is never a path", () => {
  for (const bad of ["../x", "..", "a/b", ""]) expect(() => directoryOf({ runtime: "oci", id: bad })).toThrow();
});

const MOUNTS = mountLines(
  [
    "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
    "2 1 0:40 / /mnt/nas rw - nfs4 nas:/export rw,vers=4.2,password=x",
    "3 2 8:2 / /mnt/nas/disk rw - ext4 /dev/sdb1 rw",
    "4 1 0:41 / /mnt/m\\303\\274 rw - fuse.sshfs host:/m\\040u rw",
    "",
  ]
    .join("\n")
    .replaceAll(/\\([23]\d\d)/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))),
);

test("remote mounts are those whose source lies on one, by the mount that covers it", () => {
  const found = remoteIn(
    [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/data", type: "bind", source: "/mnt/nas/a/b" },
      { destination: "/disk", type: "bind", source: "/mnt/nas/disk/x" },
      { destination: "/local", type: "bind", source: "/mnt/nasty" },
      { destination: "/mü", type: "bind", source: "/mnt/mü" },
      { destination: "/own", type: "nfs", source: "other:/x" },
    ],
    MOUNTS,
  );
  expect(found).toEqual([
    { destination: "/data", type: "nfs4", source: "nas:/export", options: "rw,vers=4.2" },
    { destination: "/mü", type: "fuse.sshfs", source: "host:/m u", options: "rw" },
    { destination: "/own", type: "nfs", source: "other:/x", options: "" },
  ]);
});

test("LXC's entries are read as fstab has them", () => {
  expect(lxcEntries("lxc.mount.entry = /mnt/nas/a data none bind 0 0\n# lxc.mount.entry = x y z\n")).toEqual([
    { source: "/mnt/nas/a", destination: "/data", type: "none" },
  ]);
});

test("every hook is a shell script that a shell can read", () => {
  for (const file of ["run", "create-runtime", "create-container", "poststop", "lxc"]) {
    execFileSync("dash", ["-n", join("hooks", file)]);
  }
});
