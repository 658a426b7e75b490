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

/** Who has gone, when a relay ends by itself. */
export type Gone = "sender" | "receiver";

export interface Relay {
  /** False once the sender is gone or stop() was called. */
  readonly relaying: boolean;
  stop(): void;
  /** Passes on what is there already. */
  drain(): void;
}

/**
 * Passes messages and their descriptors from one socket to another until one of the two is gone. Each message is whole
 * (SOCK_SEQPACKET), in order, and what is received here is closed here.
 */
export const relay = (from: number, to: number, rewrite: Rewrite, done: (gone: Gone) => void): Relay => {
  let relaying = true;
  const finish = (gone: Gone): void => {
    stop();
    done(gone);
  };
  /** Passes one message on; false when there is none. */
  const pass = (): boolean => {
    let message: SocketMessage | undefined;
    try {
      message = receiveMessage(from);
    } catch (error) {
      if (!isAgain(error)) finish("sender");
      return false;
    }
    if (message === undefined) {
      finish("sender");
      return false;
    }
    try {
      const data = rewrite(message);
      if (data !== undefined) sendMessage(to, data, message.fds);
      return true;
    } catch {
      finish("receiver");
      return false;
    } finally {
      for (const fd of message.fds) closeFd(fd);
    }
  };
  const unwatch = watchReadable(from, pass);
  const stop = (): void => {
    relaying = false;
    unwatch();
  };
  const drain = (): void => {
    while (relaying && pass());
  };
  return {
    get relaying() {
      return relaying;
    },
    stop,
    drain,
  };
};
