// SPDX-License-Identifier: Apache-2.0
// What the hooks of runtimes start (hooks/run): node hook.cjs createRuntime|poststop, with the container's state on standard
// input, or node hook.cjs lxc TYPE NAME. Ends with 1 where it failed: whether that matters, the caller decides.
import { appendFileSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CryoshimError, reason } from "../shim/error.js";
import { annotationsOf } from "../shim/session/annotations.js";
import { containerOfLxc } from "../shim/session/container.js";
import { stateDir } from "../shim/session/plugin-dir.js";
import { cleanUp, sweep } from "./clean-up.js";
import { directoryOf, linkNamespace, type Name, processOf, readRecord, writeRecord } from "./record.js";
import { lxcEntries, type RemoteRecord, remoteBetween, remoteIn } from "./remote.js";
import { mountsIn, type OciState, ours, readState } from "./state.js";

const MAX_LOG_BYTES = 1 << 20;

/** Runtimes show what a hook says only when it fails: it is kept in /run/cryoshim/hooks.log, too. */
const tell = (text: string): void => {
  // What comes from a container's configuration shall not forge lines.
  const line = text.replace(/[\p{Cc}\p{Cf}]/gu, "?");
  process.stderr.write(`cryoshim: ${line}\n`);
  try {
    const file = join(stateDir(), "hooks.log");
    if ((statSync(file, { throwIfNoEntry: false })?.size ?? 0) > MAX_LOG_BYTES)
      writeFileSync(file, "", { mode: 0o600 });
    appendFileSync(file, `${new Date().toISOString()} ${process.argv.slice(2).join(" ")}: ${line}\n`, { mode: 0o600 });
  } catch {
    // A log that cannot be written must not keep a container from starting.
  }
};

const now = (): string => new Date().toISOString();

/** Wrong annotations are told when the container is made, not first at its checkpoint. Throws for a strict container. */
const check = (container: Parameters<typeof annotationsOf>[0]): void => {
  for (const wrong of annotationsOf(container).wrong) tell(wrong);
};

const createRuntime = async (state: OciState): Promise<void> => {
  const { id, bundle, pid } = state;
  const annotations = ours(state.annotations);
  if (Object.keys(annotations).length === 0) return;
  const about = { id, runtime: "oci", place: bundle, annotations } as const;
  check(about);
  const first = processOf(pid);
  if (first === undefined) throw new Error(`there is no process ${pid} of the container ${id}`);
  await sweep(tell);
  writeRecord({ version: 1, ...about, process: first, remote: remoteIn(mountsIn(bundle)), time: now() });
  linkNamespace(about, first.pid);
};

/** Also without a state, by hand: then only what serves nobody goes. */
const poststop = async (text: string): Promise<void> => {
  try {
    if (text.trim() !== "") {
      const { id, bundle } = readState(text);
      const record = readRecord({ runtime: "oci", id });
      // Another runtime's container of the same id lives in another bundle.
      if (record === undefined || record.place === bundle) await cleanUp({ runtime: "oci", id }, tell);
    }
  } finally {
    await sweep(tell);
  }
};

/** LXC's own process of a container, and before there is one the process that starts the hook, end with it. */
const ofLxc = (): ReturnType<typeof processOf> => processOf(Number(process.env.LXC_PID) || process.ppid);

/** An unprivileged container's mount hooks can write nothing down. */
const seenByLxc = (name: Name): RemoteRecord[] | undefined => {
  try {
    return remoteBetween(directoryOf(name), process.env.LXC_ROOTFS_MOUNT ?? "/");
  } catch {
    return undefined;
  }
};

const lxc = async (type: string | undefined, id: string): Promise<void> => {
  const name: Name = { runtime: "lxc", id };
  if (type === "post-stop") {
    await cleanUp(name, tell);
    await sweep(tell);
    return;
  }
  const container = containerOfLxc(id, process.env.LXC_CONFIG_FILE);
  if (container?.id === undefined) throw new Error(`LXC's configuration of the container ${id} cannot be read`);
  if (type === "pre-start") check(container);
  if (type === "pre-start") await sweep(tell);
  const { place, annotations } = container;
  const remote = (type === "start-host" && seenByLxc(name)) || remoteIn(lxcEntries(readFileSync(place, "utf8")));
  writeRecord({ version: 1, ...name, place, annotations, process: ofLxc(), remote, time: now() });
};

const run = async (stage: string | undefined): Promise<void> => {
  if (stage === "createRuntime") await createRuntime(readState(readFileSync(0, "utf8")));
  else if (stage === "poststop") await poststop(readFileSync(0, "utf8"));
  else if (stage === "lxc") await lxc(process.argv[3], process.argv[4] ?? "");
  else throw new CryoshimError("ERR_USAGE", { what: "cannot run the hook", why: `there is no stage \`${stage}\`` });
};

run(process.argv[2]).catch((error: unknown) => {
  tell(error instanceof CryoshimError ? `${error.message} [${error.code}]` : reason(error));
  process.exitCode = 1;
});
