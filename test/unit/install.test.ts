// SPDX-License-Identifier: Apache-2.0
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { program } from "../../shim/cli.js";
import { install, links, uninstall } from "../../shim/commands/install.js";

let prefix = "";
beforeEach(() => {
  prefix = mkdtempSync(join(tmpdir(), "cryoshim-install-"));
});
afterEach(() => rmSync(prefix, { recursive: true, force: true }));
const files = (): string[] =>
  readdirSync(prefix, { recursive: true, encoding: "utf8" }).filter((f) => lstatSync(join(prefix, f)).isSymbolicLink());

test("what is installed exists, is installed once, and is gone after uninstall", () => {
  for (const { target } of links(prefix)) expect(existsSync(target), target).toBe(true);
  expect(install(prefix).map(({ action }) => action)).toEqual(links(prefix).map(() => "link"));
  expect(files()).toHaveLength(links(prefix).length);
  expect(install(prefix).every(({ action }) => action === "keep")).toBe(true);
  uninstall(prefix);
  expect(files()).toEqual([]);
  expect(uninstall(prefix).every(({ action }) => action === "absent")).toBe(true);
});

test("a dry run tells the same steps and writes nothing", () => {
  const said = install(prefix, { dryRun: true });
  expect(readdirSync(prefix)).toEqual([]);
  expect(install(prefix)).toEqual(said);
  uninstall(prefix, { dryRun: true });
  expect(files()).toHaveLength(links(prefix).length);
});

test("a criu of someone else is neither replaced nor removed, and nothing else is installed then", () => {
  mkdirSync(join(prefix, "sbin"));
  writeFileSync(join(prefix, "sbin/criu"), "theirs");
  expect(() => install(prefix)).toThrow(expect.objectContaining({ code: "ERR_INSTALL" }));
  uninstall(prefix);
  expect(readFileSync(join(prefix, "sbin/criu"), "utf8")).toBe("theirs");
  expect(files()).toEqual([]);
});

test("the launcher is a link into the package", () => {
  install(prefix);
  expect(readlinkSync(join(prefix, "sbin/criu"))).toMatch(/\/(build\/Release|prebuilds\/linux-x64)\/criu$/);
});

describe("hooks", () => {
  const include = (): string => join(prefix, "etc/lxc/cryoshim.conf");

  test("are linked where podman, CRI-O and LXC look for them, and are gone after uninstall", () => {
    const extent = { root: prefix };
    const said = install(prefix, extent).map(({ path, action }) => [path.slice(prefix.length), action]);
    expect(said).toEqual(
      expect.arrayContaining([
        ["/usr/share/containers/oci/hooks.d/50-cryoshim.json", "link"],
        ["/usr/share/containers/oci/hooks.d/50-cryoshim-create-runtime.json", "link"],
        ["/usr/share/containers/oci/hooks.d/50-cryoshim-create-container.json", "link"],
        ["/etc/lxc/cryoshim.conf", "copy"],
        ["/libexec/cryoshim/lxc", "link"],
      ]),
    );
    expect(install(prefix, extent).every(({ action }) => action === "keep")).toBe(true);
    uninstall(prefix, extent);
    expect(files()).toEqual([]);
    expect(existsSync(include())).toBe(false);
  });

  test("name programs that are installed, in stages that there are", () => {
    const programs = links("/usr/local").map(({ path }) => path);
    for (const { path, target } of links("/usr/local")) {
      if (!path.includes("hooks.d")) continue;
      const { version, hook, when, stages } = JSON.parse(readFileSync(target, "utf8"));
      expect(version).toBe("1.0.0");
      expect(programs).toContain(hook.path);
      expect(Object.keys(when)).toHaveLength(1);
      expect(["createRuntime", "createContainer", "poststop"]).toEqual(expect.arrayContaining(stages));
    }
    const named = [...readFileSync("configs/lxc/cryoshim.conf", "utf8").matchAll(/^lxc.hook.*\|\| exec (\S+)'$/gm)];
    expect(named.map(([, path]) => path)).toEqual(Array(5).fill("/usr/local/libexec/cryoshim/lxc"));
    expect(programs).toContain("/usr/local/libexec/cryoshim/lxc");
  });

  test("are left out with --no-hooks, and under a prefix that no runtime knows only their programs are there", () => {
    expect(links("/usr/local", { hooks: false }).some(({ path }) => /hooks|libexec|lxc/.test(path))).toBe(false);
    expect(links(prefix).some(({ path }) => /hooks\.d|cryoshim\.conf/.test(path))).toBe(false);
    expect(links(prefix).some(({ path }) => path.includes("libexec"))).toBe(true);
  });

  test.each(["usr/share/containers/oci/hooks.d/50-cryoshim.json", "etc/lxc/cryoshim.conf"])(
    "never take the place of another's %s",
    (name) => {
      const file = join(prefix, name);
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, "theirs");
      const extent = { root: prefix };
      expect(() => install(prefix, extent)).toThrow(expect.objectContaining({ code: "ERR_INSTALL" }));
      uninstall(prefix, extent);
      expect(readFileSync(file, "utf8")).toBe("theirs");
      expect(files()).toEqual([]);
    },
  );

  test("an include of an older version is replaced; one that a container names stays, and does nothing without us", () => {
    const extent = { root: prefix };
    mkdirSync(dirname(include()), { recursive: true });
    writeFileSync(include(), "# Cryoshim's hooks for LXC. Of old.\n");
    expect(install(prefix, extent).find(({ path }) => path === include())?.action).toBe("replace");
    const lxcPath = join(prefix, "var/lib/lxc");
    mkdirSync(join(lxcPath, "c1"), { recursive: true });
    writeFileSync(join(lxcPath, "c1/config"), "lxc.include = /etc/lxc/cryoshim.conf\n");
    expect(uninstall(prefix, extent).find(({ path }) => path === include())?.action).toBe("keep");
    for (const line of readFileSync(include(), "utf8").split("\n"))
      if (/^lxc\.hook\.[a-z]+-?[a-z]+ = \D/.test(line)) expect(line).toMatch(/= sh -c 'test ! -x (\S+) \|\| exec \1'$/);
    rmSync(lxcPath, { recursive: true });
    expect(uninstall(prefix, extent).find(({ path }) => path === include())?.action).toBe("remove");
  });
});

test("the man page and the completions name every command and option", () => {
  const page = readFileSync("docs/man/cryoshim.1", "utf8").replaceAll("\\-", "-");
  const completions = ["cryoshim.bash", "_cryoshim", "cryoshim.fish"].map((f) =>
    readFileSync(`configs/completions/${f}`, "utf8"),
  );
  for (const command of program().commands) {
    expect(page).toContain(command.name());
    for (const text of completions) expect(text).toContain(command.name());
    for (const { long } of command.options) {
      expect(page).toContain(long!);
      for (const text of completions) expect(text).toContain(long!.slice(2));
    }
  }
});
