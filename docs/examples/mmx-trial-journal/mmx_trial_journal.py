"""Writes a line for every trial that ends: an observer, which offers nothing and changes nothing.

Set MMX_TRIAL_JOURNAL to a file; without it nothing is written.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmx import hookimpl


@hookimpl
def trial_ended(spec: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
    """Append what a reader of the journal wants to know. What is raised here is told, and hurts no trial."""
    path = os.environ.get("MMX_TRIAL_JOURNAL")
    if not path:
        return
    line = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "strategy": spec["strategy"]["name"],
        "seed": spec["seed"],
        "state": outcome["state"],
        "clean": outcome.get("metrics", {}).get("summary/clean"),
    }
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
