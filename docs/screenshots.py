"""Takes the pictures of the gallery: MLflow's page of a sweep, and the sweep's report. Needs Chromium.

Run, after `make demo`: python docs/screenshots.py --store sqlite:///mlflow.db quickstart
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from PIL import Image

GALLERY = Path(__file__).parent / "gallery"
COLOURS = 128
"""Of a picture's palette: plots need few, and files stay small."""


def main() -> None:
    """Write the report and all pictures into docs/gallery."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep")
    parser.add_argument("--store", default="sqlite:///mlflow.db")
    asked = parser.parse_args()
    GALLERY.mkdir(exist_ok=True)
    report = GALLERY / "report.html"
    mmx("report", asked.sweep, "--store", asked.store, "--html", "--out", str(report))
    photograph(report.as_uri(), GALLERY / "report.png", 1200, 1500)
    photograph(report.as_uri(), GALLERY / "report_phone.png", 500, 1100)
    with page(asked.store, asked.sweep) as link:
        photograph(link, GALLERY / "mlflow.png", 1600, 1200)


def mmx(*arguments: str) -> None:
    """Run the command."""
    subprocess.run([sys.executable, "-m", "mmx", *arguments], check=True)  # noqa: S603 our own command


@contextmanager
def page(store: str, sweep: str) -> Iterator[str]:
    """Start MLflow's page and give the link of the sweep's view."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "mmx", "ui", "--port", str(port), "--store", store]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, start_new_session=True)  # noqa: S603 our own command
        try:
            _wait_for(f"http://127.0.0.1:{port}/health")
            log.seek(0)
            link = re.search(rf"^{re.escape(sweep)}: (\S+)$", log.read(), re.MULTILINE)
            if link is None:
                raise SystemExit(f"the store '{store}' has no sweep '{sweep}'")
            yield link[1]
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _wait_for(address: str) -> None:
    for _ in range(300):
        try:
            urlopen(address, timeout=5).close()  # noqa: S310 a loopback address
        except (URLError, OSError):
            time.sleep(0.3)
        else:
            return
    raise SystemExit(f"{address} does not answer")


def photograph(address: str, path: Path, width: int, height: int) -> None:
    """Open a page in a window of that size, and keep what it shows with few colours."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no Chromium here")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"),
            *(f"--window-size={width},{height}", "--hide-scrollbars", "--virtual-time-budget=60000"),
            *(f"--screenshot={path}", address),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=200)  # noqa: S603 a fixed command
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main()
