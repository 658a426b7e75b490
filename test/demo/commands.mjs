// SPDX-License-Identifier: Apache-2.0
//
// Commands of the demonstration: run one, read what the workload says, tell a person.
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** PATH in which the distribution's criu comes first: the lab puts cryoshim into /usr/local/sbin. */
export const barePath = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin:/cryoshim/test/lab/bin";

/** Runs a command to its end; gives its output and milliseconds, throws with its messages when it fails. */
export function run(command, { bare = false, input } = {}) {
  const [program, ...args] = command;
  const start = performance.now();
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: [input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
      env: bare ? { ...process.env, PATH: barePath } : process.env,
    });
    let output = "";
    let messages = "";
    child.stdout.on("data", (data) => {
      output += data;
    });
    child.stderr.on("data", (data) => {
      messages += data;
    });
    if (input !== undefined) child.stdin.end(input);
    child.on("error", reject);
    // "exit", not "close": what stays behind in a container may hold the pipes open.
    child.on("exit", (code, signal) => {
      const time = performance.now() - start;
      if (code === 0) setImmediate(() => resolve({ output: output.trim(), time }));
      else setImmediate(() => reject(new Error(`${command.join(" ")}: exit ${code ?? signal}\n${messages}${output}`)));
    });
  });
}

/** What the workload says of itself: its count, its file's offset, the port of its one connection. */
export function status(directory) {
  const line = readFileSync(join(directory, "status"), "utf8");
  const [, count, offset, port] = /^count=(\d+) offset=(\d+) port=(\d+)$/m.exec(line) ?? [];
  if (count === undefined) throw new Error(`${directory}/status is not readable: ${line}`);
  return { count: Number(count), offset: Number(offset), port: Number(port) };
}

/** What the other end of the connection says: how many connections there ever were, and the bytes of all. */
export function served(directory) {
  const line = readFileSync(join(directory, "served"), "utf8");
  const [, connections, bytes] = /^connections=(\d+) bytes=(\d+)$/m.exec(line) ?? [];
  if (connections === undefined) throw new Error(`${directory}/served is not readable: ${line}`);
  return { connections: Number(connections), bytes: Number(bytes) };
}

/** Waits until the workload has counted on by `more`; throws with its own words if it stopped instead. */
export async function counted(directory, from, more = 100) {
  for (let tries = 0; tries < 1000; tries++) {
    if (existsSync(join(directory, "failure"))) {
      throw new Error(`the workload gave up: ${readFileSync(join(directory, "failure"), "utf8")}`);
    }
    if (existsSync(join(directory, "status")) && readFileSync(join(directory, "status"), "utf8") !== "") {
      const now = status(directory);
      if (now.count >= from + more) return now;
    }
    await sleep(10);
  }
  throw new Error(`the workload in ${directory} does not count on from ${from} (waited 10 s)`);
}

/** The longest pause of the workload that ended after `since` (milliseconds of the wall clock), in milliseconds. */
export function longestPause(directory, since) {
  const pauses = readFileSync(join(directory, "gaps"), "utf8")
    .trim()
    .split("\n")
    .map((line) => line.split(" ").map(Number))
    .filter(([end]) => end / 1000 > since)
    .map(([, length]) => length / 1000);
  return Math.max(0, ...pauses);
}

/** Every number from 1 to `count` stands in the file, once, in order: nothing was lost, repeated or overwritten. */
export function numbersAreWhole(directory, count) {
  const numbers = readFileSync(join(directory, "numbers"), "utf8").split("\n");
  for (let number = 1; number <= count; number++) {
    if (Number(numbers[number - 1]) !== number) return false;
  }
  return true;
}

/** Median of an odd number of measurements. */
export function median(values) {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
}
