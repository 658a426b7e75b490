// SPDX-License-Identifier: Apache-2.0
import {
  closeFd,
  isAgain,
  receiveMessage,
  type SocketMessage,
  sendMessage,
  watchReadable,
} from "../../native/index.js";

/** What one direction does with a message before it goes on; undefined: it has been sent already. */
export type Rewrite = (message: SocketMessage) => Buffer | undefined;

/**
 * Passes messages and their descriptors from one socket to another until the sender is gone; returns a function that
 * stops early. Each message is whole (SOCK_SEQPACKET), in order, and what is received here is closed here.
 */
export const relay = (from: number, to: number, rewrite: Rewrite, done: (error?: unknown) => void): (() => void) => {
  let stop: () => void = () => {};
  const finish = (error?: unknown): void => {
    stop();
    done(error);
  };
  stop = watchReadable(from, () => {
    let message: SocketMessage | undefined;
    try {
      message = receiveMessage(from);
    } catch (error) {
      if (!isAgain(error)) finish((error as { code?: string }).code === "ECONNRESET" ? undefined : error);
      return;
    }
    if (message === undefined) return finish();
    try {
      const data = rewrite(message);
      if (data !== undefined) sendMessage(to, data, message.fds);
    } catch (error) {
      return finish(error);
    } finally {
      for (const fd of message.fds) closeFd(fd);
    }
  });
  return stop;
};
