// SPDX-License-Identifier: Apache-2.0
// A web server for /lab/files, and its client:
//
//	uring-serve.js serve PORT
//	uring-serve.js fetch ADDRESS PORT STATE
//
// With UV_USE_IO_URING=1 Node (libuv) reads files by io_uring. The client fetches one file after the other over one connection, until
// STATE/stop is there, and compares each with what must be in it. STATE/fetched counts; STATE/ended says "done", or what was wrong.
const { createHash } = require("node:crypto");
const { createReadStream, existsSync, mkdirSync, promises, renameSync, writeFileSync } = require("node:fs");
const http = require("node:http");

const FILES = 16;

/** What file `i` holds: of another length each, and nowhere the same. */
const contents = (i) => {
  const parts = [];
  for (let n = 0; n < 4000 + 500 * i; n++) parts.push(createHash("sha256").update(`${i} ${n}`).digest());
  return Buffer.concat(parts);
};

const serve = async (port) => {
  mkdirSync("/lab/files");
  for (let i = 0; i < FILES; i++) await promises.writeFile(`/lab/files/${i}`, contents(i));
  const server = http.createServer(async (request, response) => {
    const name = `/lab${request.url}`;
    const { size } = await promises.stat(name);
    response.setHeader("Content-Length", size);
    // Read whole, or in pieces while it is sent.
    if (size % 64 === 0) response.end(await promises.readFile(name));
    else createReadStream(name).pipe(response);
  });
  server.keepAliveTimeout = 0;
  server.listen(port, "0.0.0.0", () => writeFileSync("/lab/serving", ""));
};

const get = (agent, options) =>
  new Promise((resolve, reject) => {
    const request = http.get({ agent, ...options }, (response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () => resolve(Buffer.concat(parts)));
      response.on("error", reject);
    });
    request.on("error", reject);
  });

const fetchAll = async (host, port, state) => {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const ports = new Set();
  agent.on("free", ({ localPort }) => ports.add(localPort));
  let fetched = 0;
  try {
    const wanted = Array.from({ length: FILES }, (_, i) => contents(i));
    for (; !existsSync(`${state}/stop`); fetched++) {
      const i = fetched % FILES;
      const got = await get(agent, { host, port, path: `/files/${i}` });
      if (!got.equals(wanted[i])) throw new Error(`file ${i} is wrong, the ${fetched}th`);
      writeFileSync(`${state}/fetched.new`, `${fetched}\n`);
      renameSync(`${state}/fetched.new`, `${state}/fetched`);
    }
    if (ports.size !== 1) throw new Error(`it took ${ports.size} connections`);
    writeFileSync(`${state}/ended`, "done");
  } catch (error) {
    writeFileSync(`${state}/ended`, `BAD ${error.stack}`);
  }
  agent.destroy();
};

const [role, ...rest] = process.argv.slice(2);
if (role === "serve") void serve(Number(rest[0]));
else void fetchAll(...rest);
