// SPDX-License-Identifier: Apache-2.0
// What becomes of each file of a checkpoint, by its name. A name that is not here is dropped with its contents.
import { rawContents } from "../raw.js";
import { isDump } from "./dumps.js";

/** rules: an image. zeros: as long as it was. archive: a tar's names, and zeros. netlink, log, iptables, nftables, json: each
 * by its own rules. drop: left out. */
export type Fate = "rules" | "zeros" | "archive" | "netlink" | "log" | "iptables" | "nftables" | "json" | "drop";

const STEMS =
  "inventory fdinfo pagemap pagemap-shmem reg-files ext-files ns-files eventfd eventpoll eventpoll-tfd signalfd inotify " +
  "inotify-wd fanotify fanotify-mark core ids mm vmas pipes pipes-data fifo fifo-data pstree sigacts unixsk inetsk " +
  "packetsk netlinksk sk-queues itimers posix-timers creds utsns ipcns-var ipcns-shm ipcns-msg ipcns-sem fs remap-fpath " +
  "ghost-file tcp-stream mountpoints netdev netns tty tty-info tty-data filelocks rlimit signal-s signal-p tunfile " +
  "cgroup timerfd cpuinfo userns seccomp binfmt-misc autofs files memfd timens pidns bpfmap-file bpfmap-data apparmor pidfd " +
  "cryoshim cryoshim-mqueue cryoshim-udp cryoshim-detached cryoshim-uring cryoshim-remote cryoshim-pidfd";
const IMAGE = new RegExp(
  `^((${STEMS.split(" ").join("|")})(-[0-9a-f]{1,16}){0,2}\\.img|stats-(dump|restore)|irmap-cache)$`,
);

const FATES: readonly [RegExp, Fate][] = [
  [/^pages-(shmem-)?\d{1,12}\.img$/, "zeros"],
  [/^(tmpfs-(dev-)?\d{1,12}\.tar\.gz\.img|rootfs-diff\.tar|devshm-checkpoint\.tar)$/, "archive"],
  [/^(ifaddr|route6?|rule|netns-(ct|exp))-\d{1,12}\.img$/, "netlink"],
  [/^ip6?tables-\d{1,12}\.img$/, "iptables"],
  [/^nftables-\d{1,12}\.img$/, "nftables"],
  [/^(dump|pre-dump|restore|criu|cryoshim|page-server|lazy-pages)\.log$/, "log"],
];

export const fateOf = (name: string): Fate => {
  const [, fate] = FATES.find(([pattern]) => pattern.test(name)) ?? [];
  if (fate !== undefined) return fate;
  if (isDump(name)) return "json";
  return rawContents(name) === undefined && IMAGE.test(name) ? "rules" : "drop";
};

const DROPPED = /^([\w-]+\.log)$/;

/** A name that may stand in the report: not one that somebody chose. */
export const nameable = (name: string): boolean => fateOf(name) !== "drop" || DROPPED.test(name);
