// SPDX-License-Identifier: Apache-2.0
// A container full of secrets, checkpointed and anonymised: none is left in any encoding, and the structure is the same.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { expect, test } from "vitest";
import { visitCheckpoint } from "../../crit/checkpoint.js";
import { holds } from "../support/lab.js";
import { beforeTests } from "../support/once.js";

const secrets = (place: string, count: number): string[] =>
  Array.from({ length: count }, (_, n) => `q${createHash("md5").update(`${place}${n}`).digest("hex").slice(0, 11)}`);
/** By place; those of `outside` are in images that are not memory. */
const outside: Record<string, number> = {
  file: 20,
  tmpfsname: 10,
  tmpfs: 20,
  ghost: 10,
  pipe: 10,
  unix: 10,
  queue: 10,
  tcp: 10,
  mq: 10,
  thread: 10,
  host: 1,
  name: 1,
  annotation: 10,
  fifo: 10,
  tty: 10,
  symlink: 10,
  rootfs: 10,
  xattr: 10,
  posixmq: 10,
  mqname: 5,
};
/** Addresses: as text, and as they lie in memory. */
const [IP, MAC] = ["10.88.37.201", "02:5a:c3:71:9e:d4"];
const memory: Record<string, number> = { heap: 40, env: 20, argv: 20 };
const all = (places: Record<string, number>): string[] => Object.entries(places).flatMap(([p, n]) => secrets(p, n));

/** What a secret looks like in each encoding; of base64 the part that does not depend on what is around it. */
const encodings = (secret: string): Buffer[] => [
  Buffer.from(secret),
  Buffer.from(secret, "utf16le"),
  Buffer.from(Buffer.from(secret).toString("hex")),
  Buffer.from(Buffer.from(secret).toString("hex").toUpperCase()),
  ...[0, 1, 2].map((shift) =>
    Buffer.from(
      Buffer.from("\0".repeat(shift) + secret)
        .toString("base64")
        .slice(shift === 0 ? 0 : shift + 1, 14),
    ),
  ),
];
const addresses = (files: { bytes: Buffer }[]): string[] => {
  const raw = (text: string, radix: number): Buffer =>
    Buffer.from(text.split(/[.:]/).map((part) => Number.parseInt(part, radix)));
  const forms = { [IP]: [Buffer.from(IP), raw(IP, 10)], [MAC]: [Buffer.from(MAC), raw(MAC, 16)] };
  return Object.keys(forms).filter((name) =>
    forms[name]!.some((form) => files.some(({ bytes }) => bytes.includes(form))),
  );
};
/** Names and contents of all members, unpacked where they are packed; an archive as it lies on the disk, too. */
const contents = async (path: string): Promise<{ name: string; bytes: Buffer }[]> => {
  const found = [{ name: "archive", bytes: gunzipSync(readFileSync(path)) }];
  await visitCheckpoint(path, (name) => {
    const pieces: Buffer[] = [];
    return {
      piece: (bytes) => pieces.push(Buffer.from(bytes)),
      end: () => {
        const bytes = Buffer.concat(pieces);
        found.push({ name, bytes: Buffer.concat([Buffer.from(name), bytes]) });
        if (bytes[0] === 0x1f && bytes[1] === 0x8b) found.push({ name, bytes: gunzipSync(bytes) });
      },
    };
  });
  return found;
};
const foundIn = (files: { name: string; bytes: Buffer }[], words: string[]): string[] =>
  words.filter((word) => files.some(({ bytes }) => encodings(word).some((form) => bytes.includes(form))));

let scratch = "";
beforeTests(async (directory) => {
  scratch = directory;
  const env = secrets("env", 20).map((word, n) => `-e V${n}=${word}`);
  const notes = secrets("annotation", 10).map((word, n) => `--annotation note${n}=${word}`);
  const [host, name] = [secrets("host", 1)[0], secrets("name", 1)[0]];
  await holds(
    `lab-podman-image >/dev/null; mkdir c1
    podman run -d --name ${name} --hostname ${host} --ip ${IP} --mac-address ${MAC} --tmpfs /tmp --tmpfs /var ${[...env, ...notes].join(" ")} \
      -v /tmp/c1:/lab -v /usr:/usr:ro,bind -v /cryoshim/test/support:/support:ro localhost/busybox \
      /usr/lib64/ld-linux-x86-64.so.2 --library-path /usr/lib/x86_64-linux-gnu /usr/bin/python3 /support/secrets.py /lab/ready \
      ${secrets("argv", 20).join(" ")} >/dev/null
    (until_true test -e c1/ready) || { podman logs ${name}; exit 1; }
    podman container checkpoint --tcp-established --compress gzip --export /scratch/in.tar.gz ${name} >/dev/null || {
      grep -h Error /var/lib/containers/storage/overlay-containers/*/userdata/dump.log; exit 1; }
    cd /scratch
    /cryoshim/dist/cli.js crit anonymise in.tar.gz out.tar.gz --report report.json >report.txt
    /cryoshim/dist/cli.js show out.tar.gz >/dev/null
    for each in in out; do
      mkdir /tmp/$each; tar xzf $each.tar.gz -C /tmp/$each
      python3 /cryoshim/test/support/pycriu-decode.py /tmp/$each/checkpoint >$each.json 2>/dev/null
    done
    [ "$(stat -c %a out.tar.gz)" = 600 ]`,
    { LAB_SCRATCH: scratch },
  );
});

