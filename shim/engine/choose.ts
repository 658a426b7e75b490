// SPDX-License-Identifier: Apache-2.0
// Which programs a session uses: the launcher's own rules (native/launcher/launcher.c:find_in_path), for the shim.
import { accessSync, closeSync, constants, openSync, readSync, statSync } from "node:fs";
import { isAbsolute, join } from "node:path";

const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MARK = "CRYOSHIM-LAUNCHER-MARK";
/** CRIU itself is larger than a MiB; a launcher is far below. */
const LAUNCHER_MAX = 512 * 1024;

/** Whether a file is a launcher of cryoshim, this one or another copy. */
export const isLauncher = (path: string): boolean => {
  const { size } = statSync(path);
  if (size >= LAUNCHER_MAX) return false;
  const data = Buffer.alloc(size);
  const fd = openSync(path, "r");
  try {
    readSync(fd, data, 0, size, 0);
  } finally {
    closeSync(fd);
  }
  return data.includes(MARK);
};

/** Every executable of that name in PATH and then in the system's own directories, first to last, none twice. */
export const inPath = (name: string, path: string | undefined): string[] => {
  const found = new Map<string, string>();
  for (const dir of `${path ?? ""}:${DEFAULT_PATH}`.split(":")) {
    const file = join(dir, name);
    // A relative entry would make the choice depend on the caller's directory: root must not.
    if (!isAbsolute(dir)) continue;
    try {
      const st = statSync(file);
      if (!st.isFile()) continue;
      accessSync(file, constants.X_OK);
      const id = `${st.dev}:${st.ino}`;
      if (!found.has(id)) found.set(id, file);
    } catch {
      // Not here.
    }
  }
  return [...found.values()];
};

/** The next `criu` in PATH that is the engine and not a launcher. */
export const findEngine = (path: string | undefined): string | undefined =>
  inPath("criu", path).find((file) => !isLauncher(file));
