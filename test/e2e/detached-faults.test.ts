// SPDX-License-Identifier: Apache-2.0
// Each system call that carries files on unmounted mounts is made to fail in turn (strace -e inject, around the shim alone): in a
// dump the process goes on as it was, in a restore nothing is left, and the images restore the next time.
import { expect, test } from "vitest";
import { lab } from "../support/lab.js";

const WORDS = `
ready() { until_true grep -q ready "$1/out"; }
start() { mkdir -p l d; setsid /cryoshim/build/workloads/"$@" </dev/null >/dev/null 2>&1 & pid=$!; ready l; }
checked() { touch "$1/go"; until_true grep -q done "$1/out"; ! grep BAD "$1/out" || no "it is not as it was"; [ "$(grep -c ^ok "$1/out")" = "$2" ]; }
mkdir -p /etc/cryoshim
cat >/tmp/node <<'END'
#!/bin/sh
[ ! -e /tmp/fault ] || exec strace -D -f -qq -o /tmp/trace -e "$(cat /tmp/fault)" node "$@"
exec node "$@"
END
chmod 755 /tmp/node; echo '[engine]
node = "/tmp/node"' >/etc/cryoshim/config.toml
# The launcher learns of the configuration from a first session.
mkdir /tmp/none; criu dump -t 999999 -D /tmp/none >/dev/null 2>&1 || true
failing() { echo "inject=$1:error=EIO:when=$2" >/tmp/fault; }
`;
const faults = { LAB_PACKAGES: "strace" };

test("a dump: the process goes on as it was, whatever fails", { timeout: 300_000 }, async () => {
  const { code, output } = await lab(
    `${WORDS}
start unmounted /tmp/d /tmp/l/out /tmp/l/go; failed=0
for each in openat2:1 openat2:9+ name_to_handle_at:1+ setns:1+ setns:2 unshare:1+ bpf:1+ bpf:5 bpf:9 fstat:1+ readlink:3+ statfs:1+ lseek:1+ renameat2:1+ rename:1; do
  failing \${each%:*} \${each#*:}; rm -rf i; mkdir i
  if timeout 60 criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job -R >/dev/null 2>&1; then echo "$each: dumped"; else
    failed=$((failed + 1)); echo "$each: $(grep -h Error i/d.log i/cryoshim.log | grep -v -m1 rlimit | cut -c1-200)"; fi
  kill -0 $pid; grep -q '^State:.[SRD]' /proc/$pid/status || no "$each: it stands still"
done
rm /tmp/fault; [ $failed -gt 3 ] || no "nothing failed"
checked l 33`,
    faults,
  );
  expect(code, output).toBe(0);
});

test("a restore: nothing is left, and the next one goes well", { timeout: 300_000 }, async () => {
  const { code, output } = await lab(
    `${WORDS}
start unmounted /tmp/d /tmp/l/out /tmp/l/go; mkdir i; criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job >/dev/null
failed=0
for each in open_tree:1+ mount_setattr:1 setns:1+ openat2:1+ openat2:5 mknodat:1+ mknodat:2 fchmodat:1+ chmod:1+ chown:1+ utimensat:1+ unlink:1+ rmdir:1+ lseek:3+ ftruncate:1+ pwrite64:1+ chroot:1 bind:1 rename:1; do
  failing \${each%:*} \${each#*:}
  if timeout 60 criu restore -D /tmp/i -o r.log -v4 --shell-job -d >/dev/null 2>&1; then echo "$each: restored"; pkill -9 -x unmounted; else
    failed=$((failed + 1)); echo "$each: $(grep -h Error i/r.log i/cryoshim.log | grep -v -m1 rlimit | cut -c1-200)"; fi
  until_true eval '! pgrep -x unmounted'
  [ -z "$(find d -name '.cryoshim*')" ] || [ $each = unlink:1+ ] || [ $each = rmdir:1+ ] || no "$each: $(find d -name '.cryoshim*')"
  find d -name '.cryoshim*' -delete
done
rm /tmp/fault; [ $failed -gt 5 ] || no "nothing failed"
criu restore -D /tmp/i -o r.log -v4 --shell-job -d; checked l 33`,
    faults,
  );
  expect(code, output).toBe(0);
});

