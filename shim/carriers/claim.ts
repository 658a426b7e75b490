// SPDX-License-Identifier: Apache-2.0
// What CRIU was told to be external it writes as a regular file that somebody else opens before tasks exist. Ours are
// opened by the tasks' side, in their namespaces: in the images they become files of a plugin (FD_TYPES__EXT).
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { decodeImage, encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { replaceFile } from "../session/replace-file.js";

const [REG, EXT] = [1, 16];

/** A file of the images: the id that tasks' descriptors name, its O_* flags and its position. */
export interface ClaimedFile {
  id: number;
  flags: number;
  pos: bigint;
  /** Of a FIFO: nobody else puts its contents back. */
  fifo?: true;
}

/** The key under which CRIU looks for an external file (criu/files-reg.c:dump_one_reg_file). */
export const fileKey = (mntId: number, ino: bigint): string => `file[${mntId.toString(16)}:${ino.toString(16)}]`;

/** What CRIU shall open by itself, where a task has it otherwise than by a descriptor. */
export interface Uses {
  /** Whose it is, as CRIU numbers them: in the root task's pid namespace. */
  tasks: Iterable<number>;
  /** Where CRIU finds it; undefined: it is handed in, under the key (`inherit_fd`). */
  place(key: string): { name: string; mntId: number } | undefined;
  /** Roots that CRIU has not seen, by task: the keys and modes of what they are. */
  roots: ReadonlyMap<number, { key: string; mode: number }>;
}

/** Thrown where CRIU's images use a file otherwise than by a descriptor: a task has mapped it, or is in it. */
export class OtherUse extends Error {
  readonly key: string;
  constructor(key: string) {
    super("it is mapped into memory, or a task's working directory, root or program");
    this.key = key;
  }
}

/** Nobody is told by SIGIO. */
export const NOBODY: Message = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };
/** VMA_FILE_PRIVATE, VMA_FILE_SHARED (criu/include/image.h) */
const FILE_MAPPING = 3 << 6;

/** A field of a message that names a file by its id. */
interface Reference {
  message: Message;
  field: string;
}

const references = (message: Message): Reference[] => {
  const vmas = ((message.vmas ?? []) as Message[]).filter(({ status }) => (status as number) & FILE_MAPPING);
  const fields = ["exe_file_id", "cwd_id", "root_id"].filter((field) => message[field] !== undefined);
  return [...fields.map((field) => ({ message, field })), ...vmas.map((vma) => ({ message: vma, field: "shmid" }))];
};

const idOf = ({ message, field }: Reference): number => Number(message[field]);

/** Images of tasks in which files are used otherwise than by a descriptor. */
const taskImages = (imagesDir: string, tasks: Iterable<number>) =>
  [...tasks]
    .flatMap((task) => [`mm-${task}.img`, `fs-${task}.img`])
    .map((name) => ({ name, image: decodeImage(readFileSync(join(imagesDir, name)), name), changed: false }));

/**
 * Makes the external files with these keys ours. Returns them by key. Throws OtherUse before anything is changed, ERR_IMAGE,
 * or what the file system says.
 */
