# SPDX-License-Identifier: Apache-2.0
"""in-process.py DIR: what in-process.mjs does, with CRIU's own Python library."""

import io
import json
import os
import statistics
import sys
import time

import pycriu

images = []
for name in os.listdir(sys.argv[1]):
    with open(os.path.join(sys.argv[1], name), "rb") as image:
        data = image.read(1 << 20)
    if not name.startswith("pages-"):
        images.append(data)
times = []
for _ in range(7):
    start = time.perf_counter()
    for data in images:
        json.dumps(pycriu.images.load(io.BytesIO(data)))
    times.append((time.perf_counter() - start) * 1000)
print(json.dumps({"first": times[0], "again": statistics.median(times[1:])}))
