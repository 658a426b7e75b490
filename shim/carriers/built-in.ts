// SPDX-License-Identifier: Apache-2.0
// The carriers that cryoshim brings. Imported where they are needed only: most sessions end without.
import type { Carrier } from "./carrier.js";
import { corkCarrier } from "./cork.js";
import { detachedCarrier } from "./detached.js";
import { mqueueCarrier } from "./mqueue.js";

export const BUILT_IN: Record<string, () => Carrier> = {
  mqueue: mqueueCarrier,
  "udp-cork": corkCarrier,
  detached: detachedCarrier,
};
