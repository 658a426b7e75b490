// SPDX-License-Identifier: Apache-2.0
export { decode, encode, type Message, message, type Schema, UNKNOWN, type Value } from "./message.js";
export { criuOpts, criuReq, criuResp } from "./schema/rpc.js";
