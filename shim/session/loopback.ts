// SPDX-License-Identifier: Apache-2.0
// runc has CRIU leave out what is in a network namespace of the container's own (`empty_ns`), and brings back its veths alone: the loopback
// device, which it had set up when it started the container, stays down (libcontainer/criu_linux.go, 1.1). CRIU then cannot restore a connection over it,
// and afterwards nobody reaches what listens there.
import { closeSync, openSync } from "node:fs";
import { addon } from "../../native/index.js";
import { reason } from "../error.js";
import { netnsInode } from "../netlock/netlock.js";
import type { Log } from "./log.js";

const CLONE_NEWNET = 0x40000000;

/** Whether a restore makes such a namespace: not where it is told to use one that is there. */
export const leavesNetworkOut = (emptyNs: number | undefined, netns: string | undefined): boolean =>
  netns === undefined && ((emptyNs ?? 0) & CLONE_NEWNET) !== 0;

/** Sets up the loopback device of a restored root task's namespace, unless that is ours. */
export const setUpLoopback = (pid: number, log: Log): void => {
  try {
    const path = `/proc/${pid}/ns/net`;
    if (netnsInode(path) === netnsInode("/proc/self/ns/net")) return;
    const netns = openSync(path, "r");
    try {
      addon.setUpLoopback(netns);
    } finally {
      closeSync(netns);
    }
  } catch (error) {
    log("Warn ", `the loopback device of the container stays down: ${reason(error)}`);
  }
};
