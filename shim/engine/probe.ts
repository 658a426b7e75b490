// SPDX-License-Identifier: Apache-2.0
// What an engine is and can do on this kernel. Asking takes a dozen starts of CRIU, so the answers are kept in
// /run/cryoshim/probe for as long as binary and boot are the same.
import { lstatSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { z } from "zod";
import { newId } from "../id.js";
import { stateDir } from "../session/plugin-dir.js";

/** Features of `criu check --feature` (criu/cr-check.c, 4.2) on which something depends that users ask for. */
export const FEATURES = [
  "mem_dirty_track",
  "uffd-noncoop",
  "tcp_half_closed",
  "network_lock_nftables",
  "has_ipt_legacy",
  "pidfd_store",
  "apparmor_stacking",
  "overlayfs_maps",
] as const;
export type Feature = (typeof FEATURES)[number];

const probe = z.strictObject({
  /** The engine's path, device, inode, size and time of change, and the kernel's boot id. */
  key: z.string(),
  version: z.string().optional(),
  /** What `criu check` said last. */
  check: z.strictObject({ ok: z.boolean(), said: z.string() }),
  features: z.record(z.enum(FEATURES), z.boolean()),
});
export type Probe = z.infer<typeof probe>;

const FILE = "/run/cryoshim/probe";

const keyOf = (engine: string): string => {
  const { dev, ino, size, mtimeNs, ctimeNs } = statSync(engine, { bigint: true });
  const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  return [engine, dev, ino, size, mtimeNs, ctimeNs, boot].join(":");
};

const kept = (key: string): Probe | undefined => {
  try {
    const st = lstatSync(FILE);
    if (!st.isFile() || st.uid !== 0 || (st.mode & 0o022) !== 0) return undefined;
    const found = probe.parse(JSON.parse(readFileSync(FILE, "utf8")));
    return found.key === key ? found : undefined;
  } catch {
    return undefined;
  }
};

const keep = (found: Probe): void => {
  try {
    const making = join(stateDir(), `probe.${newId()}`);
    writeFileSync(making, JSON.stringify(found), { mode: 0o600, flag: "wx" });
    renameSync(making, FILE);
  } catch {
    // Not root, or no /run: the next call asks again.
  }
};

/** Asks the engine, or the answers of an earlier call. Throws ENOENT where there is no such file. */
export const probeEngine = async (engine: string): Promise<Probe> => {
  const key = keyOf(engine);
  const known = kept(key);
  if (known !== undefined) return known;
  const run = (...args: string[]) =>
    execa(engine, args, { reject: false, all: true, timeout: 30_000, stdin: "ignore" });
  const [version, check, ...features] = await Promise.all([
    run("--version"),
    run("check"),
    ...FEATURES.map((name) => run("check", "--feature", name)),
  ]);
  const found: Probe = {
    key,
    version: version.failed ? undefined : version.stdout.split("\n")[0]?.replace("Version: ", ""),
    check: { ok: !check.failed, said: check.all?.trim().split("\n").at(-1) ?? "" },
    features: Object.fromEntries(FEATURES.map((name, i) => [name, features[i]?.failed === false])) as Probe["features"],
  };
  // A program that does not run is not remembered: it may be mended without a change of the file.
  if (found.version !== undefined) keep(found);
  return found;
};
