// SPDX-License-Identifier: Apache-2.0
// Archives of podman, and of Kubernetes as CRI-O lays them out, with real images in them: told as checkpointctl tells them.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { openCheckpoint } from "../../crit/checkpoint.js";
import { type Details, details } from "../../crit/details.js";
import { type Listed, listCheckpoints } from "../../crit/list.js";
import { memorySizes } from "../../crit/memory.js";
import { dumpTask } from "../../crit/region.js";
import { type Hit, search } from "../../crit/search.js";
import { treeOf } from "../../crit/tasks.js";
import { size } from "../../crit/text.js";
import { show } from "../../shim/commands/show.js";
import { holds } from "../support/lab.js";
import { beforeTests } from "../support/once.js";

/** What CRI-O notes of a container, and how its kubelet names the archive. */
const NOTES = {
  "io.container.manager": "cri-o",
  "io.kubernetes.cri-o.Metadata": '{"name":"counter","attempt":1}',
  "io.kubernetes.cri-o.Created": "2026-11-24T05:00:00.5Z",
  "io.kubernetes.cri-o.IP.0": "10.85.0.7",
  "io.kubernetes.cri-o.Labels": '{"app":"counter"}',
  "io.kubernetes.pod.name": "counters",
  "io.kubernetes.pod.namespace": "default",
};
const CRIO = "checkpoint-counters_default-counter-2026-11-24T05:10:00Z.tar";
const ARCHIVES = { Podman: "podman.tar", "CRI-O": CRIO };

let scratch = "";
beforeTests(async (directory) => {
  scratch = directory;
  await holds(
    `lab-podman-image >/dev/null
    mkdir s c; cp /cryoshim/build/workloads/workload s; cp /cryoshim/build/workloads/workload c
    podman run -d --name s -v /tmp/s:/lab localhost/busybox /lab/workload serve 7000 /lab >/dev/null
    address=$(podman inspect s --format '{{.NetworkSettings.IPAddress}}')
    podman run -d --name c -e "WORD=a b" -v /tmp/c:/lab localhost/busybox sh -c "touch /changed; /lab/workload count $address 7000 /lab & wait" >/dev/null
    until_true test -s c/numbers
    podman container checkpoint --tcp-established --compress none -e /scratch/podman.tar c >/dev/null
    mkdir crio; tar -C crio -xf /scratch/podman.tar; cd crio
    # checkpointctl 1.3 knows only the numbers of pages that CRIUs before 4.2 wrote.
    for image in checkpoint/pagemap-*.img; do
      crit decode -i $image | jq '.entries[1:] |= map(.compat_nr_pages = .nr_pages | del(.nr_pages))' | crit encode -o $image
    done
    tar -cf /scratch/podman.tar *
    jq --argjson notes "$NOTES" '.annotations = $notes' spec.dump >spec && mv spec spec.dump
    jq '{id, name: "k8s_counter_counters_default_1", rootfsImageName, rootfsImageRef: .rootfsImage, runtime,
      createdTime, checkpointedTime, restored: false}' config.dump >config && mv config config.dump
    rm -rf network.status devshm-checkpoint.tar; echo log >io.kubernetes.cri-o.LogPath; echo '[]' >bind.mounts; touch dump.log
    tar -cf "/scratch/${CRIO}" stats-dump dump.log checkpoint config.dump spec.dump bind.mounts rootfs-diff.tar io.kubernetes.cri-o.LogPath
    cd /scratch
    for archive in podman.tar "${CRIO}"; do
      checkpointctl inspect --stats --mounts --ps-tree-cmd --ps-tree-env --files --sockets --format json "$archive" >"$archive.json"
      checkpointctl memparse "$archive" >"$archive.sizes"
    done
    cp podman.tar checkpoint-podman.tar; checkpointctl list /scratch >list; rm checkpoint-podman.tar
    pid=$(jq '.[0].process_tree.pid' podman.tar.json)
    checkpointctl memparse --search WORD= --pid "$pid" podman.tar >found
    checkpointctl memparse --pid "$pid" -o dump podman.tar >/dev/null`,
    { LAB_SCRATCH: scratch, LAB_PACKAGES: "jq", NOTES: JSON.stringify(NOTES) },
  );
});

