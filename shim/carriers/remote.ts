// SPDX-License-Identifier: Apache-2.0
// Mounts whose files are on a server: NFS, FUSE and the like. CRIU is told that they are external, and what a restore will
// ask of them is recorded beside its images. No task is touched, and nothing here waits for a server that does not answer.
// At the restore SPFS stands where a server is not there (yet).
import type { RemoteSettings } from "../engine/launch-file.js";
import type { Stands } from "../remote/stand.js";
import type { Carrier, CarrierContext } from "./carrier.js";
import { admit, externalKeys, type HeldMount, heldMounts, NoRemoteMounts, recordAll } from "./remote-dump.js";
import { type RemoteFs, readRemote, writeRemote } from "./remote-image.js";
import { matches } from "./remote-mounts.js";
import { findPlace, joined, notThere, partOf, readAgain, wrongWith } from "./remote-restore.js";

/** How a file system is to be treated: the container's annotations beat the configuration. */
export const treatmentOf = (settings: RemoteSettings, { remote }: CarrierContext["annotations"]) => ({
  policy: remote.policy ?? settings.policy,
  timeoutMs: remote.timeoutMs ?? settings.timeout * 1000,
  passthrough: settings.passthrough,
  onLoss: remote.onLoss ?? settings.on_loss,
  retire: remote.retire ?? settings.retire,
  gone: remote.gone ?? settings.gone,
  map: remote.map,
});

/** The carrier of one session. */
export const remoteCarrier = (settings: RemoteSettings): Carrier => {
  const answerWithin = settings.answer_within * 1000;
  let held: HeldMount[] = [];
  let none: NoRemoteMounts | undefined;
  let told = false;
  let recorded: RemoteFs[] = [];
  let stands: Stands | undefined;
  let stub: Promise<void> | undefined;
  /** The session has ended: nothing may be raised any more. */
  let over = false;

  /** What must be told to CRIU of one file system of the images. */
  const restore = async (fs: RemoteFs, context: CarrierContext): Promise<string[]> => {
    const { given, annotations, log } = context;
    const treatment = treatmentOf(settings, annotations);
    const ours = fs.mounts.filter((mount) => mount.ours);
    const stand = async (): Promise<string[]> => {
      // Loaded where SPFS is needed.
      const { Stands } = await import("../remote/stand.js");
      if (over) throw new Error("the restore is over");
      stands ??= new Stands(context, answerWithin);
      return stands.raise(fs, treatment);
    };
    if (treatment.policy === "always") return stand();
    const tell = (what: string): void => log("Warn ", what);
    const wrong: string[] = [];
    for (const mount of fs.mounts) {
      if (mount.ours) continue;
      // What is not the caller's is the host's own.
      const path = mount.key === undefined ? mount.point : given.get(mount.key);
      const why = path === undefined ? undefined : await wrongWith(fs, partOf(fs, mount), path, answerWithin, tell);
      if (why !== undefined) wrong.push(why);
    }
    if (wrong.length === 0 && ours.length === 0) return [];
    // Directories that are named for it; what is named to be mounted is mounted for SPFS.
    const named = [
      ...treatment.map.filter(({ source, here }) => here.startsWith("/") && matches(source, fs.source)),
      ...settings.mount.flatMap(({ source, path }) => (path && matches(source, fs.source) ? [{ here: path }] : [])),
    ].map(({ here }) => here);
    const place = wrong.length === 0 ? await findPlace(fs, named, answerWithin, tell) : wrong;
    if (typeof place === "string")
      return ours.map(({ key, root }) => `mnt[${key}]:${joined(place, partOf(fs, { root }))}`);
    for (const why of place) log("Info ", why);
    if (treatment.policy === "auto") return stand();
    if (ours.length > 0) throw notThere(fs, place);
    return [];
  };

  return {
    name: "remote",
    async admit(root, { given }) {
      await admit(root, given, answerWithin);
      try {
        none = NoRemoteMounts.of(root);
      } catch {
        // A process has ended: they are looked at when the tasks stand still.
      }
    },
    async seized({ root }, { engine, given }) {
      if (none?.still) return;
      held = heldMounts(root);
      const keys = externalKeys(held, given);
      told = keys.length > 0;
      if (told) await engine.external(keys);
    },
    async dumped(ok, { imagesDir }) {
      if (!ok || held.length === 0) return;
      recorded = await recordAll(held, imagesDir, answerWithin);
      if (recorded.length > 0) writeRemote(imagesDir, recorded);
    },
    needed: () => told,
    async restoring(context) {
      const keys: string[] = [];
      for (const fs of readRemote(context.imagesDir)) keys.push(...(await restore(fs, context)));
      if (keys.length > 0) await context.engine.external(keys);
    },
    async resume(pid, { log }) {
      for (const why of readAgain(pid)) log("Warn ", why);
      // All files are open, and none is touched any more before the tasks run.
      stub ??= stands?.stub(pid);
      await stub;
    },
    async restored(ok) {
      await (ok ? stands?.keep() : stands?.drop());
    },
    async close() {
      over = true;
      none?.close();
      await stands?.drop();
    },
  };
};
