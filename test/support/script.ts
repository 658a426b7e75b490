// SPDX-License-Identifier: Apache-2.0
import { execa } from "execa";

export interface LabRun {
  stdout: string;
  stderr: string;
  code: number | undefined;
}

export interface LabOptions {
  /** Without cryoshim: bare CRIU. */
  bare?: boolean;
  env?: Record<string, string>;
}

/** Runs a bash script in a lab of its own; `set -u` is on, a failing command does not end it. */
export const inLab = async (script: string, { bare = false, env = {} }: LabOptions = {}): Promise<LabRun> => {
  const { stdout, stderr, exitCode } = await execa("test/lab/lab", [...(bare ? ["--bare"] : []), "bash", "-us"], {
    input: `${PRELUDE}\n${script}`,
    env: { ...env, NODE_EXTRA_CA_CERTS: undefined },
    reject: false,
  });
  return { stdout, stderr, code: exitCode };
};

/** Shell functions that the scripts share. */
const PRELUDE = `
# A program that counts into a file: its number only grows while it is the same program.
counter='i=0; while :; do i=$((i+1)); echo $i > /cnt; sleep 0.02; done'
# number COMMAND...: the number that it prints. A counter's file is empty for a moment each time.
number() {
	local n try
	for ((try = 0; try < 200; try++)); do
		n=$("$@") && [ -n "$n" ] && break
		sleep 0.05
	done
	echo "\${n:-0}"
}
# goes_on BEFORE COMMAND...: the counter that COMMAND prints has passed BEFORE and still moves.
goes_on() {
	local before=$1 now later try; shift
	now=$(number "$@")
	for ((try = 0; try < 100; try++)); do
		sleep 0.1; later=$(number "$@")
		[ "$later" -gt "$now" ] && break
	done
	if [ "$now" -ge "$before" ] && [ "$later" -gt "$now" ]; then echo "goes on"; else echo "LOST: $before $now $later"; fi
}
left_behind() {
	ps -eo args | grep -E '[s]him\\.cjs|[c]riu (swrk|dump|restore)' && echo "LEFT processes"
	ls /run/cryoshim 2>/dev/null | grep -vE '^(launch|plugins|probe|bin|btf-ids|code|locks)$' && echo "LEFT state"
	grep -s . /sys/fs/cgroup/*/freezer.state /sys/fs/cgroup/freezer/*/freezer.state | grep -v THAWED && echo "LEFT frozen"
	find /sys/fs/cgroup -name cgroup.freeze -exec grep -l 1 {} + 2>/dev/null && echo "LEFT frozen"
	true
}
`;
