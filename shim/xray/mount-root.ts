// SPDX-License-Identifier: Apache-2.0
// What part of its file system a mount shows, for mounts that no mountinfo tells of.
import { readFileSync } from "node:fs";
import { artefact } from "../../native/index.js";
import { bpf, CMD, closeAll } from "../netlock/bpf.js";
import { type LoadedObject, loadObject } from "../netlock/bpf-object.js";
import { runIterator, TASK_FILE } from "./iterator.js";

/** struct climb of native/bpf/mount.bpf.c, and what it writes for each name. */
const [CLIMB_SIZE, NAME_SIZE] = [8 + 4 + 4 + 256, 4 + 256];

/** Loaded before the freeze, used in it. */
export class MountRoots {
  readonly #object: LoadedObject;
  readonly #known = new Map<number, string>();

  /** Throws where the kernel cannot: bpf_loop is of Linux 5.17. */
  constructor() {
    this.#object = loadObject(readFileSync(artefact("mount.bpf.o")), { "iter/task_file.root_of": TASK_FILE });
  }

  /**
   * The path of the root of a descriptor's mount, from the root of its file system on, as mountinfo has it for others;
   * latin1. `file` is a descriptor of this process, `mntId` the id of its mount.
   */
  of(file: number, mntId: number): string {
    const known = this.#known.get(mntId);
    if (known !== undefined) return known;
    const climb = Buffer.alloc(CLIMB_SIZE);
    climb.writeUInt32LE(file, 8);
    bpf(CMD.mapUpdate, { 0: this.#object.maps.climb!, 8: Buffer.alloc(4), 16: climb });
    const records = runIterator(this.#object.programs.root_of!, process.pid);
    const names = Array.from({ length: Math.floor(records.length / NAME_SIZE) }, (_, i) => {
      const at = i * NAME_SIZE;
      return records.toString("latin1", at + 4, at + 4 + Math.max(0, records.readInt32LE(at) - 1));
    });
    const path = `/${names.reverse().join("/")}`;
    this.#known.set(mntId, path);
    return path;
  }

  /** Ids of mounts are used again. */
  forget(): void {
    this.#known.clear();
  }

  close(): void {
    closeAll([...Object.values(this.#object.maps), ...Object.values(this.#object.programs)]);
  }
}
