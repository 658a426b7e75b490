// SPDX-License-Identifier: Apache-2.0
// The shim's one message to the launcher: what to become. Layout: native/launcher/launch.h.

const MAGIC = 0x314c5343;
const HEAD_BYTES = 56;
const MAX_FDS = 8;

/** The largest plan the launcher takes (LAUNCH_MAX). */
export const MAX_PLAN = (1 << 20) - 1;

/** A descriptor of the shim and the number at which the engine shall find it. */
export interface PlacedFd {
  fd: number;
  target: number;
}

export type Plan =
  /** Become the engine, with this environment on top and these descriptors; without argv the caller's own. */
  | { kind: "exec"; engine: string; env: Record<string, string | undefined>; argv?: string[]; fds: PlacedFd[] }
  /** Become the engine as if there were no shim; a reason is told to the user. */
  | { kind: "alone"; why?: string }
  /** Print a message and end. */
  | { kind: "exit"; code: number; message: string };

const KIND = { exec: 1, alone: 2, exit: 3 } as const;

/** The message, and the descriptors to send with it. Throws RangeError when it would not fit. */
export const encodePlan = (plan: Plan): { data: Buffer; fds: number[] } => {
  const head = Buffer.alloc(HEAD_BYTES);
  const strings: string[] = [];
  const fds = plan.kind === "exec" ? plan.fds : [];
  if (fds.length > MAX_FDS) throw new RangeError(`a plan carries at most ${MAX_FDS} descriptors`);
  head.writeUInt32LE(MAGIC, 0);
  head.writeUInt32LE(KIND[plan.kind], 4);
  if (plan.kind === "exec") {
    const env = Object.entries(plan.env).map(([name, value]) => (value === undefined ? name : `${name}=${value}`));
    strings.push(plan.engine, ...env, ...(plan.argv ?? []));
    head.writeUInt32LE(env.length, 12);
    head.writeUInt32LE(plan.argv?.length ?? 0, 16);
  } else if (plan.kind === "exit") {
    head.writeUInt32LE(plan.code, 8);
    strings.push(plan.message);
  } else {
    strings.push(plan.why ?? "");
  }
  head.writeUInt32LE(fds.length, 20);
  fds.forEach(({ target }, i) => {
    head.writeInt32LE(target, 24 + 4 * i);
  });
  const data = Buffer.concat([head, ...strings.map((s) => Buffer.from(`${s.replaceAll("\0", "")}\0`))]);
  if (data.length > MAX_PLAN) throw new RangeError(`a plan of ${data.length} bytes does not fit the launch socket`);
  return { data, fds: fds.map(({ fd }) => fd) };
};
