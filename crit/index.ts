// SPDX-License-Identifier: Apache-2.0
export { decodeImage, type Entry, encodeImage, type Image, identify, KINDS, type KindName } from "./image.js";
export { decode, encode, type Message, message, type Schema, UNKNOWN, type Value } from "./message.js";
export { FILE_TYPES } from "./schema/files.js";
export { criuOpts, criuReq, criuResp } from "./schema/rpc.js";
