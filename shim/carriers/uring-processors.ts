// SPDX-License-Identifier: Apache-2.0
// Processors that a program has bound the kernel's workers of its rings to (IORING_REGISTER_IOWQ_AFF).
import { readFileSync } from "node:fs";
import { dirname } from "node:path";

/** A list such as 0-3,7 as a mask. */
export const maskOf = (list: string): bigint =>
  list
    .trim()
    .split(",")
    .filter((range) => range !== "")
    .reduce((mask, range) => {
      const [from, to = from] = range.split("-").map(Number);
      return mask | (((1n << BigInt(to! - from! + 1)) - 1n) << BigInt(from!));
    }, 0n);

const tryRead = (path: string): string | undefined => {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
};

/** What workers may use unless they are told otherwise: all that the task's cpuset has (io_uring/io-wq.c: io_wq_create). */
const allOf = (pid: number): bigint => {
  const groups = readFileSync(`/proc/${pid}/cgroup`, "utf8");
  const online = maskOf(tryRead("/sys/devices/system/cpu/online") ?? "0");
  for (const [line, root, file] of [
    [/^0::(\/.*)$/m, "/sys/fs/cgroup", "cpuset.cpus.effective"],
    [/^\d+:(?:\S+,)?cpuset(?:,\S+)?:(\/.*)$/m, "/sys/fs/cgroup/cpuset", "cpuset.effective_cpus"],
  ] as const)
    for (let at = line.exec(groups)?.[1]; at !== undefined; at = at === "/" ? undefined : dirname(at)) {
      const list = tryRead(`${root}${at}/${file}`);
      if (list !== undefined && list.trim() !== "") return maskOf(list) & online;
    }
  return online;
};

/** `mask`: of the workers of a thread of `pid`, 0: it has none. Undefined: they may use all that there are. */
export const boundTo = (mask: bigint, pid: number): Uint8Array | undefined => {
  const all = allOf(pid) & ((1n << 128n) - 1n);
  if (mask === 0n || (mask & all) === all) return undefined;
  const bytes = Buffer.alloc(16);
  bytes.writeBigUInt64LE(mask & ((1n << 64n) - 1n), 0);
  bytes.writeBigUInt64LE(mask >> 64n, 8);
  return bytes;
};