/** What checkpointctl prints with --format json, as far as it is compared. */
interface Theirs {
  container_name: string;
  image: string;
  id: string;
  runtime: string;
  engine: string;
  ip?: string;
  checkpoint_size: { memory_pages_size: number; root_fs_diff_size: number };
  statistics: Record<
    "freezing_time" | "frozen_time" | "memdump_time" | "memwrite_time" | "pages_scanned" | "pages_written",
    number
  >;
  process_tree: Tree;
  file_descriptors: { pid: number; open_files: { type: string; fd: string; path: string }[] }[];
  sockets: {
    pid: number;
    open_sockets?: { protocol: string; data: { src?: string; src_port?: number; dst?: string; send_buf?: string } }[];
  }[];
  mounts: { destination: string; type: string; source: string }[];
}
interface Tree {
  pid: number;
  command: string;
  cmdline?: string;
  environment_variables?: Record<string, string>;
  children?: Tree[];
}
const text = (name: string): string => readFileSync(join(scratch, name), "utf8");
const flat = (tree: Tree): Tree[] => [tree, ...(tree.children ?? []).flatMap(flat)];

describe.each(Object.entries(ARCHIVES))("an archive of %s", (engine, archive) => {
  let ours: Details;
  let theirs: Theirs;
  beforeEach(async () => {
    ours = await details(await openCheckpoint(join(scratch, archive)), { commands: true, environment: true });
    theirs = (JSON.parse(text(`${archive}.json`)) as Theirs[])[0]!;
  });

  test("the container is the same, and its sizes and times", () => {
    const { container: c, bytes, times, pages } = ours;
    expect(c?.engine).toBe(engine);
    expect([c?.name, c?.image, c?.id, c?.runtime, c?.engine]).toEqual([
      theirs.container_name,
      theirs.image,
      theirs.id,
      theirs.runtime,
      theirs.engine,
    ]);
    expect([bytes.pages, bytes.rootfsDiff]).toEqual([
      theirs.checkpoint_size.memory_pages_size,
      theirs.checkpoint_size.root_fs_diff_size,
    ]);
    expect({ ...times, ...pages }).toMatchObject({
      freezing: theirs.statistics.freezing_time / 1000,
      frozen: theirs.statistics.frozen_time / 1000,
      memoryDump: theirs.statistics.memdump_time / 1000,
      memoryWrite: theirs.statistics.memwrite_time / 1000,
      scanned: theirs.statistics.pages_scanned,
      written: theirs.statistics.pages_written,
    });
  });

  test("its tasks have the same command lines and environments", () => {
    const told = treeOf(ours.tasks).map(({ task }) => [
      task.pid,
      task.comm,
      task.command?.join(" "),
      [...(task.environment ?? [])].sort(),
    ]);
    const tree = flat(theirs.process_tree);
    expect(told).toEqual(
      tree.map((t) => [
        t.pid,
        t.command,
        t.cmdline?.trimEnd(),
        Object.entries(t.environment_variables ?? {})
          .map(([key, value]) => `${key}=${value}`)
          .sort(),
      ]),
    );
    expect(tree.length).toBeGreaterThan(1);
    expect(told[0]?.[3]).toContain("WORD=a b");
    expect(new Set(ours.tasks.map(({ state }) => state))).toEqual(new Set(["Alive"]));
  });

  test("each descriptor is the same, and each socket with its buffers", () => {
    for (const { pid, open_files } of theirs.file_descriptors) {
      const task = ours.tasks.find((each) => each.pid === pid)!;
      // cwd and root have no number with them.
      const numbered = open_files.filter(({ fd }) => /\d$/.test(fd));
      expect(task.descriptors.map(({ fd, type, what }) => [`${type} ${fd}`, type === "REG" ? what : ""])).toEqual(
        numbered.map(({ fd, type, path }) => [fd.replace(/ +/, " "), type === "REG" ? path : ""]),
      );
      expect([task.cwd, task.root]).toEqual(
        ["cwd", "root"].map((what) => open_files.find(({ fd }) => fd.trim() === what)?.path),
      );
    }
    const inet = theirs.sockets.flatMap(({ open_sockets = [] }) => open_sockets).filter(({ data }) => data.dst);
    expect(inet).toHaveLength(1);
    const found = ours.sockets.filter(({ kind }) => kind.startsWith("tcp"));
    expect(found.map(({ local, state, buffers }) => [local, state, size(buffers.send)])).toEqual(
      inet.map(({ data }) => [`${data.src}:${data.src_port}`, "ESTABLISHED", data.send_buf?.replace("KB", "KiB")]),
    );
  });

  test("its memory has the same sizes", async () => {
    const sizes = memorySizes(await openCheckpoint(join(scratch, archive)));
    const rows = [...text(`${archive}.sizes`).matchAll(/^\| +(\d+) \| (\S+) +\| (\S+ \S+) /gm)];
    expect(sizes.map((of) => [String(of.pid), of.comm, size(of.own)])).toEqual(
      rows.map(([, pid, name, own]) => [pid, name, own]),
    );
  });
});

