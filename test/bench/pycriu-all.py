# SPDX-License-Identifier: Apache-2.0
"""Decodes all images of a directory with CRIU's own Python library, in one process: the best case of its crit."""

import json
import os
import sys

import pycriu

for name in os.listdir(sys.argv[1]):
    with open(os.path.join(sys.argv[1], name), "rb") as image:
        try:
            decoded = pycriu.images.load(image, len(sys.argv) > 3)
        except pycriu.images.MagicException:  # no image
            continue
    with open(os.path.join(sys.argv[2], name + ".json"), "w") as out:
        json.dump(decoded, out)
