"""Start-up of `mmx --help` and `mmx plugins list` against `python -c "import torch"`.

Run: python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 7
MMX = str(Path(sys.executable).with_name("mmx"))
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "mmx --help": [MMX, "--help"],
    "mmx plugins list": [MMX, "plugins", "list"],
}


def seconds(command: list[str]) -> float:
    """Time one call."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 our own commands
    return time.perf_counter() - started


def main() -> None:
    """Measure in turns and print ratios."""
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(ROUNDS + 1)][1:]
    medians = {name: statistics.median(r[name] for r in rounds) for name in COMMANDS}
    for name, median in medians.items():
        print(f"{name:<18} {median:.2f} s, {median / medians['import torch']:.2f} of import torch")


if __name__ == "__main__":
    main()
