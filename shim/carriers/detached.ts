// SPDX-License-Identifier: Apache-2.0
// Files on mounts that are in no namespace any more. CRIU is told that they are external; at the restore they are opened
// in a copy of another mount of their file system, and that copy, too, is in no namespace. No task is touched at a dump.
//
// Descriptors the tasks ask us for. What they have otherwise (a working directory, a root, a program, a mapped file) CRIU
// opens itself: it inherits what is there before tasks exist; what is only in the container's mounts is mounted there for
// as long as CRIU opens files.

import { treeOf } from "../netlock/netlock.js";
import { findSpecial } from "../xray/find.js";
import { findUses } from "../xray/uses.js";
import type { Carrier } from "./carrier.js";
import { DetachedFiles } from "./detached-dump.js";
import { Places } from "./detached-find.js";
import { Reopen } from "./detached-restore.js";

/** The carrier of one session. */
export const detachedCarrier = (): Carrier => {
  let places: Places | undefined;
  const loaded = (): Places => {
    places ??= new Places();
    return places;
  };
  /** Mappings are looked through before the freeze; in it only where there was something. */
  let likely = false;
  let files: DetachedFiles | undefined;
  let reopen: Reopen | undefined;
  const carrier: Carrier = {
    name: "detached",
    prepare(root) {
      const [found, uses] = [findSpecial(root), findUses(treeOf(root))];
      likely = uses.length > 0;
      // Once before the freeze: the second time is faster.
      new DetachedFiles(root, found, uses, loaded, true).close();
      // Mounts may change until the tasks stand still.
      places?.forget();
    },
    async seized({ root, found }, { engine, log }) {
      const looks = likely || found.some(({ kind }) => kind === "detached");
      files = new DetachedFiles(root, found, looks ? findUses(treeOf(root)) : [], loaded, false);
      for (const { message } of files.refused) log("Warn ", message);
      if (files.saved.length > 0) await engine.external(files.keys);
    },
    needed: () => files !== undefined && files.saved.length > 0,
    async dumped(ok, { imagesDir }) {
      if (ok && files !== undefined && files.saved.length > 0) files.write(imagesDir);
    },
    async restoring({ imagesDir, engine }) {
      const opening = new Reopen(imagesDir);
      reopen = opening;
      await opening.handIn(engine);
      if (opening.holds)
        carrier.resume = async () => {
          opening.letGo();
        };
    },
    namespaces(pid) {
      reopen?.attach(pid);
    },
    opened() {
      reopen?.detach();
    },
    async restoreFile(id, task) {
      return reopen?.open(id, task);
    },
    close() {
      files?.close();
      places?.close();
      reopen?.close();
    },
  };
  return carrier;
};