test("no secret is in the copy in any encoding, and all are in the checkpoint", async () => {
  const before = await contents(join(scratch, "in.tar.gz"));
  const words = [...all(outside), ...all(memory)];
  expect(words.length).toBeGreaterThan(200);
  expect(foundIn(before, words)).toEqual(words);
  expect(addresses(before)).toEqual([IP, MAC]);
  const notMemory = before.filter(({ name }) => !/^pages-|^archive$/.test(name));
  expect(foundIn(notMemory, all(outside))).toEqual(all(outside));
  const after = await contents(join(scratch, "out.tar.gz"));
  expect(foundIn(after, words)).toEqual([]);
  expect(addresses(after)).toEqual([]);
  // Nothing was proved of what is not in the copy.
  const names = (files: { name: string }[]): string[] => files.map(({ name }) => name).sort();
  expect(names(after)).toEqual(names(before).filter((name) => !["ctr.log"].includes(name)));
  for (const report of ["report.json", "report.txt"])
    expect(foundIn([{ name: report, bytes: readFileSync(join(scratch, report)) }], words)).toEqual([]);
});

interface Decoded {
  entries: Record<string, unknown>[];
}
test("CRIU's own crit decodes the copy: the same images, entries, tasks, mappings and pages", () => {
  const read = (name: string): Record<string, { plain: string }> =>
    JSON.parse(readFileSync(join(scratch, name), "utf8"));
  const [before, after] = [read("in.json"), read("out.json")];
  const entries = (of: typeof before, name: string) => (JSON.parse(of[name]!.plain) as Decoded).entries;
  expect(Object.keys(after)).toEqual(Object.keys(before));
  expect(Object.keys(after).length).toBeGreaterThan(20);
  for (const name of Object.keys(before)) expect(entries(after, name).length, name).toBe(entries(before, name).length);
  for (const name of Object.keys(before).filter((each) => /^(pstree|pagemap|ids|fdinfo)/.test(each)))
    expect(after[name]!.plain, name).toBe(before[name]!.plain);
  for (const name of Object.keys(before).filter((each) => /^mm-/.test(each)))
    expect(entries(after, name)[0]!.vmas, name).toEqual(entries(before, name)[0]!.vmas);
});

test("a network namespace that CRIU saves: interfaces, addresses, routes, rules, filters", async () => {
  const words = secrets("netns", 4);
  const [table, chain, link, host] = words as [string, string, string, string];
  const said = await holds(
    `cat >net <<'END'
set -e
ip link set lo up; ip link add ${link} type veth peer name peer0; ip link set ${link} address ${MAC} up; ip link set peer0 up
ip address add ${IP}/24 dev ${link}; ip -6 address add fd5a:c371::c9/64 dev ${link} nodad
ip route add 10.92.0.0/16 via 10.88.37.77; ip rule add from ${IP} table 77
iptables-legacy -N ${chain}; iptables-legacy -A ${chain} -s ${IP} -i ${link} -j ACCEPT || true
nft add table inet ${table}; nft "add chain inet ${table} ${chain}"; nft "add rule inet ${table} ${chain} ip saddr ${IP} counter drop"
hostname ${host}
touch ready; exec sleep 1000
END
    setsid unshare --net --uts sh net </dev/null >log 2>&1 & pid=$!
    (until_true test -e ready) || { cat log; exit 1; }
    mkdir i; criu dump -t $pid -D /tmp/i -o dump.log -v4 --shell-job || { grep Error i/dump.log; exit 1; }
    cryoshim crit anonymise i o >report
    for each in i o; do
      echo "== $each"; (cd $each; ls; grep -aliE '${words.join("|")}|${IP}|fd5a:c371' * || true)
      cryoshim show $each | wc -l
    done`,
  );
  const [, before, after] = said.split(/^== .$/m).map((part) => part.trim().split("\n"));
  const files = (lines: string[] | undefined): string[] =>
    (lines ?? []).filter((line) => /\.(img|log|json)$|^stats/.test(line));
  // Each name is listed once, and once more where a secret is found.
  const twice = (lines: string[]): string[] => lines.filter((line, at) => lines.indexOf(line) !== at);
  expect(twice(files(before))).toEqual(expect.arrayContaining(["dump.log"]));
  for (const name of [/^netdev-/, /^nftables-/, /^utsns-/])
    expect(
      twice(files(before)).some((each) => name.test(each)),
      String(name),
    ).toBe(true);
  expect(twice(files(after))).toEqual([]);
  expect(files(after)).toEqual([...new Set(files(before))]);
  expect(after!.at(-1)).toBe(before!.at(-1));
});

test.each(["runc", "crun"])(
  "what %s checkpoints can be anonymised, and shows as many tasks, files and pages",
  async (runtime) => {
    await holds(`
mkdir -p l i; LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "$counter"
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; counting l
${runtime} checkpoint --image-path /tmp/i --work-path /tmp/i c1
cryoshim crit anonymise i o >report
for each in i o; do
  for what in ps fds mems; do cryoshim crit x $each $what | wc -l; done
done >counts
[ "$(head -3 counts)" = "$(tail -3 counts)" ]; [ "$(head -1 counts)" -gt 1 ]
grep -q "/lab" i/dump.log; ! grep "/lab" o/dump.log; grep -q "Dumping finished successfully" o/dump.log`);
  },
);

test("what LXC checkpoints can be anonymised", async () => {
  await holds(`
lab-lxc-create c1 sh /lab/counter
l=/var/lib/lxc/c1/rootfs/lab; mkdir -p $l d; echo "$counter" >$l/counter
lxc-start -d -n c1; counting $l
lxc-checkpoint -n c1 -D /tmp/d -s; cryoshim crit anonymise d o >report
[ "$(cryoshim crit x d ps | wc -l)" = "$(cryoshim crit x o ps | wc -l)" ]`);
});
