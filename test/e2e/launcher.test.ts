// SPDX-License-Identifier: Apache-2.0
// The launcher without a working shim, with several launchers, and with the environment it may meet.
import { expect, test } from "vitest";
import { inLab } from "../support/script.js";

const TASK = `
mkdir /tmp/i
setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i > /tmp/cnt; sleep 0.02; done' </dev/null >/dev/null 2>&1 & P=$!
cnt() { cat /tmp/cnt; }
dump() { criu dump -t $P -D /tmp/i -o d.log --shell-job "$@"; echo "dump $?"; }
restore() { criu restore -D /tmp/i -o r.log --shell-job -d "$@"; echo "restore $?"; }
`;

test.each([
  ["node is missing", "export CRYOSHIM_NODE=/nonexistent; mount --bind /dev/null /usr/local/bin/node"],
  ["node crashes", "export CRYOSHIM_NODE=/bin/false"],
  ["the shim's bundle is broken", "echo 'syntax error(' > /cryoshim/dist/shim.cjs"],
  ["the session's bundle is gone", "rm /cryoshim/dist/session.cjs"],
  ["the addon is gone", "rm -f /cryoshim/build/Release/cryoshim.node; rm -rf /cryoshim/prebuilds"],
  ["the configuration is wrong", "mkdir -p /etc/cryoshim; echo 'nonsense = 1' > /etc/cryoshim/config.toml"],
])("when %s, CRIU runs alone and says so", async (_, breakage) => {
  const { stdout, stderr } = await inLab(`${TASK}${breakage}
N=$(number cnt); dump; restore; goes_on $N cnt; cat /tmp/i/cryoshim.log; left_behind`);
  expect(stdout).toContain("dump 0\nrestore 0\ngoes on\n");
  expect(stdout).toMatch(/Warn .*the shim could not start: .+; CRIU runs alone/);
  expect(stderr).toContain("CRIU runs alone (see `cryoshim doctor`)");
  expect(stdout).not.toContain("LEFT");
});

test("the first session leaves its compiled code to those after it, and code that is no use is left anew", async () => {
  const { stdout } = await inLab(`${TASK}
ended() { while pgrep -f '[d]ist/shim.cjs' >/dev/null; do sleep 0.1; done; }
install -d -m 700 /run/cryoshim /run/cryoshim/code; touch /run/cryoshim/code/of-another-build
for k in 1 2 3; do
  [ $k = 3 ] && head -c 1000 $(ls /run/cryoshim/code/*) > /tmp/short && cat /tmp/short > $(ls /run/cryoshim/code/*)
  rm -rf /tmp/i; mkdir /tmp/i; dump -R; ended
  echo "code $k: $(stat -c '%n %a %U' /run/cryoshim/code/*)"; stat -c 'inode %i' /run/cryoshim/code/*
done; cat /tmp/i/cryoshim.log`);
  const codes = [...stdout.matchAll(/^code \d: (\S+) 600 root$/gm)].map(([, name]) => name);
  expect(codes).toHaveLength(3);
  expect(new Set(codes).size).toBe(1);
  const [first, second, third] = [...stdout.matchAll(/^inode (\d+)$/gm)].map(([, inode]) => inode);
  expect(second).toBe(first);
  expect(third).not.toBe(second);
  expect(stdout.match(/^dump 0$/gm)).toHaveLength(3);
  expect(stdout).not.toContain("CRIU runs alone");
});

test("images that need cryoshim are not restored without it, by command line or by swrk", async () => {
  const { stdout, stderr } = await inLab(`${TASK}dump; : > /tmp/i/cryoshim.img
export CRYOSHIM_NODE=/bin/false
restore; ps -o pid= -p $P
python3 - <<'PY'
import os, socket, subprocess
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
images = os.open("/tmp/i", os.O_DIRECTORY)
child = subprocess.Popen(["criu", "swrk", str(theirs.fileno())], pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
theirs.close()
ours.send(bytes([8, 2, 18, 2, 8, images]))
print("answer", ours.recv(4096))
print("swrk ended with", child.wait())
PY`);
  expect(stdout).toContain("dump 0\nrestore 1\n");
  expect(stderr).toContain("these images need cryoshim, but its shim could not start");
  expect(stdout).toMatch(/answer .*\\x08\\x02\\x10\\x00J.these images need cryoshim/);
  expect(stdout).toContain("swrk ended with 1");
});

test("two launchers in PATH find the engine behind both", async () => {
  const { stdout } = await inLab(`${TASK}
mkdir -p /opt/other/build/Release /opt/bin; cp -r /cryoshim/build/Release/. /opt/other/build/Release/
cp -r /cryoshim/dist /cryoshim/package.json /cryoshim/node_modules/node-gyp-build /opt/other/ 2>/dev/null
ln -s /opt/other/build/Release/criu /opt/bin/criu
PATH=/opt/bin:$PATH; criu --version | head -1; timeout 20 criu check | tail -1; N=$(number cnt); dump; restore; goes_on $N cnt`);
  expect(stdout).toContain("Version: 4.2");
  expect(stdout).toContain("dump 0\nrestore 0\ngoes on");
});

test("without any engine the exit code is a shell's for a missing program", async () => {
  const { stdout, stderr } = await inLab(
    "for f in /usr/sbin/criu /sbin/criu; do mount --bind /cryoshim/build/Release/criu $f 2>/dev/null; done; rm -f /run/cryoshim/launch; criu --version; echo $?",
  );
  expect(stdout.trim()).toBe("127");
  expect(stderr).toContain("cannot find CRIU");
});

test("another engine can be named by environment and by configuration", async () => {
  const { stdout } = await inLab(`
printf '#!/bin/sh\\necho other engine "$@"\\n' > /tmp/engine; chmod 755 /tmp/engine
CRYOSHIM_ENGINE=/tmp/engine criu --version
mkdir -p /etc/cryoshim; printf '[engine]\\npath = "/tmp/engine"\\n' > /etc/cryoshim/config.toml
cryoshim doctor >/dev/null; criu dump -t 1 -D /tmp; criu --version; rm /etc/cryoshim/config.toml; criu --version | head -1`);
  const lines = stdout.trim().split("\n");
  expect(lines[0]).toBe("other engine --version");
  expect(lines[1]).toBe("other engine dump -t 1 -D /tmp --network-lock skip");
  expect(lines[2]).toBe("other engine --version");
  expect(lines[3]).toMatch(/^Version: 4\.2/);
});

test("a launch file that others could have written is not believed", async () => {
  const { stdout } = await inLab(`
printf '#!/bin/sh\\necho wrong engine\\n' > /tmp/engine; chmod 755 /tmp/engine
mkdir -p /run/cryoshim; printf 'stamp=none\\nengine=/tmp/engine\\nnode=/tmp/engine\\nsettings={}\\n' > /run/cryoshim/launch
criu --version; chmod 666 /run/cryoshim/launch; criu --version | head -1`);
  expect(stdout).toMatch(/^wrong engine\nVersion: 4\.2/);
});
