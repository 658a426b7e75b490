// SPDX-License-Identifier: Apache-2.0
// Trees of mounts of whatever shape: nested tmpfs, bind mounts of directories, links, FIFOs, sockets, symbolic links; random
// descriptors of them; all unmounted lazily, dumped and restored: everything is as it was. FUZZ_RUNS: how many trees.
import fc from "fast-check";
import { expect, test } from "vitest";
import { lab } from "../support/lab.js";

const node = fc.record({
  kind: fc.constantFrom(
    "dir",
    "dir",
    "file",
    "file",
    "file",
    "link",
    "fifo",
    "socket",
    "socket",
    "symlink",
    "bind",
    "tmpfs",
  ),
  parent: fc.nat(20),
  target: fc.nat(100),
  // What looks like the kernel's own words for a deleted file, blanks and bytes that are escaped in mountinfo.
  name: fc.constantFrom("a", "name ", "x (deleted)", "ä", "back\\slash", "tab\t"),
  size: fc.nat(300),
});
const open = fc.record({
  node: fc.nat(30),
  how: fc.constantFrom("read", "write", "append", "path"),
  offset: fc.nat(400),
});
const scenario = fc.record({
  base: fc.constantFrom("bind", "tmpfs"),
  nodes: fc.array(node, { minLength: 3, maxLength: 14 }),
  opens: fc.array(open, { minLength: 1, maxLength: 8 }),
  gone: fc.array(fc.nat(30), { maxLength: 3 }),
  inside: fc.oneof(fc.constant(0), fc.nat(10)),
});

test("random trees of unmounted mounts come back as they were", { timeout: 600_000 }, async () => {
  const runs = Number(process.env.FUZZ_RUNS ?? 8);
  await fc.assert(
    fc.asyncProperty(scenario, async (plan) => {
      const text = Buffer.from(JSON.stringify(plan)).toString("base64");
      const { code, output } = await lab(`
mkdir l i; echo ${text} | base64 -d >plan
setsid python3 /cryoshim/test/support/mount-tree.py plan /tmp/d /tmp/l/out /tmp/l/go </dev/null >l/log 2>&1 & pid=$!
until_true grep -q ready l/out || { cat l/log; exit 1; }
criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job || { grep -h Error i/d.log; exit 1; }
criu restore -D /tmp/i -o r.log -v4 --shell-job -d || { grep -h Error i/r.log; exit 1; }
touch l/go; until_true grep -q done l/out; ! grep BAD l/out`);
      expect(code, output).toBe(0);
    }),
    // To make a tree smaller takes longer than a test may; the seed that is told repeats it.
    { numRuns: runs, verbose: 1, endOnFailure: true },
  );
});
