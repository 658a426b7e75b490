// SPDX-License-Identifier: Apache-2.0
// Where the kernel has its pages. x86-64 shifts them at random at boot, and does not tell unless its symbols are all there.
import { readFileSync } from "node:fs";
import { artefact, sendMessage, seqpacketPair } from "../../native/index.js";
import { bpf, CMD, closeAll } from "../netlock/bpf.js";
import { loadObject } from "../netlock/bpf-object.js";
import { runIterator, TASK_FILE } from "./iterator.js";

/** struct search of native/bpf/pages.bpf.c */
const SEARCH_SIZE = 48;

/** What native/bpf/socket.h:page_address_of() takes, found by a page of ours with known contents. Throws where it is not. */
export const pageShift = (): Buffer => {
  const { maps, programs } = loadObject(readFileSync(artefact("pages.bpf.o")), {
    "iter/task_file.calibrate": TASK_FILE,
  });
  const [sender, receiver] = seqpacketPair();
  try {
    // What does not fit the linear part of a message lies in pages (net/unix/af_unix.c:unix_dgram_sendmsg).
    const pattern = Buffer.alloc(48 << 10, 1 + Math.floor(Math.random() * 255));
    sendMessage(sender, pattern);
    const value = Buffer.alloc(SEARCH_SIZE);
    pattern.copy(value, 0, 0, 8);
    value.writeUInt32LE(receiver, 28);
    bpf(CMD.mapUpdate, { 0: maps.search!, 8: Buffer.alloc(4), 16: value });
    runIterator(programs.calibrate!, process.pid);
    bpf(CMD.mapLookup, { 0: maps.search!, 8: Buffer.alloc(4), 16: value });
    if (value.readUInt32LE(40) === 0) throw new Error("the kernel's pages were not found");
    return Buffer.from(value.subarray(32, 40));
  } finally {
    closeAll([sender, receiver, ...Object.values(maps), ...Object.values(programs)]);
  }
};
