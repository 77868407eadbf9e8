"""The line that every benchmark ends with."""

import json
import sys
from typing import Any


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def report(*, benchmark: str, ours: float, peer: float, peer_name: str, ratio: float, unit: str, **others: Any) -> None:
    """Print the result as the last line of stdout; `others` are figures beside the one asked for."""
    line = {"benchmark": benchmark, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "unit": unit}
    print(json.dumps(line | others), flush=True)
