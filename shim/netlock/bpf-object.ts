// SPDX-License-Identifier: Apache-2.0
// Loads a BPF object as clang writes it: maps, programs, and what the kernel needs to relocate the programs to its own
// types (CO-RE in the kernel, Linux 5.17). No library: those that do this bring 2 MB of shared objects that hosts lack.
import { readFileSync, writeFileSync } from "node:fs";
import { bpf, CMD } from "./bpf.js";

/** What a section of programs is for. */
export interface ProgramKind {
  type: number;
  attach: number;
  /** The kernel's function that an iterator is called by. */
  target?: string;
}

export interface LoadedObject {
  maps: Record<string, number>;
  programs: Record<string, number>;
}

interface Section {
  name: string;
  type: number;
  offset: number;
  size: number;
  link: number;
  info: number;
}

interface Symbol {
  name: string;
  value: number;
  section: number;
}

const [SHT_PROGBITS, SHT_SYMTAB, SHT_REL] = [1, 2, 9];

const cString = (bytes: Buffer, at: number): string => bytes.toString("latin1", at, bytes.indexOf(0, at));

const readElf = (elf: Buffer): { sections: Section[]; symbols: Symbol[] } => {
  if (elf.length < 64 || elf.readUInt32BE(0) !== 0x7f454c46 || elf.readUInt16LE(18) !== 247)
    throw new Error("not an ELF file for BPF");
  const [table, count, names] = [Number(elf.readBigUInt64LE(40)), elf.readUInt16LE(60), elf.readUInt16LE(62)];
  const sections = Array.from({ length: count }, (_, i): Section => {
    const at = table + i * 64;
    return {
      name: String(elf.readUInt32LE(at)),
      type: elf.readUInt32LE(at + 4),
      offset: Number(elf.readBigUInt64LE(at + 24)),
      size: Number(elf.readBigUInt64LE(at + 32)),
      link: elf.readUInt32LE(at + 40),
      info: elf.readUInt32LE(at + 44),
    };
  });
  const strings = sections[names]!.offset;
  for (const section of sections) section.name = cString(elf, strings + Number(section.name));
  const table2 = sections.find(({ type }) => type === SHT_SYMTAB)!;
  const symbols = Array.from({ length: table2.size / 24 }, (_, i): Symbol => {
    const at = table2.offset + i * 24;
    return {
      name: cString(elf, sections[table2.link]!.offset + elf.readUInt32LE(at)),
      section: elf.readUInt16LE(at + 6),
      value: Number(elf.readBigUInt64LE(at + 8)),
    };
  });
  return { sections, symbols };
};

const KIND = { int: 1, ptr: 2, array: 3, struct: 4, union: 5, enum: 6, func: 12, funcProto: 13, var: 14, datasec: 15 };

/** One type of BTF (include/uapi/linux/btf.h). */
interface BtfType {
  at: number;
  kind: number;
  vlen: number;
  nameOff: number;
  /** size or type, by kind. */
  value: number;
}

/** Bytes after the 12 of the head. */
const tail = (kind: number, vlen: number): number => {
  switch (kind) {
    case KIND.int:
    case KIND.var:
    case 17: // DECL_TAG
      return 4;
    case KIND.array:
      return 12;
    case KIND.struct:
    case KIND.union:
    case KIND.datasec:
    case 19: // ENUM64
      return 12 * vlen;
    case KIND.enum:
    case KIND.funcProto:
      return 8 * vlen;
    default:
      return 0;
  }
};

const strings = (btf: Buffer): number => btf.readUInt32LE(4) + btf.readUInt32LE(16);

function* types(btf: Buffer): Generator<BtfType> {
  const start = btf.readUInt32LE(4) + btf.readUInt32LE(8);
  const end = start + btf.readUInt32LE(12);
  for (let at = start; at < end; ) {
    const info = btf.readUInt32LE(at + 4);
    const [kind, vlen] = [(info >>> 24) & 31, info & 0xffff];
    yield { at, kind, vlen, nameOff: btf.readUInt32LE(at), value: btf.readUInt32LE(at + 8) };
    at += 12 + tail(kind, vlen);
  }
}

