// SPDX-License-Identifier: Apache-2.0
// SPFS for people and hooks: which file systems it stands for, and each step by hand.

import { closeSync, constants, existsSync, mkdirSync, openSync, readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { openCheckpoint } from "../../crit/checkpoint.js";
import { specMountsOf } from "../../crit/container.js";
import { plain } from "../../crit/text.js";
import { listSpfs, openSpfs, type Spfs } from "../../spfs/control.js";
import { parseRemote, REMOTE_IMAGE, type RemoteFs } from "../carriers/remote-image.js";
import { look } from "../carriers/remote-look.js";
import { keepsInodes } from "../carriers/remote-mounts.js";
import { partOf, standsAt, wrongWith } from "../carriers/remote-restore.js";
import { CONFIG_FILE, DEFAULTS, type RemoteSettings } from "../engine/launch-file.js";
import { CryoshimError, reason } from "../error.js";
import { O_PATH } from "../flags.js";
import { newId } from "../id.js";
import { bringBack, keep, leaveCgroups, retireFor } from "../remote/keep.js";
import { raiseAt } from "../remote/stand.js";
import { type Remembered, recall, remember, type Treatment } from "../remote/state.js";

const settings = async (): Promise<RemoteSettings> => {
  if (!existsSync(CONFIG_FILE)) return DEFAULTS.remote;
  const { loadConfig } = await import("../config.js");
  return loadConfig(CONFIG_FILE).remote;
};

const refuse = (what: string, why: string, fix: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_SPFS", { what, why, fix, cause });

/** One that runs. Throws ERR_SPFS for an id that there is not. */
const opened = async (id: string): Promise<Spfs> => {
  if (!listSpfs().includes(id))
    throw refuse(`cannot find the SPFS \`${plain(id)}\``, "there is none of this id", "see `cryoshim spfs list`");
  try {
    return await openSpfs(id);
  } catch (error) {
    throw refuse(`cannot speak with the SPFS \`${id}\``, reason(error), "see its log in /run/cryoshim/spfs", error);
  }
};

export interface SpfsState extends Partial<Awaited<ReturnType<Spfs["status"]>>> {
  id: string;
  remembered?: Remembered;
  /** It does not answer. */
  wrong?: string;
}

/** Every SPFS of this host. */
export const listAll = (): Promise<SpfsState[]> =>
  Promise.all(
    listSpfs().map(async (id): Promise<SpfsState> => {
      const remembered = recall(id);
      const more = remembered === undefined ? {} : { remembered };
      try {
        return { id, ...more, ...(await (await openSpfs(id)).status()) };
      } catch (error) {
        return { id, ...more, wrong: reason(error) };
      }
    }),
  );

const utf8 = (text: string): string => plain(Buffer.from(text, "latin1").toString("utf8"));

/** What has become of one, for people. */
const story = ({ remembered, phase }: SpfsState): string[] => {
  if (remembered === undefined) return [];
  const { fs, root, since, proxied, retired, stays, waits } = remembered;
  const lines = [
    `  ${fs.type} ${utf8(fs.source)}, at ${fs.mounts.map(({ point }) => utf8(point)).join(", ")}`,
    `  since ${since}${root === undefined ? "" : `, process ${root}`}`,
  ];
  if (waits !== undefined && phase !== "proxy") lines.push(`  its server is not there yet: ${plain(waits)}`);
  if (proxied !== undefined) {
    lines.push(`  back at ${proxied.at} from ${utf8(proxied.from)}, ${proxied.reopened} files opened again`);
    for (const { path, what } of proxied.differs) lines.push(`  not as it was: ${utf8(path)}: ${what}`);
  }
  if (stays !== undefined) lines.push(`  not retired: ${plain(stays)}`);
  if (retired !== undefined) {
    lines.push(`  retired at ${retired.at}: ${retired.swapped} swapped`);
    for (const left of retired.left) lines.push(`  left on SPFS: ${plain(left)}`);
  }
  return lines;
};

/** The list for people. */
export const spfsTable = (all: readonly SpfsState[]): string => {
  if (all.length === 0) return "SPFS stands for nothing";
  return all
    .flatMap((state) => {
      const { id, phase, blocked, open, passthrough, pid, restarts, wrong } = state;
      const now =
        wrong === undefined
          ? `${phase}, ${open} open, ${blocked} wait${passthrough ? ", passthrough" : ""}, process ${pid}${restarts ? `, started again ${restarts} times` : ""}`
          : `does not answer: ${plain(wrong)}`;
      return [`${id}  ${now}`, ...story(state)];
    })
    .join("\n");
};

/** Brings one back, as long as it takes. */
export const keepOne = async (id: string): Promise<void> => {
  leaveCgroups();
  const now = await settings();
  await keep(id, () => now);
};

export const stubOne = async (id: string): Promise<void> => {
  await (await opened(id)).stub();
};

export const stopOne = async (id: string): Promise<void> => {
  await (await opened(id)).stop();
};

const openDirectory = (path: string): number => openSync(resolve(path), O_PATH | constants.O_DIRECTORY);

const needed = (id: string): Remembered => {
  const remembered = recall(id);
  if (remembered !== undefined) return remembered;
  throw refuse(`cannot go on with the SPFS \`${id}\``, "nothing is remembered of what it stands for", "use --backend");
};

/** Lets it pass everything on: to a directory that is named, or to what is found. */
export const proxyOne = async (id: string, backend: string | undefined): Promise<string[]> => {
  const spfs = await opened(id);
  if (backend === undefined) {
    await bringBack(spfs, needed(id), await settings());
    return recall(id)?.proxied?.differs.map(({ path, what }) => `${utf8(path)}: ${what}`) ?? [];
  }
  const fd = openDirectory(backend);
  try {
    const { mayPass, mountOfFd } = await import("../remote/backend.js");
    const remembered = recall(id);
    const { gone, onLoss } = remembered?.treatment ?? { gone: "fail", onLoss: "block" };
    const mount = mountOfFd(fd);
    const { reopened, differs } = await spfs.proxy(fd, {
      gone: gone === "stub" ? "stub" : "error",
      sameInodes: remembered !== undefined && keepsInodes(remembered.fs.type),
      passthrough: mount !== undefined && mayPass({ onLoss }, mount),
    });
    const told = differs.map(({ path, what }) => ({ path: Buffer.from(path).toString("latin1"), what }));
    if (remembered !== undefined)
      remember({ ...remembered, proxied: { at: new Date().toISOString(), from: backend, reopened, differs: told } });
    return told.map(({ path, what }) => `${utf8(path)}: ${what}`);
  } finally {
    closeSync(fd);
  }
};

/** Puts the real mount in its place. */
export const retireOne = async (id: string, backend: string | undefined): Promise<string[]> => {
  const spfs = await opened(id);
  const remembered = needed(id);
  if ((await spfs.status()).phase !== "proxy")
    throw refuse(
      `cannot retire the SPFS \`${id}\``,
      "its server is not back",
      "wait for it, or use `cryoshim spfs proxy`",
    );
  const { findBackend, closeBackend } = await import("../remote/backend.js");
  const found =
    backend === undefined
      ? await findBackend(remembered, await settings())
      : { fd: openDirectory(backend), from: backend };
  try {
    const retired = await retireFor(remembered, found.fd);
    remember({ ...remembered, retired });
    return [`${retired.swapped} swapped`, ...retired.left.map((left) => `left on SPFS: ${left}`)];
  } finally {
    closeBackend(found);
  }
};

export interface PrepareOptions {
  /** DESTINATION=PATH, where the images do not say what is bound from where. */
  source?: string[];
  /** A bundle, whose config.json says it. */
  bundle?: string;
}

/** Where the runtime will bind a mount from, by its destination. */
const sourcesOf = async (images: string, { source = [], bundle }: PrepareOptions) => {
  const checkpoint = await openCheckpoint(images);
  const files = new Map(checkpoint.files);
  // podman's own directory of images has the configuration one above.
  for (const config of [bundle && join(bundle, "config.json"), join(dirname(resolve(images)), "config.json")])
    if (!files.has("spec.dump") && config && existsSync(config)) files.set("spec.dump", readFileSync(config));
  const sources = new Map(specMountsOf({ ...checkpoint, files }).map((mount) => [mount.destination, mount.source]));
  for (const pair of source) {
    const at = pair.indexOf("=");
    if (at <= 0 || !pair.slice(at + 1).startsWith("/"))
      throw new CryoshimError("ERR_USAGE", {
        what: `cannot use --source ${plain(pair)}`,
        why: "it is not DESTINATION=/PATH",
        fix: "name a mountpoint of the container and a path of this host",
      });
    sources.set(pair.slice(0, at), pair.slice(at + 1));
  }
  const image = checkpoint.files.get(REMOTE_IMAGE);
  return { all: image === undefined ? [] : parseRemote(image), sources };
};

export interface Prepared {
  id: string;
  path: string;
  why: string;
}

/**
 * Lets SPFS stand at each path that a runtime will bind into the container and that is not as it was: runc looks at such a path
 * before it starts CRIU, and fails if its server is gone. Returns what it has done.
 */
export const prepare = async (images: string, options: PrepareOptions): Promise<Prepared[]> => {
  const now = await settings();
  const ms = now.answer_within * 1000;
  const { all, sources } = await sourcesOf(images, options);
  const treatment: Treatment = {
    ...{ policy: now.policy, timeoutMs: now.timeout * 1000, passthrough: now.passthrough },
    ...{ onLoss: now.on_loss, retire: now.retire, gone: now.gone, map: [] },
  };
  const done: Prepared[] = [];
  for (const fs of all)
    for (const mount of fs.mounts) {
      const path = mount.ours ? undefined : sources.get(Buffer.from(mount.point, "latin1").toString("utf8"));
      if (path === undefined) continue;
      const place = Buffer.from(path, "utf8").toString("latin1");
      const part = partOf(fs, mount);
      const wrong = now.policy === "always" ? "[remote] policy is always" : await wrongWith(fs, part, place, ms);
      if (wrong === undefined || (await standsAt(place, ms).catch(() => undefined)) !== undefined) continue;
      if (now.policy === "never")
        throw new CryoshimError("ERR_REMOTE", {
          what: `cannot prepare \`${plain(path)}\``,
          why: wrong,
          fix: 'SPFS may stand for it with [remote] policy = "auto"',
        });
      const id = newId();
      // What is not there at all the runtime would not find, either.
      // One whose server does not answer is there.
      const there = await look({ base: "/", top: place.slice(1), files: [] }, ms).catch(() => undefined);
      if (there?.top === "ENOENT") mkdirSync(path, { recursive: true });
      await raiseAt(below(fs, part), treatment, { id, mountpoint: place, paths: [place] });
      done.push({ id, path, why: wrong });
    }
  return done;
};

/** What a mount shows of a file system, as one of its own. */
const below = (fs: RemoteFs, part: string): RemoteFs => {
  if (part === "") return fs;
  const nodes = fs.nodes.flatMap((node) =>
    node.path === part
      ? [{ ...node, path: "" }]
      : node.path.startsWith(`${part}/`)
        ? [{ ...node, path: node.path.slice(part.length + 1) }]
        : [],
  );
  const base = fs.base === "/" ? `/${part}` : `${fs.base}/${part}`;
  return { ...fs, base, nodes, mounts: fs.mounts.filter(({ root }) => root === base || root.startsWith(`${base}/`)) };
};
