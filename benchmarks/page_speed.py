"""How fast the page answers.

    python benchmarks/page_speed.py
    python benchmarks/page_speed.py --checkpoint FILE --guide FILE

Opens app.py with a model, and takes the seconds from a click to the preview and to the whole edit in a
headless Chromium. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flags
from config import DEFAULT_MODEL, Config, count, flag

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass(frozen=True)
class PageConfig(Config):
    """Flags of this benchmark."""

    checkpoint: str = flag(DEFAULT_MODEL, "the model of the page")
    guide: str | None = flag(None, "its guide; none given: that of a pretrained model")
    edits: int = count(5, "edits that are timed")


class Server:
    """app.py in a process of its own, and what it prints.

    Args:
        folder: for its temporary files; None: one that goes with it.
        variables: of its environment.
    """

    def __init__(self, *flags: str, folder: Path | None = None, variables: dict[str, str] | None = None):
        self.folder = tempfile.TemporaryDirectory()
        own = {"PYTHONUNBUFFERED": "1", "TMPDIR": str(folder or self.folder.name)}
        self.process = subprocess.Popen(
            [sys.executable, "app.py", *flags],
            cwd=ROOT,
            env=os.environ | own | (variables or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.opened = threading.Event()
        threading.Thread(target=self.listen, daemon=True).start()
        if not self.opened.wait(120) or not self.address:
            self.close()
            raise ValueError("the page did not open: " + "".join(self.lines)[-500:])

    def listen(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            if "the page:" in line:
                self.opened.set()
        self.opened.set()

    @property
    def address(self) -> str:
        match = re.search(r"the page: (http://[^/]+)", "".join(self.lines))
        return match[1] if match else ""

    def close(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal. Returns its exit code, after a minute that of a kill."""
        self.process.send_signal(number)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()
        return self.process.returncode


def time_edits(address: str, number: int) -> dict[str, float]:
    """Median seconds from a click to the preview and to the edit, as a browser shows them."""
    from playwright.sync_api import sync_playwright

    holds = "text => document.querySelector('#edit_status')?.innerText.includes(text)"
    preview, full = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(address)
        page.locator("#own").click()
        page.wait_for_selector("#frame img")
        for turn in range(number + 1):  # the first one warms up
            # With another seed the page makes it anew.
            page.get_by_label("Seed").locator("visible=true").fill(str(turn))
            name, title = (("Glasses", "Eyeglasses:"), ("Older", "Not young:"))[turn % 2]
            page.get_by_role("button", name=name, exact=True).click()
            started = time.perf_counter()
            page.wait_for_function(holds, arg="Preview")
            preview.append(time.perf_counter() - started)
            page.wait_for_function(holds, arg=title)
            full.append(time.perf_counter() - started)
        browser.close()
    return {"preview_s": statistics.median(preview[1:]), "full_s": statistics.median(full[1:])}


def main() -> None:
    config = flags.parse(PageConfig, __doc__)
    if not CHROMIUM:
        raise ValueError("no Chromium here to open the page with: install chromium")
    guide = ["--guide", config.guide] if config.guide else []
    server = Server("--checkpoint", config.checkpoint, *guide, "--port", "0")
    try:
        seconds = time_edits(server.address, config.edits)
    finally:
        server.close()
    rounded = {name: round(value, 2) for name, value in seconds.items()}
    print(json.dumps({"checkpoint": config.checkpoint, "processors": os.cpu_count()} | rounded))


if __name__ == "__main__":
    flags.run(main)
