#!/usr/bin/env python3
"""Makes the SBOM of a commit out of what cargo-cyclonedx says: without the number that it draws and the path of the checkout, which would be
other ones each time, and with the commit's version and time. `scripts/sbom.py FILE ROOT VERSION SECONDS`, to standard output."""

import datetime
import json
import sys

file, root, version, seconds = sys.argv[1:]
with open(file, encoding="utf-8") as opened:
    text = opened.read().replace(root, "/usr/src/replicator")
bom = json.loads(text)
bom.pop("serialNumber", None)
time = datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc)
bom["metadata"]["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ")
bom["metadata"]["component"]["version"] = version
own = [component for component in bom["components"] if "licenses" not in component]
if own:
    sys.exit("sbom: these say no licence: " + ", ".join(component["name"] for component in own))
json.dump(bom, sys.stdout, indent=2, sort_keys=True, ensure_ascii=False)
print()
