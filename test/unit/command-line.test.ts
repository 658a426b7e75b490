// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { expect, test } from "vitest";
import { last, OPTIONS, parseCommandLine, rewrite } from "../../shim/session/command-line.js";

const parse = (line: string) => parseCommandLine(["criu", ...line.split(" ").filter(Boolean)]);

test("LXC's dump is read as CRIU reads it", () => {
  const line = parse(
    "dump --tcp-established --file-locks --link-remap --manage-cgroups=full --ext-mount-map auto " +
      "--enable-external-sharing --enable-external-masters --enable-fs hugetlbfs --enable-fs tracefs -D /imgs " +
      "-o /imgs/dump.log --cgroup-root hugetlb:lxc.payload.c -v4 -t 123 --skip-in-flight " +
      "--freeze-cgroup /sys/fs/cgroup/lxc.payload.c --force-irmap",
  );
  expect(line?.verb).toBe("dump");
  expect(line?.options.get("enable-fs")).toEqual(["hugetlbfs", "tracefs"]);
  expect(last(line!, "images-dir")).toBe("/imgs");
  expect(last(line!, "freeze-cgroup")).toBe("/sys/fs/cgroup/lxc.payload.c");
  expect(last(line!, "verbosity")).toBe("4");
  expect(last(line!, "tree")).toBe("123");
});

test("the verb may come after the options, as getopt permutes", () => {
  expect(parse("-D /imgs -t 5 dump")?.verb).toBe("dump");
  expect(parse("-t 5 -- dump")?.verb).toBe("dump");
});

test("a word that is an option's value is not the verb", () => {
  expect(parse("check -o dump")?.verb).toBe("check");
  expect(parse("-o restore check")?.verb).toBe("check");
});

test("flags of one letter may stand together, the last with a value", () => {
  const line = parse("restore -dSD/imgs");
  expect([...line!.options.keys()]).toEqual(["restore-detached", "restore-sibling", "images-dir"]);
  expect(last(line!, "images-dir")).toBe("/imgs");
});

test("an optional value must stand in the same word", () => {
  expect(last(parse("dump -v 4")!, "verbosity")).toBe("");
  expect(last(parse("dump --manage-cgroups soft")!, "manage-cgroups")).toBe("");
  expect(last(parse("dump --manage-cgroups=soft")!, "manage-cgroups")).toBe("soft");
});

test("an option may be abbreviated while it is the only one that begins so", () => {
  expect(last(parse("dump --images /x")!, "images-dir")).toBe("/x");
  expect(parse("dump --leave")).toBeUndefined();
});

test.each(["dump --nonsense", "dump -D", "dump -q", "dump --leave-running=1", "restore --images-dir"])(
  "what CRIU answers with its usage is left to it: %s",
  (line) => {
    expect(parse(line)).toBeUndefined();
  },
);

test("the places of --libdir are known in every spelling", () => {
  expect(parse("dump -L /a --libdir /b --libdir=/c -L/d")?.at.get("libdir")).toEqual([2, 3, 4, 5, 6, 7]);
});

test("every option is found again with the value that was given", () => {
  const option = fc.constantFrom(...OPTIONS.keys());
  fc.assert(
    fc.property(option, fc.stringMatching(/^[a-z0-9/:._]{1,20}$/), (name, value) => {
      const word = OPTIONS.get(name) === "none" ? `--${name}` : `--${name}=${value}`;
      const line = parseCommandLine(["criu", "dump", word]);
      expect(line?.verb).toBe("dump");
      expect(last(line!, name)).toBe(OPTIONS.get(name) === "none" ? "" : value);
    }),
  );
});

test("options are taken out and put in before a command that has options of its own", () => {
  const argv = "criu restore -L /a --network-lock iptables -d --exec-cmd -- sh -L x".split(" ");
  const rewritten = rewrite(argv, parseCommandLine(argv)!, ["libdir", "network-lock"], ["--network-lock", "skip"]);
  expect(rewritten.join(" ")).toBe("criu restore -d --exec-cmd --network-lock skip -- sh -L x");
});
