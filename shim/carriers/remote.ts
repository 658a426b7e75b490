// SPDX-License-Identifier: Apache-2.0
// Mounts whose files are on a server: NFS, FUSE and the like. CRIU is told that they are external, and what a restore will
// ask of them is recorded beside its images. No task is touched, and nothing here waits for a server that does not answer.
import type { Carrier } from "./carrier.js";
import { admit, externalKeys, type HeldMount, heldMounts, recordAll } from "./remote-dump.js";
import { type RemoteFs, readRemote, writeRemote } from "./remote-image.js";
import { findPlace, notThere, pathFor } from "./remote-restore.js";

/** The carrier of one session. `settings`: [remote] of the configuration. */
export const remoteCarrier = ({ answer_within }: { answer_within: number }): Carrier => {
  const answerWithin = answer_within * 1000;
  let held: HeldMount[] = [];
  let recorded: RemoteFs[] = [];
  return {
    name: "remote",
    async admit(root, { given }) {
      await admit(root, given, answerWithin);
    },
    async seized({ root }, { engine, given }) {
      held = heldMounts(root);
      const keys = externalKeys(held, given);
      if (keys.length > 0) await engine.external(keys);
    },
    async dumped(ok, { imagesDir }) {
      if (!ok || held.length === 0) return;
      recorded = await recordAll(held, imagesDir, answerWithin);
      if (recorded.length > 0) writeRemote(imagesDir, recorded);
    },
    needed: () => recorded.some(({ mounts }) => mounts.some(({ ours }) => ours)),
    async restoring({ imagesDir, engine }) {
      for (const fs of readRemote(imagesDir)) {
        const ours = fs.mounts.filter((mount) => mount.ours);
        if (ours.length === 0) continue;
        const place = await findPlace(fs, [], answerWithin);
        if (Array.isArray(place)) throw notThere(fs, place);
        await engine.external(ours.map((mount) => `mnt[${mount.key}]:${pathFor(fs, mount, place)}`));
      }
    },
  };
};
