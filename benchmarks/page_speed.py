"""How fast the page answers, and what it does with 200 hostile uploads and requests.

    python benchmarks/page_speed.py
    python benchmarks/page_speed.py --checkpoint FILE --guide FILE

Opens app.py with a model, and takes the seconds from a click to the preview and to the whole edit in a
headless Chromium. Then sends junk as a hundred files and a hundred forged requests, and counts what came
back with a traceback, what files were left, and by how much the memory of the page grew. The last line
is one JSON object.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flags
from config import DEFAULT_MODEL, Config, count, flag
from page.visitors import RETURN_SECONDS

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass(frozen=True)
class PageConfig(Config):
    """Flags of this benchmark."""

    checkpoint: str = flag(DEFAULT_MODEL, "the model of the page")
    guide: str | None = flag(None, "its guide; none given: that of a pretrained model")
    edits: int = count(5, "edits that are timed")
    hostile: int = count(200, "hostile uploads and requests, half of each", low=0)
    seed: int = count(0, "of the junk", low=0)


class Server:
    """app.py in a process of its own, and what it says."""

    def __init__(self, checkpoint: str, guide: str | None = None, max_upload: float = 5):
        self.folder = tempfile.TemporaryDirectory()
        flags = ["--checkpoint", checkpoint, "--port", "0", "--max_upload", str(max_upload)]
        flags += ["--guide", guide] if guide else []
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "TMPDIR": self.folder.name}
        self.process = subprocess.Popen(
            [sys.executable, "app.py", *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self.opened = threading.Event()
        threading.Thread(target=self.listen, daemon=True).start()
        if not self.opened.wait(120) or not self.address:
            raise ValueError("the page did not open: " + "".join(self.said)[-500:])

    def listen(self) -> None:
        for line in self.process.stdout:
            self.said.append(line)
            if "the page:" in line:
                self.opened.set()
        self.opened.set()

    @property
    def address(self) -> str:
        found = re.search(r"http://[\d.:]+", "".join(self.said))
        return found[0] if found else ""

    def memory(self) -> float:
        """Of the process, in MB."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def files(self) -> list[Path]:
        """What lies in the page's folder."""
        return [each for each in Path(self.folder.name).rglob("*") if each.is_file()]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


# -------------------------------------------------------------------- speed


def time_edits(address: str, number: int) -> dict[str, float]:
    """Median seconds from a click to the preview and to the edit, as a browser shows them."""
    from playwright.sync_api import sync_playwright

    holds = "text => document.querySelector('#status')?.innerText.includes(text)"
    preview, full = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(address)
        page.locator("#own").click()
        page.wait_for_selector("#frame img")
        for turn in range(number + 1):  # the first one warms up
            name, title = (("Glasses", "Eyeglasses:"), ("Older", "Not young:"))[turn % 2]
            page.get_by_role("button", name=name, exact=True).click()
            started = time.perf_counter()
            page.wait_for_function(holds, arg="Preview")
            preview.append(time.perf_counter() - started)
            page.wait_for_function(holds, arg=title)
            full.append(time.perf_counter() - started)
        browser.close()
    return {"preview_s": statistics.median(preview[1:]), "full_s": statistics.median(full[1:])}