export const claimFiles = (imagesDir: string, keys: ReadonlySet<string>, uses?: Uses): Map<string, ClaimedFile[]> => {
  const claimed = new Map<string, ClaimedFile[]>();
  if (keys.size === 0) return claimed;
  const path = join(imagesDir, "files.img");
  const files = decodeImage(readFileSync(path), "files.img");
  const tables = readdirSync(imagesDir)
    .filter((name) => /^fdinfo-\d+\.img$/.test(name))
    .map((name) => ({ name, image: decodeImage(readFileSync(join(imagesDir, name)), name) }));
  const open = new Set([
    ...onTheirWay(imagesDir),
    ...tables.flatMap(({ image }) => image.entries.map(({ message }) => message.id as number)),
  ]);
  const mine = files.entries.filter(({ message: { reg } }) => {
    const { ext, name } = (reg ?? {}) as Message;
    return ext === true && keys.has(name as string);
  });
  // CRIU keeps a FIFO's name in a file of its own (criu/fifo.c).
  const regs = new Set(mine.map(({ message }) => (message.reg as Message).id));
  const fifos = files.entries.filter(({ message }) => message.fifo !== undefined);
  const myFifos = new Map(
    fifos
      .filter(({ message }) => regs.has((message.fifo as Message).regf_id))
      .map((entry) => [fifoOf(entry).regf_id, entry]),
  );
  const images = uses === undefined ? [] : taskImages(imagesDir, uses.tasks);
  const used = new Set(
    images.flatMap(({ image }) => image.entries.flatMap(({ message }) => references(message).map(idOf))),
  );
  const other = mine
    .map(({ message }) => message.reg as Message)
    .find(({ id }) => !open.has(id as number) && !used.has(id as number) && !myFifos.has(id));
  if (other !== undefined) throw new OtherUse(other.name as string);
  // CRIU gives a file one id for a descriptor and for other uses: those get one of their own.
  let last = Math.max(0, ...files.entries.map(({ message }) => message.id as number));
  const others = new Map<number, number>();
  for (const entry of mine) {
    const reg = entry.message.reg as Message;
    const id = reg.id as number;
    if (!used.has(id)) continue;
    const shared = open.has(id);
    const theirs = shared ? { ...reg, id: ++last } : reg;
    const place = uses?.place(reg.name as string);
    if (place !== undefined) Object.assign(theirs, { name: place.name, mnt_id: place.mntId, ext: false });
    if (!shared) continue;
    others.set(id, last);
    files.entries.push({ message: { type: REG, id: last, reg: theirs } });
  }
  for (const each of images)
    for (const reference of each.image.entries.flatMap(({ message }) => references(message))) {
      const id = others.get(idOf(reference));
      if (id === undefined) continue;
      reference.message[reference.field] = reference.field === "shmid" ? BigInt(id) : id;
      each.changed = true;
    }
  const pipes = new Set(
    fifos.filter((entry) => !regs.has(fifoOf(entry).regf_id)).map((entry) => fifoOf(entry).pipe_id),
  );
  for (const [task, { key, mode }] of uses?.roots ?? []) {
    const each = images.find(({ name }) => name === `fs-${task}.img`)!;
    const reg: Message = { id: ++last, flags: 0, pos: 0n, fown: NOBODY, name: key, ext: true, mode };
    const place = uses?.place(key);
    if (place !== undefined) Object.assign(reg, { name: place.name, mnt_id: place.mntId, ext: false });
    files.entries.push({ message: { type: REG, id: last, reg } });
    each.image.entries[0]!.message.root_id = last;
    each.changed = true;
  }
  const ids = new Set<number>();
  for (const entry of mine) {
    const reg = entry.message.reg as Message;
    if (used.has(reg.id as number) && !open.has(reg.id as number)) continue;
    const fifo = myFifos.get(reg.id);
    const { message } = fifo ?? entry;
    const id = message.id as number;
    ids.add(id);
    const file: ClaimedFile = { id, flags: reg.flags as number, pos: reg.pos as bigint };
    if (fifo !== undefined) {
      if (!pipes.has(fifoOf(fifo).pipe_id)) file.fifo = true;
      delete message.fifo;
      files.entries.splice(files.entries.indexOf(entry), 1);
    }
    claimed.set(reg.name as string, [...(claimed.get(reg.name as string) ?? []), file]);
    message.ext = { id, fown: reg.fown };
    message.type = EXT;
    delete message.reg;
  }
  if (ids.size === 0 && used.size === 0) return claimed;
  for (const { name, image, changed } of images) if (changed) replaceFile(join(imagesDir, name), encodeImage(image));
  // Descriptors first: whatever has been changed when this ends early, the file itself still says what it was.
  for (const { name, image } of tables) {
    const ours = image.entries.filter(({ message }) => ids.has(message.id as number));
    for (const { message } of ours) message.type = EXT;
    if (ours.length > 0) replaceFile(join(imagesDir, name), encodeImage(image));
  }
  replaceFile(path, encodeImage(files));
  return claimed;
};

/** Which file of the images a descriptor of a task is, by the number that CRIU gives the task. */
export const descriptorIds = (imagesDir: string): ((task: number, fd: number) => number | undefined) => {
  const read = (name: string): Message[] =>
    decodeImage(readFileSync(join(imagesDir, name)), name).entries.map(({ message }) => message);
  const tables = new Map<number, Map<number, number>>();
  return (task, fd) => {
    let table = tables.get(task);
    if (table === undefined) {
      const [ids] = read(`ids-${task}.img`);
      table = new Map(read(`fdinfo-${ids!.files_id}.img`).map(({ id, fd }) => [fd as number, id as number]));
      tables.set(task, table);
    }
    return table.get(fd);
  };
};

/** Files that are in messages on their way through a socket (SCM_RIGHTS). */
export const onTheirWay = (imagesDir: string): number[] => {
  try {
    const { entries } = decodeImage(readFileSync(join(imagesDir, "sk-queues.img")), "sk-queues.img");
    return entries.flatMap(({ message: { scm } }) =>
      ((scm ?? []) as Message[]).flatMap(({ rights }) => (rights ?? []) as number[]),
    );
  } catch (error) {
    if ((error as { code?: string }).code === "ENOENT") return [];
    throw error;
  }
};

const fifoOf = ({ message }: { message: Message }): Message => message.fifo as Message;