test("a container's restore: nothing stays mounted, and the next one goes well", { timeout: 300_000 }, async () => {
  const { code, output } = await lab(
    `${WORDS}
mkdir l i; cp /cryoshim/build/workloads/inside l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "mkdir /data; exec /lab/inside /data /lab/out /lab/go chroot"
sed -i 's|"CAP_KILL"|"CAP_KILL", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT"|g; s|"readonly": true|"readonly": false|' /tmp/b/config.json
runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
runc checkpoint --image-path /tmp/i --work-path /tmp/i c1; failed=0
for each in open_tree:1+ move_mount:1+ mount:1+ mount_setattr:1+ umount2:1+ setns:1+ linkat:1+ unlinkat:1+ openat2:1+; do
  failing \${each%:*} \${each#*:}
  if timeout 60 runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1; then echo "$each: restored"; else
    failed=$((failed + 1)); echo "$each: $(grep -h Error i/restore.log i/cryoshim.log | grep -v -m1 rlimit | cut -c1-200)"; fi
  runc delete -f c1 >/dev/null 2>&1 || true; until_true eval '! pgrep -x inside'
  ! grep -q ^cryoshim /proc/mounts; [ -z "$(find /tmp/b/rootfs/data -name '.cryoshim*')" ] || [ $each = unlinkat:1+ ] || no "$each: a name is left"
  find /tmp/b/rootfs/data -name '.cryoshim*' -delete
done
rm /tmp/fault; [ $failed -gt 5 ] || no "nothing failed"
runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1; checked l 11`,
    faults,
  );
  expect(code, output).toBe(0);
});

test.each(["engine", "shim", "engine and shim"])(
  "a dump whose %s is killed leaves everything as it is",
  async (who) => {
    const { code, output } = await lab(`${WORDS}
rm -r /etc/cryoshim
start inside /tmp/d /tmp/l/out /tmp/l/go chroot; mkdir -p i
cat >script <<'END'
#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
shim=$(pgrep -f "dist/shim[.]cjs" | head -1)
touch /tmp/killed; case "${who}" in engine) kill -9 $PPID ;; shim) kill -9 $shim ;; *) kill -9 $shim $PPID ;; esac; sleep 1
END
chmod 755 script; criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job --action-script /tmp/script || true
[ -e killed ]; until_true grep -q "^State:.S" /proc/$pid/status; checked l 11`);
    expect(code, output).toBe(0);
  },
);

test("a container's restore whose shim is killed at whatever moment leaves no mount, no file and no task", async () => {
  const { code, output } = await lab(`${WORDS}
rm -r /etc/cryoshim; mkdir l i; cp /cryoshim/build/workloads/inside l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "mkdir /data; exec /lab/inside /data /lab/out /lab/go chroot"
sed -i 's|"CAP_KILL"|"CAP_KILL", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT"|g; s|"readonly": true|"readonly": false|' /tmp/b/config.json
runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
runc checkpoint --image-path /tmp/i --work-path /tmp/i c1
for moment in 0.06 0.09 0.12 0.15 0.18 0.21 0.25 0.3; do
  runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1 & restore=$!
  sleep $moment; kill -9 $(pgrep -f "dist/shim[.]cjs" | head -1) 2>/dev/null || true
  wait $restore || true; runc delete -f c1 >/dev/null 2>&1 || true
  until_true eval '! pgrep -x inside'; ! grep ^cryoshim /proc/mounts
  [ -z "$(find /tmp/b/rootfs/data -name '.cryoshim*')" ] || no "$moment: a name is left"
done
runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1; checked l 11`);
  expect(code, output).toBe(0);
});
