// SPDX-License-Identifier: Apache-2.0
import { expect, test } from "vitest";
import { inLab } from "../support/script.js";

test("doctor names engine, launcher and runtimes, as table and as JSON, and fails when a checkpoint would", async () => {
  const { stdout } = await inLab(`
cryoshim doctor > /tmp/table; echo "table $?"; cryoshim doctor --json; echo
grep -E 'engine|podman' /tmp/table
CRYOSHIM_ENGINE=/bin/false cryoshim doctor >/dev/null; echo "broken engine $?"`);
  expect(stdout).toContain("table 0");
  expect(stdout).toContain("broken engine 1");
  const findings = JSON.parse(stdout.slice(stdout.indexOf("["), stdout.lastIndexOf("]") + 1)) as {
    subject: string;
    verdict: string;
    finding: string;
  }[];
  const of = (subject: string) => findings.find((f) => f.subject === subject);
  expect(of("engine")).toMatchObject({
    verdict: "ok",
    finding: expect.stringMatching(/^\/usr\/sbin\/criu, CRIU 4\.2/),
  });
  expect(of("launcher")).toMatchObject({ verdict: "ok", finding: expect.stringContaining("/usr/local/sbin/criu") });
  for (const runtime of ["podman", "runc", "crun", "lxc-checkpoint"]) expect(of(runtime)?.verdict).toBe("ok");
});

test("what an engine can do is asked once, until the binary or the boot is another", async () => {
  const { stdout } = await inLab(`
cp /usr/sbin/criu /tmp/real; printf '#!/bin/sh\\necho "$@" >>/tmp/asked\\nexec /tmp/real "$@"\\n' > /tmp/engine
chmod 755 /tmp/engine; export CRYOSHIM_ENGINE=/tmp/engine
asked() { wc -l </tmp/asked; }
cryoshim doctor --json >/tmp/1; asked; cryoshim doctor --json >/tmp/2; asked; cmp /tmp/1 /tmp/2 && stat -c %a /run/cryoshim/probe
touch /tmp/engine; cryoshim doctor >/dev/null; asked
sed -i 's/[0-9a-f]\\{12\\}",/000000000000",/' /run/cryoshim/probe; cryoshim doctor >/dev/null; asked
echo '{"key":' > /run/cryoshim/probe; cryoshim doctor >/dev/null; asked; cat /tmp/1`);
  const [first, again, mode, touched, rebooted, broken] = stdout.split("\n");
  expect(Number(first)).toBeGreaterThan(5);
  expect([again, mode]).toEqual([first, "600"]);
  expect([touched, rebooted, broken]).toEqual([2, 3, 4].map((times) => String(times * Number(first))));
  expect(stdout).toMatch(/"subject": ?"pre-dump",\s*"verdict": ?"note"/);
});

test("run puts cryoshim in the way of one command, installs nothing, and passes exit code and signal on", async () => {
  const { stdout } = await inLab(
    `ln -sf /cryoshim/dist/cli.js /usr/local/bin/cryoshim
cryoshim run -- sh -c 'command -v criu; criu --version | head -1'; command -v criu
cryoshim run -- sh -c 'exit 7'; echo "code $?"; cryoshim run -- sh -c 'kill -KILL $$'; echo "code $?"
cryoshim run -- nonexistent; echo "code $?"; echo piped | cryoshim run -- cat
cryoshim run -- sleep 30 & sleep 1; kill -TERM $!; wait $!; echo "code $?"`,
    { bare: true },
  );
  expect(stdout).toContain("/cryoshim/build/Release/criu\nVersion: 4.2");
  expect(stdout).toContain("\n/usr/sbin/criu\n");
  expect(stdout).toContain("code 7\ncode 137\ncode 1\npiped\ncode 143");
});

test("an installation is used by podman, and gone after uninstall", async () => {
  const { stdout } = await inLab(
    `cli() { node /cryoshim/dist/cli.js "$@"; }
cli install --dry-run | head -1; command -v criu
cli install >/tmp/installed; head -1 /tmp/installed; hash -r; command -v criu
lab-podman-image >/dev/null; podman run -d --name c --network none localhost/busybox sh -c "$counter" >/dev/null
cnt() { podman exec c cat /cnt; }; N=$(number cnt)
podman container checkpoint c >/dev/null; podman container restore c >/dev/null; goes_on $N cnt
ls /run/cryoshim; cli uninstall >/tmp/uninstalled; ls /run/cryoshim
[ "$(grep -c ^remove /tmp/uninstalled)" = "$(grep -cE "^(link|copy)" /tmp/installed)" ] && echo "all of it"
awk '{ print $2 }' /tmp/installed | while read -r path; do [ ! -e "$path" ] || echo "left: $path"; done; hash -r; command -v criu; podman rm -f -t 0 c >/dev/null`,
    { bare: true },
  );
  expect(stdout).toMatch(
    /^would link +\/usr\/local\/sbin\/criu -> .*\n\/usr\/sbin\/criu\nlink .*\n\/usr\/local\/sbin\/criu\n/,
  );
  expect(stdout).toContain("goes on\nbin\nbtf-ids\ncode\nlaunch\nplugins\nall of it\n/usr/sbin/criu");
});

test("wrong use is told with the usage, and no stack", async () => {
  const { stdout, stderr } = await inLab(
    "cryoshim frobnicate; echo $?; cryoshim show; echo $?; cryoshim completion tcsh; echo $?",
  );
  expect(stdout).toBe("1\n1\n1");
  expect(stderr).toContain("unknown command 'frobnicate'");
  expect(stderr).toContain("[ERR_USAGE]");
  expect(stderr).not.toContain("    at ");
});
