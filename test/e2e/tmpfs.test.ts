// SPDX-License-Identifier: Apache-2.0
// The tmpfs images that our tar writes in a dump, beside those of the real one.
import { expect, test } from "vitest";
import { inLab } from "../support/lab.js";

/** A tree of what a tmpfs can hold, saved by both, restored by GNU tar, compared in every respect. */
const TREE = `
set -e; cd /tmp; mkdir src; mount -t tmpfs tmpfs src; cd src
mkdir -p a/b/c empty; printf hello >a/file; printf x >a/b/c/x; head -c 70000 /dev/urandom >a/big; : >nothing
ln -s ../a/file a/link; ln -s /absolute/dangling dangling; mknod null c 1 3; mknod block b 7 1; mkfifo a/fifo
chmod 4755 a/file; chmod 1777 empty; chmod 640 a/big; chown 1234:4321 a/b/c/x; chown -h 5:6 dangling
mkdir mounted; mount -t tmpfs tmpfs mounted; : >mounted/inside; : >bound; mount --bind /dev/zero bound
find . -exec touch -h -d @1700000000 {} +; touch -h -d @1700000123 a/file
cd /tmp
ln -s /cryoshim/build/Release/criu tar
args="--create --gzip --no-unquote --no-wildcards --one-file-system --check-links --preserve-permissions --sparse --numeric-owner --directory /proc/self/fd/0 ."
PATH=/tmp:$PATH sh -c "exec tar $args" <src >ours.tar.gz
/usr/bin/tar $args <src >theirs.tar.gz
for one in ours theirs; do
  mkdir $one; mount -t tmpfs tmpfs $one
  tar --extract --gzip --no-unquote --no-wildcards --directory $one <$one.tar.gz
  (cd $one; find . -printf '%p %y %m %U %G %s %T@ %l\\n' | sort; find . -type f -exec sha256sum {} + | sort; stat -c '%n %t:%T' null block bound) >$one.list
  gzip -t $one.tar.gz
done
diff ours.list theirs.list && cat ours.list
`;

test("what it saves comes back by GNU tar as what GNU tar saves: files, links, devices, owners, modes, times", async () => {
  const { code, output, stdout } = await inLab(["bash", "-c", TREE], "cryoshim");
  expect(code, output).toBe(0);
  expect(stdout).toMatch(/^\.\/a\/file f 4755 0 0 5 1700000123/m);
  expect(stdout).toContain("./mounted d");
  expect(stdout).not.toContain("inside");
  expect(stdout).toMatch(/^\.\/a\/fifo p/m);
});

test.each([
  ["a hard link", "echo x >src/one; ln src/one src/two"],
  ["a file with holes", "truncate -s 100000 src/sparse"],
  ["a large file", "head -c 2000000 /dev/urandom >src/large"],
  ["a socket", "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"src/socket\")'"],
  ["a long name", "touch src/$(printf 'x%.0s' $(seq 120))"],
  ["other arguments", "args='--create --directory /proc/self/fd/0 .'"],
])("%s is left to the real tar, whose bytes come out", async (_, make) => {
  const script = `cd /tmp; mkdir src; mount -t tmpfs tmpfs src; ln -s /cryoshim/build/Release/criu tar
    args="--create --gzip --no-unquote --no-wildcards --one-file-system --check-links --preserve-permissions --sparse --numeric-owner --directory /proc/self/fd/0 ."
    ${make}
    PATH=/tmp:$PATH sh -c "exec tar $args" <src >ours 2>/dev/null; /usr/bin/tar $args <src >theirs 2>/dev/null
    # gzip notes the time, at byte 4
    cmp -i 8 ours theirs && [ -s ours ]`;
  const { code, output } = await inLab(["bash", "-c", script], "cryoshim");
  expect(code, output).toBe(0);
});

test("a container's tmpfs is saved by it, and CRIU alone restores it", async () => {
  const script = `. /cryoshim/test/support/scenario.sh
    mkdir -p c/l c/i c/w; LAB_BIND=/tmp/c/l lab-runc-bundle /tmp/c/b \\
      sh -c 'echo kept >/dev/shm/note; ln -s note /dev/shm/link; echo start >>/lab/starts; exec 3>/lab/log; i=0; while :; do i=$((i+1)); echo $i >&3; sleep 0.02; done'
    runc run -d -b c/b c </dev/null >/dev/null 2>&1; counting c/l
    runc checkpoint --image-path /tmp/c/i --work-path /tmp/c/w c
    for image in c/i/tmpfs-dev-*.img; do [ "$(od -An -tx1 -j9 -N1 $image | tr -d ' ')" = ff ] && echo ours; done
    PATH=/usr/sbin:/usr/bin:/sbin:/bin runc restore -d -b /tmp/c/b --image-path /tmp/c/i --work-path /tmp/c/w c </dev/null
    counting c/l; runc exec c cat /dev/shm/link`;
  const { code, output, stdout } = await inLab(["bash", "-c", script], "cryoshim");
  expect(code, output).toBe(0);
  expect(stdout.match(/^ours$/gm)!.length).toBeGreaterThan(2);
  expect(stdout).toContain("kept");
});
