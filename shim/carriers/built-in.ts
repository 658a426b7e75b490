// SPDX-License-Identifier: Apache-2.0
// The carriers that cryoshim brings. Imported where they are needed only: most sessions end without.
import type { Settings } from "../engine/launch-file.js";
import type { Carrier } from "./carrier.js";
import { corkCarrier } from "./cork.js";
import { detachedCarrier } from "./detached.js";
import { mqueueCarrier } from "./mqueue.js";
import { pidfdCarrier } from "./pidfd.js";
import { remoteCarrier } from "./remote.js";
import { uringCarrier } from "./uring.js";
import { inFlightCarrier } from "./uring-inflight.js";

export const BUILT_IN: Record<string, (settings: Settings) => Carrier> = {
  mqueue: mqueueCarrier,
  "udp-cork": corkCarrier,
  detached: ({ detached }) => detachedCarrier(detached),
  pidfd: pidfdCarrier,
  remote: ({ remote }) => remoteCarrier(remote),
  "io-uring": ({ uring }) => uringCarrier(inFlightCarrier(uring)),
};
