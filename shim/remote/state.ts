// SPDX-License-Identifier: Apache-2.0
// What is remembered of a file system that SPFS stands for, until it ends: which it was, for whom, and what has become of
// it. Beside SPFS's own files in /run/cryoshim/spfs/ID, which SPFS removes when it ends.
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { RemoteFs, RemoteMount } from "../carriers/remote-image.js";

export const SPFS_STATE = "/run/cryoshim/spfs";
/** The source of SPFS's mounts in mountinfo, before its id (spfs/mount.c). */
const SOURCE = /^cryoshim-spfs:([\w-]{1,64})$/;

/** How the file system is treated: configuration and annotations, decided at the restore. */
export interface Treatment {
  policy: "auto" | "always" | "never";
  timeoutMs: number;
  passthrough: "auto" | "off";
  onLoss: "block" | "eio";
  retire: "auto" | "always" | "never";
  gone: "fail" | "stub";
  /** Of the annotation: what was mounted, and where it is on this host. */
  map: { source: string; here: string }[];
}

export interface Remembered {
  version: 1;
  id: string;
  fs: Omit<RemoteFs, "nodes">;
  treatment: Treatment;
  /** Where a runtime binds it from; the real one may come back there. Latin1. */
  paths: string[];
  /** Where SPFS is seen on the host, until the restore is done. */
  mountpoint: string;
  /** The first process of the container, once it is there. */
  root?: number;
  /** The network is not the host's: it was mounted from within the container. */
  own: boolean;
  /** When, and what it came back with. */
  since: string;
  proxied?: { at: string; from: string; reopened: number; differs: { path: string; what: string }[] };
  /** The process that is about to put the real mount in SPFS's place. */
  retiring?: number;
  retired?: { at: string; swapped: number; left: string[] };
  /** Why the real mount could not take its place. */
  stays?: string;
  /** Why it is not back yet. */
  waits?: string;
}

/** The id of the SPFS that serves a mount. */
export const spfsOf = ({ type, source }: { type: string; source: string }): string | undefined =>
  type === "fuse.spfs" ? SOURCE.exec(source)?.[1] : undefined;

const fileOf = (id: string): string => join(SPFS_STATE, id, "session");

/** Ours alone can write there, root; what is not there, or not to be understood, is undefined. */
export const recall = (id: string): Remembered | undefined => {
  try {
    const remembered = JSON.parse(readFileSync(fileOf(id), "utf8")) as Remembered;
    return remembered.version === 1 ? remembered : undefined;
  } catch {
    return undefined;
  }
};

/** Replaces what is remembered, if there still is anything to remember it of. */
export const remember = (remembered: Remembered): void => {
  const path = fileOf(remembered.id);
  const making = `${path}.${process.pid}`;
  try {
    writeFileSync(making, `${JSON.stringify(remembered)}\n`, { mode: 0o600, flag: "w" });
    renameSync(making, path);
  } catch (error) {
    // SPFS ends at any moment, and takes its directory along.
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
};

/** A mount of SPFS's as one of what it stands for: a checkpoint is of that. */
export const behind = <T extends { type: string; source: string; options: string; root: string }>(mount: T): T => {
  const id = spfsOf(mount);
  const remembered = id === undefined ? undefined : recall(id);
  if (remembered === undefined) return mount;
  const { type, source, options, base } = remembered.fs;
  const root = mount.root === "/" ? base : base === "/" ? mount.root : `${base}${mount.root}`;
  return { ...mount, type, source, options, root };
};

export type { RemoteMount };