/** clang leaves sizes and offsets of data sections to the loader. */
const completeBtf = (btf: Buffer, sections: readonly Section[], symbols: readonly Symbol[]): BtfType[] => {
  const all = [...types(btf)];
  const names = strings(btf);
  const nameOf = (type: BtfType): string => cString(btf, names + type.nameOff);
  for (const section of all.filter(({ kind }) => kind === KIND.datasec)) {
    const found = sections.find(({ name }) => name === nameOf(section));
    btf.writeUInt32LE(found?.size ?? 0, section.at + 8);
    for (let i = 0; i < section.vlen; i++) {
      const at = section.at + 12 + i * 12;
      const variable = all[btf.readUInt32LE(at) - 1]!;
      btf.writeUInt32LE(symbols.find(({ name }) => name === nameOf(variable))?.value ?? 0, at + 4);
    }
  }
  return all;
};

/** A map as its declaration says (`__uint(type, ...)`, `__type(key, ...)`). */
const mapOf = (btf: Buffer, all: readonly BtfType[], name: string) => {
  const names = strings(btf);
  const at = (id: number): BtfType => all[id - 1]!;
  const variable = all.find((type) => type.kind === KIND.var && cString(btf, names + type.nameOff) === name)!;
  const size = (id: number): number => {
    const type = at(id);
    if (type.kind === KIND.array) return btf.readUInt32LE(type.at + 20) * size(btf.readUInt32LE(type.at + 12));
    if ([KIND.int, KIND.struct, KIND.union, KIND.enum].includes(type.kind)) return type.value;
    return size(type.value);
  };
  const values: Record<string, number> = {};
  const struct = at(variable.value);
  for (let i = 0; i < struct.vlen; i++) {
    const member = struct.at + 12 + i * 12;
    const field = cString(btf, names + btf.readUInt32LE(member));
    const pointed = at(btf.readUInt32LE(member + 4)).value;
    const typed = field === "key" || field === "value";
    values[field] = typed ? size(pointed) : btf.readUInt32LE(at(pointed).at + 20);
    if (typed) values[`${field}Type`] = pointed;
  }
  return values;
};

/** BPF_MAP_TYPE_SK_STORAGE */
const SK_STORAGE = 24;

const VMLINUX = "/sys/kernel/btf/vmlinux";
const CACHE = "/run/cryoshim/btf-ids";

/** The id of a function in the kernel's BTF: 5 ms of search, so it is kept for this boot. */
const kernelFunction = (name: string): number => {
  const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  try {
    const [kept, id] = readFileSync(CACHE, "utf8").split(" ");
    if (kept === `${boot}:${name}` && Number(id) > 0) return Number(id);
  } catch {
    // Not searched yet.
  }
  const btf = readFileSync(VMLINUX);
  const names = strings(btf);
  const nameOff = btf.indexOf(`\0${name}\0`, names, "latin1") + 1 - names;
  let id = 0;
  for (const type of types(btf)) {
    id++;
    if (type.kind !== KIND.func || type.nameOff !== nameOff) continue;
    try {
      writeFileSync(CACHE, `${boot}:${name} ${id}`, { mode: 0o600 });
    } catch {
      // Searched again next time.
    }
    return id;
  }
  throw new Error(`the kernel has no ${name}`);
};

/** The records of one section in a part of .BTF.ext. */
const extRecords = (ext: Buffer, part: number, btf: Buffer, section: string): { records: Buffer; size: number } => {
  const head = ext.readUInt32LE(4);
  const start = head + ext.readUInt32LE(8 + part * 8);
  const end = start + ext.readUInt32LE(12 + part * 8);
  const size = ext.readUInt32LE(start);
  for (let at = start + 4; at < end; ) {
    const count = ext.readUInt32LE(at + 4);
    const records = ext.subarray(at + 8, at + 8 + count * size);
    if (cString(btf, strings(btf) + ext.readUInt32LE(at)) === section) return { records: Buffer.from(records), size };
    at += 8 + count * size;
  }
  return { records: Buffer.alloc(0), size };
};

/** What one relocation of a section is about: the instruction at byte `at`, and the symbol. */
interface Relocation extends Symbol {
  at: number;
}

const relocated = (elf: Buffer, symbols: readonly Symbol[], offset: number, size: number): Relocation[] =>
  Array.from({ length: size / 16 }, (_, i) => ({
    ...symbols[elf.readUInt32LE(offset + i * 16 + 12)]!,
    at: Number(elf.readBigUInt64LE(offset + i * 16)),
  }));

