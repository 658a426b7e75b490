// SPDX-License-Identifier: Apache-2.0
// What many messages are made of.
import { type Field, type Label, message } from "../message.js";

const labelled =
  (label: Label) =>
  (type: Field[1], first: number, names: string, show?: Field[3]): Record<string, Field> =>
    Object.fromEntries(
      names
        .split(" ")
        .map((name, index): [string, Field] => [
          name,
          show === undefined ? [first + index, type, label] : [first + index, type, label, show],
        ]),
    );

/** Fields of one type numbered from `first`, for the many CRIU messages that are plain lists of them: all required, */
export const run = labelled("required");
/** all optional, */
export const optional = labelled("optional");
/** each a list. */
export const lists = labelled("repeated");

export const id: Field = [1, "uint32", "required"];

/** Who is told by SIGIO of a file. */
export const fown = message("fown_entry", run("uint32", 1, "uid euid signum pid_type pid"));
export const owned = (number: number): Field => [number, () => fown, "required"];

/** A required field shown in hexadecimal. */
export const hex32 = (number: number): Field => [number, "uint32", "required", "hex"];
export const hex64 = (number: number): Field => [number, "uint64", "required", "hex"];
