// SPDX-License-Identifier: Apache-2.0

/** How often a scenario that fails is tried again: on a busy machine the runtimes themselves race (docs/testing.md). */
export const RETRIES = process.env.CI ? 2 : 0;
