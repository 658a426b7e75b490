// SPDX-License-Identifier: Apache-2.0
// Files of a checkpoint that have no framing of CRIU's: what they hold, by name.

const RAW: readonly [RegExp, string][] = [
  [/^pages-(shmem-)?\d+\.img$/, "memory pages"],
  [/^tmpfs-(dev-)?\d+\.tar\.gz\.img$/, "tmpfs contents (tar, gzip)"],
  [/^ifaddr-\d+\.img$/, "network addresses (ip)"],
  [/^route6?-\d+\.img$/, "routes (ip)"],
  [/^rule-\d+\.img$/, "routing rules (ip)"],
  [/^iptables-\d+\.img$/, "packet filter rules (iptables)"],
  [/^ip6tables-\d+\.img$/, "packet filter rules (ip6tables)"],
  [/^nftables-\d+\.img$/, "packet filter rules (nftables)"],
  [/^netns-ct-\d+\.img$/, "connection tracking entries (netlink)"],
  [/^netns-exp-\d+\.img$/, "connection tracking expectations (netlink)"],
];

/** What a file without framing holds, by its name; undefined when it should be an image. */
export const rawContents = (name: string): string | undefined => RAW.find(([pattern]) => pattern.test(name))?.[1];
