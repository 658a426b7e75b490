// SPDX-License-Identifier: Apache-2.0
// What hooks take down of a container, in /run/cryoshim/containers/RUNTIME-ID/: for checkpoint and restore, which are told
// no more than a process, and for whoever cleans up. Root's alone; it vanishes with the boot.
import {
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import * as z from "zod/mini";
import { isContainerId } from "../shim/session/container.js";
import { stateDir } from "../shim/session/plugin-dir.js";
import { remoteMount } from "./remote.js";

/** A process that cannot be taken for a later one of its number. */
const process_ = z.object({
  pid: z.int().check(z.positive()),
  /** Ticks since the boot, field 22 of /proc/PID/stat. */
  startTime: z.string(),
});
export type Process = z.infer<typeof process_>;

const schema = z.object({
  version: z.literal(1),
  id: z.string().check(z.refine(isContainerId)),
  runtime: z.enum(["oci", "lxc"]),
  /** The bundle of an OCI runtime, or LXC's configuration file. */
  place: z.string(),
  /** Those of ours, as they were written. */
  annotations: z.record(z.string(), z.string()),
  /** Its first process, or while there is none the one that makes it. */
  process: z.optional(process_),
  /** Its mounts with files on a server. */
  remote: z.array(remoteMount),
  /** When it was taken down, ISO 8601. */
  time: z.string(),
});

/** What is known of a container. */
export type ContainerRecord = z.infer<typeof schema>;

const DIRECTORY = "containers";
/** Links from mount namespaces to containers, for hooks/create-container. */
const NAMESPACES = "namespaces";
const RECORD = "container.json";
/** All that a directory of a container can hold; what else is there was not put there by us. */
const FILES = [RECORD, "mounts", "mounts-before"];

/** A directory of ours that root alone can write, made where it is missing. */
const ownDirectory = (path: string): string => {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  const st = lstatSync(path);
  if (!st.isDirectory() || st.uid !== process.getuid?.() || (st.mode & 0o077) !== 0)
    throw new Error(`${path} is not a directory that only root can use`);
  return path;
};

const containers = (): string => ownDirectory(join(stateDir(), DIRECTORY));
const namespaces = (): string => ownDirectory(join(stateDir(), NAMESPACES));

/** Runtimes of one kind share their ids. */
export type Name = Pick<ContainerRecord, "runtime" | "id">;

/** The directory of a container. Throws for an id that is no name of a file. */
export const directoryOf = ({ runtime, id }: Name): string => {
  if (!isContainerId(id)) throw new Error(`${JSON.stringify(id)} is no id of a container`);
  return join(containers(), `${runtime}-${id}`);
};

/** A process as it can be told from others; undefined when it has ended. */
export const processOf = (pid: number | undefined): Process | undefined => {
  if (pid === undefined || pid <= 0) return undefined;
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return { pid, startTime: stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]! };
  } catch {
    return undefined;
  }
};

/** Writes a record in one step. */
export const writeRecord = (record: ContainerRecord): void => {
  const dir = ownDirectory(directoryOf(record));
  const making = join(dir, `${RECORD}.${process.pid}`);
  try {
    writeFileSync(making, `${JSON.stringify(record)}\n`, { mode: 0o600, flag: "wx" });
    renameSync(making, join(dir, RECORD));
  } catch (error) {
    rmSync(making, { force: true });
    throw error;
  }
};

/** The record of a container; undefined where there is none that can be read. */
export const readRecord = (name: Name): ContainerRecord | undefined => {
  try {
    const result = schema.safeParse(JSON.parse(readFileSync(join(directoryOf(name), RECORD), "utf8")));
    return result.success && result.data.id === name.id ? result.data : undefined;
  } catch {
    return undefined;
  }
};

/** The names of all containers that something was taken down of. */
export const recorded = (): Name[] =>
  readdirSync(containers()).flatMap((entry) => {
    const [, runtime, id] = /^(oci|lxc)-(.+)$/.exec(entry) ?? [];
    return isContainerId(id) ? [{ runtime: runtime as Name["runtime"], id }] : [];
  });

/** When a container's directory was last changed, in milliseconds since 1970; now where there is none. */
export const madeAt = (name: Name): number =>
  lstatSync(directoryOf(name), { throwIfNoEntry: false })?.mtimeMs ?? Date.now();

/** The namespace in which hooks/create-container will find this container's place. */
export const linkNamespace = (name: Name, pid: number): void => {
  const link = join(namespaces(), readlinkSync(`/proc/${pid}/ns/mnt`));
  // The kernel gives numbers of namespaces anew.
  rmSync(link, { force: true });
  symlinkSync(directoryOf(name), link);
};

/** Removes what hooks have put down of a container, and only that. */
export const removeRecord = (name: Name): void => {
  const dir = directoryOf(name);
  for (const link of readdirSync(namespaces()))
    if (readlinkSync(join(namespaces(), link)) === dir) unlinkSync(join(namespaces(), link));
  for (const file of FILES) rmSync(join(dir, file), { force: true });
  try {
    rmdirSync(dir);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
};
