"""Ask a running service, with the standard library only.

    clipmlu serve demo-cpu --labels labels.txt
    python examples/service_client.py http://127.0.0.1:8000 photos/*.png

The client needs neither clipmlu nor any other package. It waits as long as the service says if that has too much to do (429), and gives up
after a few times.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ATTEMPTS = 5
LONGEST_PAUSE_S = 10.0


def classify(url: str, image: bytes) -> dict[str, Any]:
    """Send one image and return the service's answer; raises ``SystemExit`` with its message if it refuses."""
    for attempt in range(1, ATTEMPTS + 1):
        request = urllib.request.Request(  # noqa: S310 - the address is the user's own
            f"{url}/v1/classify", data=image, headers={"Content-Type": "application/octet-stream"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            if error.code == 429 and attempt < ATTEMPTS:
                time.sleep(min(float(error.headers.get("Retry-After", 1)), LONGEST_PAUSE_S))
                continue
            refusal = json.load(error).get("error", {})
            sys.exit(f"{error.code}: {refusal.get('message', error.reason)}")
    raise AssertionError("the last attempt returns or exits")


def main(url: str, paths: list[str]) -> int:
    """Print the best class of each image; returns the exit code: 1 if the service could not read one."""
    failed = 0
    for path in paths:
        answer = classify(url, Path(path).read_bytes())
        [result] = answer["results"]
        if result.get("error"):
            failed += 1
            print(f"{path}: {result['error']}", file=sys.stderr)
            continue
        best = result["predictions"][0]
        mark = " (emulated)" if answer["emulated"] else ""
        print(f"{path}: {best['class_name']} {best['score']:.1%}{mark}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} URL IMAGE...")
    sys.exit(main(sys.argv[1].rstrip("/"), sys.argv[2:]))
