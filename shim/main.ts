// SPDX-License-Identifier: Apache-2.0
import { main } from "./cli.js";

await main(process.argv);