/** Puts a map's descriptor, or the distance to a function behind the program (`text` bytes from its start), in place. */
const relocate = (
  code: Buffer,
  at: number,
  { name, value }: Symbol,
  maps: Readonly<Record<string, number>>,
  text: number | undefined,
): void => {
  // src_reg of the 64-bit load: BPF_PSEUDO_MAP_FD or BPF_PSEUDO_FUNC.
  code[at + 1] = (code[at + 1]! & 0x0f) | (text === undefined ? 0x10 : 0x40);
  const target = text === undefined ? maps[name]! : (text + value + code.readInt32LE(at + 4) - at) / 8 - 1;
  code.writeInt32LE(target, at + 4);
};

/**
 * Loads all maps and programs of an object; `kinds` says by section what its programs are. Throws the kernel's errno,
 * with the verifier's words.
 */
export const loadObject = (elf: Buffer, kinds: Readonly<Record<string, ProgramKind>>): LoadedObject => {
  const { sections, symbols } = readElf(elf);
  const bytes = (name: string): Buffer => {
    const { offset, size } = sections.find((section) => section.name === name)!;
    return Buffer.from(elf.subarray(offset, offset + size));
  };
  const btf = bytes(".BTF");
  const ext = bytes(".BTF.ext");
  const all = completeBtf(btf, sections, symbols);
  const btfFd = bpf(CMD.btfLoad, { 0: btf, 16: btf.length });
  const mapsSection = sections.findIndex(({ name }) => name === ".maps");
  const maps: Record<string, number> = {};
  for (const { name, section } of symbols) {
    if (section !== mapsSection || name === "") continue;
    const map = mapOf(btf, all, name);
    // Storage of sockets is the only kind here whose types the kernel must know.
    const types = map.type === SK_STORAGE ? { 48: btfFd, 52: map.keyType!, 56: map.valueType! } : {};
    const attr = { 0: map.type!, 4: map.key!, 8: map.value!, 12: map.max_entries ?? 0, 16: map.map_flags ?? 0 };
    maps[name] = bpf(CMD.mapCreate, { ...attr, ...types, 28: Buffer.from(name.slice(0, 15)), inline: [28] });
  }
  const textIndex = sections.findIndex(({ name }) => name === ".text");
  const programs: Record<string, number> = {};
  for (const [index, section] of sections.entries()) {
    const kind = kinds[section.name];
    if (section.type !== SHT_PROGBITS || kind === undefined) continue;
    const name = symbols.find((symbol) => symbol.section === index && symbol.value === 0 && symbol.name !== "")!.name;
    // Functions that a program hands to helpers (bpf_loop) are in .text: it is put behind the program that needs it.
    const pieces = [{ index, section, base: 0 }];
    const needsText = sections.some(
      ({ type, info, offset, size }) =>
        type === SHT_REL &&
        info === index &&
        relocated(elf, symbols, offset, size).some((r) => r.section === textIndex),
    );
    if (needsText) pieces.push({ index: textIndex, section: sections[textIndex]!, base: section.size });
    const code = Buffer.concat(pieces.map((piece) => bytes(piece.section.name)));
    for (const piece of pieces)
      for (const { offset, size } of sections.filter(({ type, info }) => type === SHT_REL && info === piece.index))
        for (const target of relocated(elf, symbols, offset, size))
          relocate(code, piece.base + target.at, target, maps, target.section === textIndex ? section.size : undefined);
    const gather = (part: number, perInstruction: number): { records: Buffer; size: number } => {
      const found = pieces.map(({ section, base }) => ({ base, ...extRecords(ext, part, btf, section.name) }));
      for (const { records, size, base } of found)
        for (let at = 0; at < records.length; at += size)
          records.writeUInt32LE((records.readUInt32LE(at) + base) / perInstruction, at);
      return { records: Buffer.concat(found.map(({ records }) => records)), size: found[0]!.size };
    };
    // The kernel counts instructions where clang counts bytes, but not in the relocations.
    const functions = gather(0, 8);
    const relocations = gather(2, 1);
    const attr = {
      0: kind.type,
      4: code.length / 8,
      8: code,
      16: Buffer.from("GPL\0"),
      48: Buffer.from(name.slice(0, 15)),
      inline: [48],
      68: kind.attach,
      72: btfFd,
      76: functions.size,
      80: functions.records,
      88: functions.records.length / functions.size,
      108: kind.target === undefined ? 0 : kernelFunction(kind.target),
      116: relocations.records.length / relocations.size,
      128: relocations.records,
      136: relocations.size,
    };
    programs[name] = bpf(CMD.progLoad, attr, true);
  }
  return { maps, programs };
};