test("what a runtime notes and mounts in Kubernetes is shown", async () => {
  const screen = await show(join(scratch, CRIO), { all: true });
  expect(screen).toMatch(/^container +counter$/m);
  expect(screen).toMatch(/^pod +default\/counters$/m);
  expect(screen).toMatch(/^address +10\.85\.0\.7$/m);
  expect(screen).toMatch(/^io\.kubernetes\.cri-o\.Labels:\n {2}app: counter$/m);
  expect(screen).toMatch(/^MOUNTED ON/m);
});

test("what is found in memory is found at the same places, and a dump of a task has the same bytes", async () => {
  const checkpoint = await openCheckpoint(join(scratch, "podman.tar"));
  const { pid } = memorySizes(checkpoint)[0]!;
  const hits: Hit[] = [];
  await search(checkpoint, "WORD=", { pid }, (hit) => hits.push(hit));
  const theirs = [...text("found").matchAll(/^\| ([0-9a-f]{16}) \|/gm)].map(([, address]) => BigInt(`0x${address}`));
  expect(theirs.length).toBeGreaterThan(0);
  expect(hits.map(({ address }) => BigInt(address))).toEqual(theirs);
  const lines: string[] = [];
  await dumpTask(checkpoint, pid, (line) => lines.push(line));
  // Theirs says every line in a file; ours leaves out those that are the same.
  const rows = new Map(
    [...text("dump").matchAll(/^([0-9a-f]{16}) +((?:[0-9a-f]{2} ){16})/gm)].map(([, a, b]) => [a, b]),
  );
  const own = lines
    .filter((line) => line !== "*")
    .map((line): [string, string] => {
      const [address = "", ...bytes] = line.slice(0, 62).trim().split(/ +/);
      return [address.padStart(16, "0"), `${bytes.join(" ")} `];
    });
  expect(own.length).toBeGreaterThan(100);
  for (const [address, bytes] of own) expect(rows.get(address), address).toBe(bytes);
});

test("a directory's checkpoints are listed, and what is none is named", async () => {
  const listed: Listed[] = await listCheckpoints([scratch]);
  const crio = listed.find(({ path }) => path.endsWith(CRIO));
  expect(crio?.container).toMatchObject({ namespace: "default", pod: "counters", name: "counter", engine: "CRI-O" });
  expect(text("list")).toMatch(/default +\| counters +\| counter +\| CRI-O/);
  expect(listed.find(({ path }) => path.endsWith("podman.tar"))?.container?.name).toBe("c");
});
