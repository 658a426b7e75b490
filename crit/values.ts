// SPDX-License-Identifier: Apache-2.0
// Values of a decoded message, as what they are used for; what is not there is nothing.
import { strayString } from "./json/escape.js";
import type { Message } from "./message.js";

export const num = (message: Message | undefined, field: string): number => Number(message?.[field] ?? 0);
export const child = (message: Message | undefined, field: string): Message | undefined =>
  message?.[field] as Message | undefined;
export const list = (message: Message | undefined, field: string): Message[] => (message?.[field] ?? []) as Message[];
/** A string of a message, as text also when it is no UTF-8. */
export const str = (message: Message | undefined, field: string): string => {
  const value = message?.[field];
  return value instanceof Uint8Array ? strayString(value) : String(value ?? "");
};
