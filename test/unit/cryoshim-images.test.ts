// SPDX-License-Identifier: Apache-2.0
// Images of ours come from anywhere: whatever is in one, it is read, or refused as an image that is none.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, expect, test } from "vitest";
import { encodeImage, KINDS } from "../../crit/image.js";
import type { Message, Value } from "../../crit/message.js";
import { readCorks } from "../../shim/carriers/cork-image.js";
import { DetachedImage } from "../../shim/carriers/detached-image.js";
import { loadQueues } from "../../shim/carriers/mqueue-image.js";
import { readPidfds } from "../../shim/carriers/pidfd-image.js";
import { readRemote } from "../../shim/carriers/remote-image.js";
import { loadRings } from "../../shim/carriers/uring-image.js";
import { CryoshimError } from "../../shim/error.js";
import { anyMessage } from "../support/images.js";

const RUNS = Number(process.env.FUZZ_RUNS ?? 300);
const dir = mkdtempSync(join(tmpdir(), "cryoshim-test-"));
afterAll(() => rmSync(dir, { recursive: true }));

/** Takes fields out, also those that are required. */
const without = (value: Value, take: () => boolean): Value => {
  if (Array.isArray(value)) return value.map((each) => without(each, take));
  if (typeof value !== "object" || value instanceof Uint8Array) return value;
  const kept = Object.entries(value).filter(([, each]) => each !== undefined && !take());
  return Object.fromEntries(kept.map(([name, each]) => [name, without(each!, take)]));
};

test.each([
  ["CRYOSHIM_MQUEUE", "mqueue", loadQueues],
  ["CRYOSHIM_UDP", "udp", readCorks],
  ["CRYOSHIM_PIDFD", "pidfd", readPidfds],
  ["CRYOSHIM_DETACHED", "detached", (images: string) => new DetachedImage(images)],
  ["CRYOSHIM_REMOTE", "remote", readRemote],
  ["CRYOSHIM_URING", "uring", loadRings],
] as const)("any messages in an image of %s are read, or refused", (kind, name, read) => {
  const entries = fc.array(anyMessage(KINDS[kind].entry), { maxLength: 6 });
  let refused = 0;
  fc.assert(
    fc.property(entries, fc.infiniteStream(fc.nat(9)), (messages, chance) => {
      const take = (): boolean => chance.next().value === 0;
      const left = messages.map((message) => ({ message: without(message, take) as Message }));
      writeFileSync(join(dir, `cryoshim-${name}.img`), encodeImage({ kind, entries: left }));
      try {
        read(dir);
      } catch (error) {
        if (!(error instanceof CryoshimError)) throw error;
        expect(error.code).toBe("ERR_IMAGE");
        refused++;
      }
    }),
    { numRuns: RUNS },
  );
  expect(refused).toBeGreaterThan(0);
});
