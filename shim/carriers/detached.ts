// SPDX-License-Identifier: Apache-2.0
// Files on mounts that are in no namespace any more. CRIU is told that they are external; at the restore they are opened
// in a copy of another mount of their file system, and that copy, too, is in no namespace. No task is touched at a dump.
//
// Descriptors the tasks ask us for. What they have otherwise (a working directory, a root, a program, a mapped file) CRIU
// opens itself: it inherits what is there before tasks exist; what is only in the container's mounts is mounted there for
// as long as CRIU opens files.

import { type CryoshimError, reason } from "../error.js";
import { treeOf } from "../netlock/netlock.js";
import { findSpecial } from "../xray/find.js";
import { findUses, type Use } from "../xray/uses.js";
import type { Carrier } from "./carrier.js";
import { DetachedFiles } from "./detached-dump.js";
import { Places } from "./detached-find.js";
import { Reopen } from "./detached-restore.js";

/** The carrier of one session. `largest`: see [detached] of the configuration. */
export const detachedCarrier = ({ largest }: { largest: number }): Carrier => {
  let places: Places | undefined;
  const placesOf = (root: number) => (): Places => {
    places ??= new Places(root);
    return places;
  };
  /** Mappings are looked through before the freeze; in it only where there was something. */
  let likely = false;
  let looked = false;
  /** What cannot be carried: known before the freeze. */
  let refused: CryoshimError[] = [];
  let known: DetachedFiles["known"] | undefined;
  let files: DetachedFiles | undefined;
  let reopen: Reopen | undefined;

  /** Where the kernel cannot tell, they are left to CRIU, which refuses them. */
  const usesOf = (root: number): Use[] => {
    try {
      return findUses(treeOf(root));
    } catch {
      return [];
    }
  };

  const look = (root: number): void => {
    if (looked) return;
    const [found, uses] = [findSpecial(root), usesOf(root)];
    likely = uses.length > 0;
    // Once before the freeze: the second time is faster.
    const seen = new DetachedFiles(root, found, uses, placesOf(root), { search: true, running: true, largest });
    seen.measure();
    seen.rehearse();
    seen.close();
    known = seen.known;
    refused = seen.refused;
    looked = true;
    try {
      // What runs for the first time in the freeze takes longer there.
      if (known.size > 0)
        new DetachedFiles(root, found, uses, placesOf(root), { search: false, running: true, largest, known }).close();
    } finally {
      // Mounts may change until the tasks stand still.
      places?.forget();
    }
  };

  const carrier: Carrier = {
    name: "detached",
    prepare: look,
    async admit(root, { log }) {
      try {
        look(root);
      } catch (error) {
        // The tasks run: what it saw may have been half done, and is looked at again when they stand still.
        log("Warn ", `files on unmounted mounts: ${reason(error)}`);
      }
      const [first] = refused;
      if (first !== undefined) throw first;
    },
    async seized({ root, found }, { engine, log }) {
      const looks = likely || found.some(({ kind }) => kind === "detached");
      files = new DetachedFiles(root, found, looks ? usesOf(root) : [], placesOf(root), {
        search: false,
        largest,
        ...(known !== undefined && { known }),
      });
      for (const { message } of files.refused) log("Warn ", message);
      if (files.saved.length === 0) return;
      await engine.external(files.keys);
      await engine.anyNames(files.relative);
      await files.hideRoots(engine);
    },
    needed: () => files !== undefined && files.saved.length > 0,
    async dumped(ok, { imagesDir }) {
      const made = files;
      return !ok || made === undefined ? undefined : made.writer(imagesDir);
    },
    async restoring({ imagesDir, engine }) {
      const opening = new Reopen(imagesDir);
      reopen = opening;
      await opening.handIn(engine);
      if (opening.binds) {
        await engine.bound();
        carrier.bindSocket = async (name, fd, task, { log }) => {
          const placed = opening.bind(name, fd, task);
          if (placed === false)
            log("Warn ", "a socket's name on an unmounted mount leads nowhere: others have it by now");
          return placed !== undefined;
        };
        carrier.boundFile = (name) => opening.boundFile(name);
      }
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
