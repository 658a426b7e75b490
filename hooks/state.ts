// SPDX-License-Identifier: Apache-2.0
// What an OCI runtime tells a hook on standard input
// (https://github.com/opencontainers/runtime-spec/blob/v1.2.1/runtime.md#state), and what of its configuration matters.
import { closeSync, constants, fstatSync, openSync, readFileSync } from "node:fs";
import { isAbsolute, join } from "node:path";
import * as z from "zod/mini";
import { CryoshimError } from "../shim/error.js";
import { isContainerId, PREFIX } from "../shim/session/container.js";

/** Larger than any state or configuration that there is. */
const MAX_BYTES = 16 << 20;

const absolute = z
  .string()
  .check(z.refine((path) => isAbsolute(path) && !path.includes("\0"), "must be an absolute path"));

const state = z.object({
  ociVersion: z.string(),
  id: z.string().check(z.refine(isContainerId, "is no id of a container")),
  /** Runtimes may have others than the specification's. */
  status: z.string(),
  /** Of its first process; crun says 0 where there is none. */
  pid: z.optional(z.int().check(z.nonnegative())),
  bundle: absolute,
  annotations: z.optional(z.record(z.string(), z.string())),
});
export type OciState = z.infer<typeof state>;

const mount = z.object({
  destination: z.string(),
  type: z.optional(z.string()),
  source: z.optional(z.string()),
});
export type OciMount = z.infer<typeof mount>;

const config = z.object({ mounts: z.optional(z.array(mount)) });

const refuse = (what: string, why: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_HOOK", { what, why, fix: "see docs/hooks.md", cause });

const checked = <T>(schema: z.ZodMiniType<T>, text: string, what: string): T => {
  if (text.length > MAX_BYTES) throw refuse(what, `it is larger than ${MAX_BYTES} bytes`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw refuse(what, "it is no JSON", error);
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const { path, message } = result.error.issues[0]!;
  throw refuse(what, `${path.join(".") || "it"}: ${message}`);
};

/** Reads the state. Throws ERR_HOOK that names what is wrong with it. */
export const readState = (text: string): OciState => checked(state, text, "cannot use the state that the runtime sent");

/** The mounts that a bundle's configuration asks for. Throws ERR_HOOK where it cannot be used. */
export const mountsIn = (bundle: string): OciMount[] => {
  const file = join(bundle, "config.json");
  const fd = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const st = fstatSync(fd);
    if (!st.isFile() || st.size > MAX_BYTES)
      throw refuse(`cannot use \`${file}\``, "it is no plain file of a sane size");
    return checked(config, readFileSync(fd, "utf8"), `cannot use \`${file}\``).mounts ?? [];
  } finally {
    closeSync(fd);
  }
};

/** The annotations of ours. */
export const ours = (annotations: Readonly<Record<string, string>> = {}): Record<string, string> =>
  Object.fromEntries(Object.entries(annotations).filter(([key]) => key.startsWith(PREFIX)));
