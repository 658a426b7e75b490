// SPDX-License-Identifier: Apache-2.0
import { renameSync, rmSync, statSync, writeFileSync } from "node:fs";

/** Gives a file other content, whole or not at all; its mode stays. */
export const replaceFile = (path: string, bytes: Uint8Array): void => {
  const { mode } = statSync(path);
  const making = `${path}.new`;
  try {
    writeFileSync(making, bytes, { mode, flag: "wx" });
    renameSync(making, path);
  } catch (error) {
    if ((error as { code?: string }).code !== "EEXIST") rmSync(making, { force: true });
    throw error;
  }
};
