# SPDX-License-Identifier: Apache-2.0
"""measure.py RUNS CMD...: runs a command, prints {"ms": median, "mib": largest resident memory} as JSON."""

import json
import os
import statistics
import subprocess
import sys
import time

times, most = [], 0
for _ in range(int(sys.argv[1])):
    start = time.monotonic()
    child = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    times.append((time.monotonic() - start) * 1000)
    if status != 0:
        sys.exit(f"measure: {sys.argv[2:]} ended with {status}")
    most = max(most, usage.ru_maxrss)
print(json.dumps({"ms": statistics.median(times), "mib": most / 1024}))
