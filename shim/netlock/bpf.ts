// SPDX-License-Identifier: Apache-2.0
// bpf(2): union bpf_attr is written field by field, by the offsets of include/uapi/linux/bpf.h, which never change.
import { addon, closeFd } from "../../native/index.js";

/** enum bpf_cmd */
export const CMD = {
  mapCreate: 0,
  mapLookup: 1,
  mapUpdate: 2,
  mapDelete: 3,
  mapNextKey: 4,
  progLoad: 5,
  objPin: 6,
  objGet: 7,
  btfLoad: 18,
  linkCreate: 28,
  iterCreate: 33,
} as const;

/**
 * Numbers go in as u32; buffers as a pointer to their bytes, or as the bytes themselves where `inline` names the offset.
 */
export interface Attr {
  [offset: number]: number | Buffer;
  inline?: number[];
}

const raw = addon.bpf as (cmd: number, attr: Buffer, pointers: [number, Buffer][], netns: number) => number;

/** The verifier gives up where a signal is on its way (kernel/bpf/verifier.c: do_check), as libbpf knows, too. */
const LOAD_TRIES = 10;

/** The largest attr used here: BPF_PROG_LOAD up to core_relo_rec_size. */
const ATTR_BYTES = 144;

const call = (cmd: number, { inline = [], ...fields }: Attr, netns: number): number => {
  const attr = Buffer.alloc(ATTR_BYTES);
  const pointers: [number, Buffer][] = [];
  for (const [key, value] of Object.entries(fields)) {
    const offset = Number(key);
    if (typeof value === "number") attr.writeInt32LE(value | 0, offset);
    else if (inline.includes(offset)) value.copy(attr, offset);
    else if (value.length > 0) pointers.push([offset, value]);
  }
  for (let tries = LOAD_TRIES; ; tries--)
    try {
      return raw(cmd, attr, pointers, netns);
    } catch (error) {
      if (cmd !== CMD.progLoad || tries === 0 || (error as { code?: string }).code !== "EAGAIN") throw error;
    }
};

/**
 * One call; `log` asks the verifier for its words when a program is refused. `netns` is a descriptor of the network
 * namespace in which to make it, -1: this one. Throws the errno.
 */
export const bpf = (cmd: number, attr: Attr, log = false, netns = -1): number => {
  try {
    return call(cmd, attr, netns);
  } catch (error) {
    if (!log) throw error;
    const said = Buffer.alloc(16 << 20);
    try {
      return call(cmd, { ...attr, 24: 1, 28: said.length, 32: said }, netns);
    } catch (again) {
      const text = said.toString("latin1", 0, Math.max(0, said.indexOf(0))).trim();
      throw Object.assign(again as Error, {
        message: `${(again as Error).message}: ${text.split("\n").slice(-3).join("; ")}`,
      });
    }
  }
};

/** Closes descriptors; safe to call with those of a set that is half made. */
export const closeAll = (fds: Iterable<number>): void => {
  for (const fd of fds) closeFd(fd);
};
