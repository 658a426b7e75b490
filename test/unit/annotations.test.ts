// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { expect, test } from "vitest";
import { DEFAULTS } from "../../shim/engine/launch-file.js";
import { ANNOTATIONS, annotationsOf, applyAnnotations, readAnnotations } from "../../shim/session/annotations.js";
import { containerOfCommand, containerOfRuntime, isContainerId } from "../../shim/session/container.js";

const container = (annotations: Record<string, string>) => ({ runtime: "oci" as const, place: "/b", annotations });

test("each annotation becomes a typed value", () => {
  const { annotations, wrong } = readAnnotations({
    "io.cryoshim.strict": "false",
    "io.cryoshim.cgroup.manage": "soft",
    "io.cryoshim.network.lock": "nftables",
    "io.cryoshim.log.level": "error",
    "io.cryoshim.io-uring.policy": "wait:250",
    "io.cryoshim.remote.policy": "always",
    "io.cryoshim.remote.timeout": "2m",
    "io.cryoshim.remote.retire": "never",
    "io.cryoshim.remote.on-loss": "eio",
    "io.cryoshim.remote.gone": "stub",
    "io.cryoshim.remote.map": "nas:/a=/mnt/a, nas:/b=other:/b",
    "org.criu.config": "not ours",
  });
  expect(wrong).toEqual([]);
  expect(annotations).toEqual({
    strict: false,
    cgroupManage: "soft",
    networkLock: "nftables",
    logLevel: "error",
    ioUring: { policy: "wait", ms: 250 },
    remote: {
      policy: "always",
      timeoutMs: 120_000,
      retire: "never",
      onLoss: "eio",
      gone: "stub",
      map: [
        { source: "nas:/a", here: "/mnt/a" },
        { source: "nas:/b", here: "other:/b" },
      ],
    },
  });
});

test.each([
  ["io.cryoshim.remote.timeout", "500ms", 500],
  ["io.cryoshim.remote.timeout", "0", 0],
  ["io.cryoshim.remote.timeout", "7", 7000],
])("a time is %s=%s", (key, text, ms) => {
  expect(readAnnotations({ [key]: text }).annotations.remote.timeoutMs).toBe(ms);
});

test.each([
  ["io.cryoshim.network.lock", "maybe", /one of auto, bpf/],
  ["io.cryoshim.network.lok", "none", /no such annotation/],
  ["io.cryoshim.toString", "x", /no such annotation/],
  ["io.cryoshim.io-uring.policy", "wait", /wait:MILLISECONDS/],
  ["io.cryoshim.remote.timeout", "-1", /a time/],
  ["io.cryoshim.remote.map", "a=b=c", /SOURCE=HERE/],
  ["io.cryoshim.remote.map", "", /SOURCE=HERE/],
  ["io.cryoshim.strict", "yes", /true, false/],
])("%s=%s is passed over and told, and fails what is strict", (key, value, why) => {
  const { annotations, wrong } = annotationsOf(container({ [key]: value, "io.cryoshim.log.level": "warn" }));
  expect(wrong).toEqual([expect.stringMatching(why)]);
  expect(annotations).toEqual({ strict: false, logLevel: "warn", remote: { map: [] } });
  if (key === "io.cryoshim.strict") return;
  expect(() => annotationsOf(container({ [key]: value, "io.cryoshim.strict": "true" }))).toThrow(
    expect.objectContaining({ code: "ERR_ANNOTATION", why: expect.stringMatching(why) }),
  );
});

test("no text makes reading them throw, and what is told of it is one printable line", () => {
  fc.assert(
    fc.property(fc.constantFrom(...Object.keys(ANNOTATIONS), "io.cryoshim.\n"), fc.string(), (key, text) => {
      for (const line of readAnnotations({ [key]: text }).wrong) expect(line).not.toMatch(/[\n\0]/);
    }),
  );
});

test("they beat the host's configuration, which is left as it was", () => {
  const { annotations } = readAnnotations({ "io.cryoshim.network.lock": "none" });
  expect(applyAnnotations(DEFAULTS, annotations)).toEqual({ ...DEFAULTS, network: { lock: "none" } });
  expect(DEFAULTS.network.lock).toBe("auto");
});

test("docs/configuration.md has a line for every annotation, and for no other", () => {
  const listed = readFileSync("docs/configuration.md", "utf8").matchAll(/(?<=^\| `)io\.cryoshim\.[a-z.-]+/gm);
  expect([...listed].map(([key]) => key).sort()).toEqual(Object.keys(ANNOTATIONS).sort());
});

test.each(["..", ".", "", "a/b", "../../x", "a\nb", "a b", "x".repeat(1025)])("%j is no id of a container", (id) => {
  expect(isContainerId(id)).toBe(false);
});

test("a process that is no runtime's has no container", () => {
  expect(containerOfRuntime(process.pid, process.pid)).toBeUndefined();
  expect(containerOfCommand(process.pid, process.pid, {})).toBeUndefined();
  expect(containerOfCommand(process.pid, undefined, { LXC_NAME: "c", LXC_CONFIG_FILE: "/dev/zero" })).toBeUndefined();
  expect(containerOfRuntime(0x7ffffff0, undefined)).toBeUndefined();
});
