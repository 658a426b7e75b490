// SPDX-License-Identifier: Apache-2.0
// The distribution's plugins beside ours; a fixture stands for cuda's and amdgpu's, which need their hardware.
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { holds } from "../support/lab.js";

let scratch = "";
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), "cryoshim-plugins-"));
  const flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", join(scratch, "other.so")];
  execFileSync("gcc", [...flags, "test/fixtures/other-plugin.c"]);
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const script = (install: string, libdir: string): string => `
${install}
mkdir -p /etc/cryoshim; cp /cryoshim/test/fixtures/surgery-carrier.mjs /etc/cryoshim/
echo 'carriers.extra = ["/etc/cryoshim/surgery-carrier.mjs"]' > /etc/cryoshim/config.toml
echo '{"swap":false}' > surgery.json; : > surgery.log
mkdir l i; setsid sh -c "$(sed s,/lab/,/tmp/l/,g <<<"$counter")" </dev/null >/dev/null 2>&1 & pid=$!
counting l
criu dump -t $pid -D i -o d.log -v4 ${libdir}
grep "other: " i/d.log
criu restore -d -D i -o r.log -v4 ${libdir}
counting l; grep "other: " i/r.log; cat surgery.log`;

test.each([
  ["in the default directory", "mkdir -p /usr/lib/criu; cp /scratch/other.so /usr/lib/criu/a.so", ""],
  ["named by --libdir", "mkdir p; cp /scratch/other.so p/z.so", "--libdir /tmp/p"],
  ["named by -L, from the working directory,", "mkdir p; cp /scratch/other.so p/z.so", "-L ../p"],
  ["named by CRIU_LIBS_DIR", "mkdir p; cp /scratch/other.so p/z.so; export CRIU_LIBS_DIR=/tmp/p", ""],
])("a plugin %s is asked as by CRIU alone, and so are our carriers", async (_, install, libdir) => {
  const stdout = await holds(script(install, libdir), { LAB_SCRATCH: scratch });
  expect(stdout).toMatch(/other: init 0\n(.*\n)*.*other: checkpoint \d+\n(.*\n)*.*other: exit 0 0\n/);
  expect(stdout).toMatch(/other: init 2\n(.*\n)*.*other: exit 2 0\n/);
  // Also where the other plugin claims every task, as cuda's does.
  expect(stdout).toContain('"hook":"checkpoint"');
  expect(stdout).toContain('"hook":"resume"');
});

test("a directory of plugins that is not there is CRIU's to refuse", () =>
  holds(`mkdir i; sleep 100 & pid=$!
    fails "" criu dump -t $pid -D i -o d.log -L /nonexistent --shell-job
    grep "Unable to open directory /nonexistent" i/d.log; kill -0 $pid`));
