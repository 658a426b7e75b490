// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import { decode, type Message, message } from "./message.js";

const member = message("cg_member_entry", {
  name: [1, "string", "required"],
  path: [2, "string", "required"],
  cgns_prefix: [3, "uint32"],
});
const set = message("cg_set_entry", { id: [1, "uint32", "required"], ctls: [2, () => member, "repeated"] });
const entry = message("cgroup_entry", { sets: [1, () => set, "repeated"] });

const COMMON_MAGIC = 0x54564319;
const CGROUP_MAGIC = 0x59383330;

/** Where the first task was in each hierarchy, by controller ("" is cgroup2); undefined when the image tells none. */
export const readCgroupImage = (path: string): Map<string, string> | undefined => {
  let data: Buffer;
  try {
    data = readFileSync(path);
  } catch {
    return undefined;
  }
  if (data.length < 12 || data.readUInt32LE(0) !== COMMON_MAGIC || data.readUInt32LE(4) !== CGROUP_MAGIC)
    return undefined;
  const size = data.readUInt32LE(8);
  if (size > data.length - 12) return undefined;
  const sets = (decode(entry, data.subarray(12, 12 + size)).sets ?? []) as Message[];
  const ctls = sets.at(-1)?.ctls as { name: string; path: string }[] | undefined;
  return ctls && new Map(ctls.map(({ name, path: where }) => [name, where]));
};
