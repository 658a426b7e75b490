// SPDX-License-Identifier: Apache-2.0
// CRIU's command line as getopt_long reads it (criu/config.c, v4.2): enough to know what a session needs, nothing is
// rewritten but --libdir. What CRIU would refuse is left to CRIU, whose message is the right one.

type Arity = "none" | "required" | "optional";

const VALUE_OPTIONS = [
  "tree images-dir work-dir log-file join-ns root pidfile veth-pair action-script address port prev-images-dir libdir",
  "ext-mount-map cgroup-root inherit-fd feature skip-mnt enable-fs freeze-cgroup ghost-limit irmap-scan-path",
  "lsm-profile timeout external empty-ns cgroup-props cgroup-props-file cgroup-dump-controller status-fd ps-socket",
  "config tls-cacert tls-cacrl tls-cert tls-key cgroup-yard pre-dump-mode file-validation lsm-mount-context",
  "network-lock close",
]
  .join(" ")
  .split(" ");
const OPTIONAL_VALUE_OPTIONS = ["cpu-cap", "manage-cgroups", "verbosity", "ext-unix-sk"];
const FLAGS = [
  "leave-stopped leave-running help version ms exec-cmd enable-external-sharing enable-external-masters lazy-pages all",
  "no-default-config tls-no-cn-verify",
]
  .join(" ")
  .split(" ");
/** Each also exists as --no-NAME. */
const BOOLEANS = [
  "restore-detached restore-sibling daemon tcp-established log-pid evasive-devices link-remap shell-job file-locks",
  "page-server track-mem auto-dedup force-irmap extra experimental skip-in-flight deprecated display-stats",
  "weak-sysctls tcp-close stream tls skip-file-rwx-check mntns-compat-mode unprivileged ghost-fiemap allow-uprobes",
]
  .join(" ")
  .split(" ");

/** Every long option of CRIU 4.2 and whether it takes a value. */
export const OPTIONS: ReadonlyMap<string, Arity> = new Map<string, Arity>([
  ...VALUE_OPTIONS.map((name): [string, Arity] => [name, "required"]),
  ...OPTIONAL_VALUE_OPTIONS.map((name): [string, Arity] => [name, "optional"]),
  ...FLAGS.map((name): [string, Arity] => [name, "none"]),
  ...BOOLEANS.flatMap((name): [string, Arity][] => [
    [name, "none"],
    [`no-${name}`, "none"],
  ]),
]);

/** "dSsRt:hD:o:v::x::Vr:jJ:lW:L:M:" */
const SHORT: ReadonlyMap<string, string> = new Map(
  Object.entries({
    d: "restore-detached",
    S: "restore-sibling",
    s: "leave-stopped",
    R: "leave-running",
    t: "tree",
    h: "help",
    D: "images-dir",
    o: "log-file",
    v: "verbosity",
    x: "ext-unix-sk",
    V: "version",
    r: "root",
    j: "shell-job",
    J: "join-ns",
    l: "file-locks",
    W: "work-dir",
    L: "libdir",
    M: "ext-mount-map",
  }),
);

/** A command line as CRIU would understand it. */
export interface CommandLine {
  /** The word after the options: "dump", "restore", "check", ... */
  verb: string | undefined;
  /** Each option's values, in the order given; a flag has one empty string each time. */
  options: Map<string, string[]>;
  /** The indexes in argv at which an option and its value stand. */
  at: Map<string, number[]>;
  /** The index of the `--` after which no options follow; argv's length where there is none. */
  end: number;
}

/** The option a possibly abbreviated name means; undefined when unknown or ambiguous (getopt_long refuses both). */
const resolve = (name: string): string | undefined => {
  if (OPTIONS.has(name)) return name;
  const matches = [...OPTIONS.keys()].filter((option) => option.startsWith(name));
  return matches.length === 1 ? matches[0] : undefined;
};

/** Reads `criu ARGS`, argv[0] included. Returns undefined where CRIU would print its usage. */
export const parseCommandLine = (argv: readonly string[]): CommandLine | undefined => {
  const options = new Map<string, string[]>();
  const at = new Map<string, number[]>();
  let end = argv.length;
  const operands: string[] = [];
  const add = (name: string, value: string, ...where: number[]): void => {
    options.set(name, [...(options.get(name) ?? []), value]);
    at.set(name, [...(at.get(name) ?? []), ...where]);
  };
  for (let i = 1; i < argv.length; i++) {
    const word = argv[i]!;
    if (word === "--") {
      end = i;
      operands.push(...argv.slice(i + 1));
      break;
    }
    if (word.startsWith("--")) {
      const equals = word.indexOf("=");
      const name = resolve(word.slice(2, equals < 0 ? undefined : equals));
      if (name === undefined) return undefined;
      const arity = OPTIONS.get(name);
      if (equals >= 0) {
        if (arity === "none") return undefined;
        add(name, word.slice(equals + 1), i);
      } else if (arity === "required") {
        if (i + 1 >= argv.length) return undefined;
        add(name, argv[i + 1]!, i, i + 1);
        i++;
      } else {
        add(name, "", i);
      }
    } else if (word.startsWith("-") && word.length > 1) {
      for (let letter = 1; letter < word.length; letter++) {
        const name = SHORT.get(word[letter]!);
        if (name === undefined) return undefined;
        const arity = OPTIONS.get(name);
        if (arity === "none") {
          add(name, "", i);
          continue;
        }
        const rest = word.slice(letter + 1);
        if (rest !== "" || arity === "optional") {
          add(name, rest, i);
        } else {
          if (i + 1 >= argv.length) return undefined;
          add(name, argv[i + 1]!, i, i + 1);
          i++;
        }
        break;
      }
    } else {
      operands.push(word);
    }
  }
  return { verb: operands[0], options, at, end };
};

/** The last value given for an option. */
export const last = (line: CommandLine, name: string): string | undefined => line.options.get(name)?.at(-1);

/** argv without some options, and with others where CRIU reads them last. */
export const rewrite = (
  argv: readonly string[],
  line: CommandLine,
  without: readonly string[],
  more: readonly string[],
): string[] => {
  const gone = new Set(without.flatMap((name) => line.at.get(name) ?? []));
  const kept = (from: number, to: number): string[] => argv.slice(from, to).filter((_, i) => !gone.has(from + i));
  return [...kept(0, line.end), ...more, ...kept(line.end, argv.length)];
};