# -------------------------------------------------------------------- hostile visitors


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims a size, with any data behind."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((1, 0, 0, 0, 0))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def junk(chance: random.Random) -> tuple[str, bytes]:
    """A file that is no photograph, and its name."""
    picture = io.BytesIO()
    noise = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (64, 64, 3), np.uint8)
    kind = chance.choice(("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"))
    Image.fromarray(noise).save(picture, kind)
    whole = bytearray(picture.getvalue())
    for _ in range(20):
        whole[chance.randrange(len(whole))] = chance.randrange(256)
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    return chance.choice(
        [
            ("noise.png", chance.randbytes(2000)),
            ("empty.jpg", b""),
            ("cut." + kind.lower(), bytes(whole[: len(whole) // 2])),
            ("damaged." + kind.lower(), bytes(whole)),
            ("bomb.png", png(60_000, 60_000, bytes(100_000))),
            ("bomb2.png", png(9_000, 9_000, bytes(9_000 * 1_126))),
            ("drawing.svg", svg),
            ("page.jpg", b"<html><script>alert(1)</script></html>"),
            ("archive.png", b"PK\x03\x04" + chance.randbytes(500)),
            ("../../outside.png", bytes(whole)),
            ("n" * 300 + ".png", bytes(whole)),
            ("too_large.jpg", bytes(6_000_000)),
            ("a;rm -rf $HOME;.png", bytes(whole)),
        ]
    )


class Stranger:
    """A visitor without a browser."""

    def __init__(self, address: str, number: int):
        self.client = httpx.Client(base_url=address, timeout=120)
        self.session = f"stranger{number}"
        self.alive = self.client.stream("GET", f"/gradio_api/heartbeat/{self.session}")
        self.alive.__enter__()
        self.answers: list[str] = []

    def upload(self, name: str, content: bytes) -> str | None:
        """Send a file. Returns the path that the page gave it."""
        answer = self.client.post("/gradio_api/upload", files={"files": (name, content)})
        self.answers.append(answer.text)
        return answer.json()[0] if answer.status_code == 200 else None

    def ask(self, number: int, data: list) -> None:
        """Call a handler, as the page's own script would."""
        text = json.dumps({"data": data, "fn_index": number, "session_hash": self.session})
        joined = self.client.post(
            "/gradio_api/queue/join", content=text, headers={"content-type": "application/json"}
        )
        self.answers.append(joined.text)
        if joined.status_code != 200:
            return
        where = f"/gradio_api/queue/data?session_hash={self.session}"
        with self.client.stream("GET", where) as stream:
            for line in stream.iter_lines():
                self.answers.append(line)
                if '"process_completed"' in line or '"close_stream"' in line:
                    break

    def leave(self) -> None:
        self.alive.__exit__(None, None, None)
        self.client.close()


def forged(chance: random.Random, handlers: list[dict]) -> tuple[int, list]:
    """A handler's number, and values that no page would send it."""
    handler = chance.choice(handlers)
    odd = [
        None, -1, 1e30, "x" * 10_000, "../../etc/passwd", {"path": "/etc/passwd"}, [], [[]], {},
        {"path": "http://127.0.0.1:1/", "url": "http://127.0.0.1:1/"}, {"path": str(ROOT / "config.py")},
        "Smiling", ["Nobody"], True, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    ]  # fmt: skip
    number = len(handler["inputs"]) + chance.choice((0, 0, 0, 0, -1, 3))
    return handler["id"], [chance.choice(odd) for _ in range(max(0, number))]


def attack(server: Server, number: int, seed: int) -> dict[str, float]:
    """Send ``number`` hostile files and requests. Returns what came of it."""
    chance = random.Random(seed)
    handlers = httpx.get(f"{server.address}/config", timeout=60).json()["dependencies"]
    takes_file = next(each["id"] for each in handlers if each["targets"][0][1] == "upload")
    before, answers, strangers = server.memory(), [], []
    started = time.perf_counter()
    for turn in range(number):
        if turn % 10 == 0:
            strangers.append(Stranger(server.address, turn))
        stranger = strangers[-1]
        if turn % 2:
            stranger.ask(*forged(chance, handlers))
        else:
            name, content = junk(chance)
            path = stranger.upload(name, content)
            if path:
                stranger.ask(takes_file, [{"path": path, "orig_name": name}])
        print(f"\r{turn + 1} of {number} hostile visits", end="", file=sys.stderr)
    print(file=sys.stderr)
    seconds = time.perf_counter() - started
    for stranger in strangers:
        answers += stranger.answers
        stranger.leave()
    waited = time.perf_counter()
    while server.files() and time.perf_counter() - waited < 2 * RETURN_SECONDS + 60:
        time.sleep(2)
    grown = server.memory() - before
    if server.files():
        print("left:", *server.files(), sep="\n", file=sys.stderr)
    told = "\n".join(answers)
    return {
        "hostile": number,
        "tracebacks_to_visitors": told.count("Traceback") + told.count('File \\"'),
        "tracebacks_in_terminal": "".join(server.said).count("Traceback (most recent"),
        "files_left": len(server.files()),
        "memory_grown_mb": round(grown, 1),
        "hostile_s": round(seconds, 1),
        "still_answers": int(httpx.get(server.address, timeout=60).status_code == 200),
    }


def main() -> None:
    config = flags.parse(PageConfig, __doc__)
    server = Server(config.checkpoint, config.guide)
    found: dict[str, object] = {"checkpoint": config.checkpoint, "processors": os.cpu_count()}
    try:
        if CHROMIUM:
            found |= {k: round(v, 2) for k, v in time_edits(server.address, config.edits).items()}
        if config.hostile:
            found |= attack(server, config.hostile, config.seed)
        Path("outputs").mkdir(exist_ok=True)
        Path("outputs/page_server.log").write_text("".join(server.said), encoding="utf-8")
    finally:
        server.close()
    print(json.dumps(found))


if __name__ == "__main__":
    flags.run(main)
