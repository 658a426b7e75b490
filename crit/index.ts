// SPDX-License-Identifier: Apache-2.0
export { type Checkpoint, openCheckpoint } from "./checkpoint.js";
export { decodeImage, type Entry, encodeImage, type Image, identify, KINDS, type KindName } from "./image.js";
export type { Kind } from "./kind.js";
export { decode, encode, type Message, message, type Schema, UNKNOWN, type Value } from "./message.js";
export { type Overview, overview, type Task } from "./overview.js";
export { rawContents } from "./raw.js";
export { FILE_TYPES } from "./schema/files.js";
export { criuOpts, criuReq, criuResp } from "./schema/rpc.js";
