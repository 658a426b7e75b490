// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { packageRoot } from "../../native/index.js";
import { CryoshimError } from "../error.js";

const FILES: Readonly<Record<string, string>> = { bash: "cryoshim.bash", zsh: "_cryoshim", fish: "cryoshim.fish" };

/** The completion script for a shell, as `cryoshim install` also links it. */
export const completion = (shell: string): string => {
  const file = FILES[shell];
  if (file === undefined)
    throw new CryoshimError("ERR_USAGE", {
      what: `cannot complete for \`${shell}\``,
      why: "no such shell is known",
      fix: `one of ${Object.keys(FILES).join(", ")}`,
    });
  return readFileSync(join(packageRoot, "configs/completions", file), "utf8");
};
