# SPDX-License-Identifier: Apache-2.0
"""pycriu-decode.py DIR: what python3-pycriu decodes of each image in DIR, as JSON: {name: {mode: text}}."""

import json
import os
import sys

import pycriu

found = {}
for name in sorted(os.listdir(sys.argv[1])):
    for mode, pretty, nopl in (("plain", False, False), ("pretty", True, False), ("nopl", True, True)):
        with open(os.path.join(sys.argv[1], name), "rb") as image:
            try:
                decoded = pycriu.images.load(image, pretty, nopl)
            except Exception:  # an image without framing, of which there are some
                continue
        found.setdefault(name, {})[mode] = json.dumps(decoded, indent=4 if pretty else None)
json.dump(found, sys.stdout)
