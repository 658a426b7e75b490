// SPDX-License-Identifier: Apache-2.0
// Files are written, read back and compared, sixteen at a time, until /lab/go is there. With UV_USE_IO_URING=1 Node (libuv) does so
// by io_uring. /lab/rounds counts; /lab/done says "done", or what was wrong.
const { existsSync, promises: fs, writeFileSync } = require("node:fs");

let rounds = 0;

const one = async (i) => {
  const data = Buffer.alloc(65536 + i * 1000, rounds + i);
  const name = `/lab/d/f${i}`;
  const file = await fs.open(name, "w+");
  await file.write(data, 0, data.length, 0);
  await file.datasync();
  const back = Buffer.alloc(data.length);
  await file.read(back, 0, back.length, 0);
  await file.close();
  const { size } = await fs.stat(name);
  if (!back.equals(data) || !(await fs.readFile(name)).equals(data) || size !== data.length)
    throw new Error(`file ${i} in round ${rounds}`);
};

const main = async () => {
  await fs.mkdir("/lab/d");
  while (!existsSync("/lab/go")) {
    await Promise.all(Array.from({ length: 16 }, (_, i) => one(i)));
    rounds++;
    writeFileSync("/lab/rounds", String(rounds));
  }
  writeFileSync("/lab/done", "done");
};

main().catch((error) => writeFileSync("/lab/done", `BAD ${error.stack}`));
