// SPDX-License-Identifier: Apache-2.0
// A client's request on its way to the engine: descriptor numbers are those of the client's table, and CRIU looks
// them up in /proc of its socket's peer (criu/cr-service.c:setup_opts_from_req), which is now this shim.
import { constants, openSync } from "node:fs";
import { closeFd, pidfdGetfd, pidfdOpen } from "../../native/index.js";

/** enum criu_req_type of rpc.proto. */
export const REQ = { dump: 1, restore: 2, preDump: 4, notify: 6, singlePreDump: 13 } as const;

/** enum criu_cg_mode of rpc.proto. */
export const CG_MODE = { ignore: 0, none: 1, props: 2, soft: 3, full: 4, strict: 5, default: 6 } as const;

/** What a decoded criu_opts has of interest here; every other field, known or not, stays as it came. */
export interface RequestOptions {
  images_dir_fd?: number;
  pid?: number;
  log_file?: string;
  work_dir_fd?: number;
  freeze_cgroup?: string;
  status_fd?: number;
  pidfd_store_sk?: number;
  leave_running?: boolean;
  leave_stopped?: boolean;
  tcp_established?: boolean;
  notify_scripts?: boolean;
  orphan_pts_master?: boolean;
  network_lock?: number;
  inherit_fd?: { key: string; fd: number }[];
  join_ns?: { ns: string; ns_file: string }[];
  manage_cgroups?: boolean;
  manage_cgroups_mode?: number;
  link_remap?: boolean;
  ext_mnt?: { key: string; val: string }[];
  external?: string[];
  empty_ns?: number;
}

/** Bytes that CRIU takes as they are, each a character. */
const latin = (text: string): string => Buffer.from(text, "utf8").toString("latin1");

/** The mounts of `--external mnt[WHAT]:AS` and `--ext-mount-map WHAT:AS`: what each is called on either side. */
export const givenMounts = (
  external: readonly string[],
  maps: readonly { key: string; val: string }[],
): Map<string, string> =>
  new Map([
    ...maps.map(({ key, val }): [string, string] => [latin(key), latin(val)]),
    ...external.flatMap((text): [string, string][] => {
      const [, key, value] = /^mnt\[([^\]]+)\](?::(.*))?$/s.exec(text) ?? [];
      return key === undefined ? [] : [[latin(key), latin(value ?? "")]];
    }),
  ]);

/** The descriptors of the client that a request names, opened here under numbers of our own. */
export interface Borrowed {
  images: number | undefined;
  work: number | undefined;
  /** Give them back once the engine has answered. */
  close(): void;
}

/**
 * Opens in this process what the request names in the client's table, and writes our numbers into it. Throws when one
 * cannot be had: then the engine alone must serve the client, and says why in its own words.
 */
export const borrow = (clientPid: number, opts: RequestOptions): Borrowed => {
  const held: number[] = [];
  const reopen = (fd: number, flags: number): number => {
    const own = openSync(`/proc/${clientPid}/fd/${fd}`, flags);
    held.push(own);
    return own;
  };
  const close = (): void => {
    for (const fd of held.splice(0)) closeFd(fd);
  };
  try {
    const dir = constants.O_RDONLY | constants.O_DIRECTORY;
    if (opts.images_dir_fd !== undefined && opts.images_dir_fd >= 0)
      opts.images_dir_fd = reopen(opts.images_dir_fd, dir);
    if (opts.work_dir_fd !== undefined) opts.work_dir_fd = reopen(opts.work_dir_fd, dir);
    if (opts.status_fd !== undefined) opts.status_fd = reopen(opts.status_fd, constants.O_WRONLY);
    if (opts.pidfd_store_sk !== undefined) {
      const pidfd = pidfdOpen(clientPid);
      held.push(pidfd);
      opts.pidfd_store_sk = pidfdGetfd(pidfd, opts.pidfd_store_sk);
      held.push(opts.pidfd_store_sk);
    }
  } catch (error) {
    close();
    throw error;
  }
  const images = opts.images_dir_fd !== undefined && opts.images_dir_fd >= 0 ? opts.images_dir_fd : undefined;
  return { images, work: opts.work_dir_fd ?? images, close };
};
