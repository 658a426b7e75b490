// SPDX-License-Identifier: Apache-2.0
import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

// What every other end-to-end test, and other projects' suites, rely on. Bare: this must hold before cryoshim is built.

const root = new URL("../..", import.meta.url).pathname;
const scratch = mkdtempSync(join(tmpdir(), "cryoshim-lab-test-"));

interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

interface Running {
  child: ChildProcess;
  said: (line: string) => Promise<void>;
  ended: Promise<Ended>;
}

function start(command: string[], env: Record<string, string> = {}, program = ["test/lab/lab", "--bare"]): Running {
  const [file, ...args] = [...program, ...command];
  const child = spawn(file as string, args, { cwd: root, env: { ...process.env, ...env }, stdio: "pipe" });
  const output = { stdout: "", stderr: "" };
  child.stdout.on("data", (data) => {
    output.stdout += data;
  });
  child.stderr.on("data", (data) => {
    output.stderr += data;
  });
  const ended = new Promise<Ended>((resolve) => child.on("close", (code) => resolve({ code, ...output })));
  async function said(line: string): Promise<void> {
    while (!output.stdout.includes(line)) {
      if (child.exitCode !== null) throw new Error(`ended before it said ${line}: ${output.stderr}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
  return { child, said, ended };
}

async function lab(command: string[], env: Record<string, string> = {}, input = ""): Promise<Ended> {
  const { child, ended } = start(command, env);
  child.stdin?.end(input);
  return await ended;
}

// The lab's own cgroups, wherever below the machine's hierarchies they are.
function labCgroups(directory = "/sys/fs/cgroup", depth = 4): string[] {
  return readdirSync(directory, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .flatMap(({ name }) => {
      const path = join(directory, name);
      if (name.startsWith("cryoshim-lab-")) return [path];
      return depth > 0 ? labCgroups(path, depth - 1) : [];
    });
}

function processesWith(word: string): string[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, "latin1").includes(word);
      } catch {
        return false; // it has just ended
      }
    });
}

// Other labs may run at the same time, and come and go: ours is known by the pid in its cgroups' names.
const cgroupsOf = (child: ChildProcess): string[] => labCgroups().filter((path) => path.endsWith(`-${child.pid}`));

beforeAll(async () => {
  const { code, stderr } = await lab(["true"]); // makes the file system if there is none
  expect(stderr.includes("cannot"), stderr).toBe(false);
  expect(code).toBe(0);
});

afterAll(() => rmSync(scratch, { recursive: true, force: true }));

describe("the lab", () => {
  test("is Debian 13 with CRIU 4.2, and says which of the two labs it is", async () => {
    const { stdout } = await lab(["sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME; criu --version; echo $LAB"]);
    expect(stdout).toMatch(/^trixie\nVersion: 4\.2\S*\n[\s\S]*bare\n$/);
  });

  test("passes the exit code on", async () => {
    expect((await lab(["sh", "-c", "exit 42"])).code).toBe(42);
  });

  test("ends with 128 and the signal's number when a signal ended the command", async () => {
    expect((await lab(["sh", "-c", "kill -KILL $$"])).code).toBe(137);
  });

  test("says 127 for a command that is not there", async () => {
    const { code, stderr } = await lab(["no-such-command"]);
    expect(code).toBe(127);
    expect(stderr).toContain("cannot run no-such-command");
  });

  test("passes stdin, stdout and stderr, and arguments unchanged", async () => {
    const { stdout, stderr } = await lab(
      ["sh", "-c", 'cat; printf "%s|" "$@" >&2', "sh", "a b", "", "$c"],
      {},
      "to be\nor not",
    );
    expect(stdout).toBe("to be\nor not");
    expect(stderr).toBe("a b||$c|");
  });

  test.each(["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"] as const)("passes %s to the command", async (signal) => {
    const name = signal.slice(3);
    const running = start(["sh", "-c", `trap 'echo got; exit 7' ${name}; echo ready; while :; do sleep 0.05; done`]);
    await running.said("ready");
    running.child.kill(signal);
    expect(await running.ended).toMatchObject({ code: 7, stdout: "ready\ngot\n" });
  });

  test("started by npm, ends with the command that npm was told to end", async () => {
    const script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    const running = start(["sh", "-c", script], {}, ["npm", "run", "--silent", "lab:bare", "--"]);
    await running.said("ready");
    running.child.kill("SIGTERM");
    expect((await running.ended).code).toBe(7);
  });

  test("shows LAB_SCRATCH at /scratch, writable", async () => {
    const { code } = await lab(["sh", "-c", "cat /scratch/in > /scratch/out"], {
      LAB_SCRATCH: putInScratch("in", "seen"),
    });
    expect(code).toBe(0);
    expect(readFileSync(join(scratch, "out"), "utf8")).toBe("seen");
  });

  test("installs LAB_PACKAGES, and only for those who ask", async () => {
    const asked = await lab(["bc"], { LAB_PACKAGES: "bc" }, "6 * 7\n");
    expect(asked, asked.stderr).toMatchObject({ code: 0, stdout: "42\n" });
    expect((await lab(["bc"])).code).toBe(127);
  });

  test("has the machine's own Node, or the one that LAB_NODE names", async () => {
    expect((await lab(["node", "-p", "process.versions.node"])).stdout.split(".")[0]).toBe(
      process.versions.node.split(".")[0],
    );
    expect((await lab(["node", "-v"], { LAB_NODE: "24.21.0" })).stdout).toBe("v24.21.0\n");
  });

  test("keeps what is written to the working tree in memory", async () => {
    const { stdout } = await lab(["sh", "-c", "echo gone > /cryoshim/lab-was-here && cat lab-was-here"]);
    expect(stdout).toBe("gone\n");
    expect(readdirSync(root)).not.toContain("lab-was-here");
  });

  test("reaches no network, and sees no process of the machine", async () => {
    const { stdout } = await lab(["sh", "-c", "ls /sys/class/net; ip route; ls -d /proc/[0-9]* | wc -l"]);
    const lines = stdout.trim().split("\n");
    expect(lines[0]).toBe("lo");
    expect(lines).toHaveLength(2);
    expect(Number(lines[1])).toBeLessThan(6);
  });
});

describe("the lab leaves nothing behind:", () => {
  test("processes, cgroups, mounts and files of a command that left all of them", async () => {
    const word = `left-${process.pid}-by-the-lab`;
    const mounts = (): string[] =>
      readFileSync("/proc/self/mountinfo", "utf8")
        .split("\n")
        .filter((line) => / \/mnt | \S*cryoshim\S* /.test(line));
    const mounted = mounts();
    const files = readdirSync(tmpdir());
    const running = start([
      "sh",
      "-c",
      `for h in cpuset memory unified; do mkdir -p /sys/fs/cgroup/$h/a/b; done 2>/dev/null
       setsid sh -c 'sleep 10000; : ${word}' </dev/null >/dev/null 2>&1 &
       mount -t tmpfs tmpfs /mnt; touch /tmp/${word} /mnt/${word} /dev/shm/${word}; exit 3`,
    ]);
    expect((await running.ended).code).toBe(3);
    expect(processesWith(word)).toEqual([]);
    expect(cgroupsOf(running.child)).toEqual([]);
    expect(mounts()).toEqual(mounted);
    expect(readdirSync(tmpdir()).filter((name) => !files.includes(name) && name.includes(word))).toEqual([]);
    expect(readdirSync("/dev/shm").filter((name) => name.includes(word))).toEqual([]);
  });

  test("a process in a frozen cgroup does not hold it up", async () => {
    const running = start([
      "sh",
      "-c",
      `for h in freezer unified .; do
         cd /sys/fs/cgroup/$h 2>/dev/null || continue
         mkdir ice && { sleep 10000 & echo $! > ice/cgroup.procs; }
         echo FROZEN > ice/freezer.state 2>/dev/null; echo 1 > ice/cgroup.freeze 2>/dev/null
         cat ice/freezer.state ice/cgroup.events 2>/dev/null
         cd /
       done; true`,
    ]);
    expect((await running.ended).stdout).toMatch(/FROZEN|frozen 1/);
    expect(cgroupsOf(running.child)).toEqual([]);
  });

  test("when the lab itself is killed, its processes die and the next lab removes its cgroups", async () => {
    const word = `killed-${process.pid}-with-the-lab`;
    const running = start(["sh", "-c", `echo ready; sleep 10000; : ${word}`]);
    await running.said("ready");
    expect(cgroupsOf(running.child).length).toBeGreaterThan(0);
    running.child.kill("SIGKILL");
    await running.ended;
    await lab(["true"]);
    expect(processesWith(word)).toEqual([]);
    expect(cgroupsOf(running.child)).toEqual([]);
  });

  test("two labs at once do not see each other", async () => {
    const first = start([
      "sh",
      "-c",
      "mkdir /sys/fs/cgroup/memory/x; echo one > /tmp/x; echo ready; read wait; cat /tmp/x",
    ]);
    await first.said("ready");
    const second = await lab(["sh", "-c", "cat /tmp/x /sys/fs/cgroup/memory/x/tasks"]);
    expect(second.code).not.toBe(0);
    first.child.stdin?.end("\n");
    expect((await first.ended).stdout).toBe("ready\none\n");
  });
});

function putInScratch(name: string, content: string): string {
  mkdirSync(scratch, { recursive: true });
  writeFileSync(join(scratch, name), content);
  return realpathSync(scratch);
}
