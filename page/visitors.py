"""Who is on the page: a folder for each visitor, what they made, and when all of it goes."""

from __future__ import annotations

import ctypes
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samplers import Progress, Steps

if TYPE_CHECKING:
    from manipulate import ManipulateConfig

MOST_RESULTS = 24  # results kept for a visitor
MOST_VISITORS = 200  # at once. The next one takes the place of the one who did nothing for longest
IDLE_SECONDS = 6 * 3600.0  # after which an open page is forgotten
RETURN_SECONDS = 60.0  # a visitor whose connection broke has this long to come back


class Stopped(Exception):
    """The visitor asked for the work to stop."""


def return_freed_memory() -> None:
    """Let glibc return freed memory to the system. Otherwise each thread that has opened a large picture
    keeps as much. Other C libraries are not asked."""
    with suppress(OSError, TypeError, AttributeError):  # Windows, macOS
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class Source:
    """The picture that a visitor edits.

    config: names its file and where the face is.
    square: what the model sees, uint8 (S, S, 3).
    line: what was found in it.
    frame: the picture with its frame, for the page.
    seen: how sure the model is of each attribute, 0 ... 1 (A,).
    judged: how sure the independent reader is, or None.
    """

    config: ManipulateConfig
    square: np.ndarray
    line: str
    frame: Path
    seen: np.ndarray
    judged: np.ndarray | None


@dataclass
class Result:
    """An edit: how it was asked for, what it is, and how the page showed it."""

    config: ManipulateConfig
    source: Source
    edited: np.ndarray
    title: str
    seconds: float
    moved: dict[str, float]  # the sliders that were moved
    meter: str
    files: dict[str, Path]  # pictures for the page and for taking away


@dataclass
class Visitor:
    """One open page. A page that is loaded anew, as after a lost connection, is the same visitor in
    another session."""

    folder: Path
    sessions: set[str] = field(default_factory=set)
    seen: float = 0.0  # when they last did something, by time.monotonic
    source: Source | None = None
    results: list[Result] = field(default_factory=list)
    shown: Result | None = None
    faces: list[Path] = field(default_factory=list)  # generated ones
    chosen: int | None = None  # of the faces
    ends: dict[str, Path] = field(default_factory=dict)  # of an interpolation between faces
    stop: threading.Event = field(default_factory=threading.Event)
    leaving: threading.Timer | None = None

    def new_file(self, name: str) -> Path:
        """A path of this name that nobody can guess."""
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder / name

    def keep(self, result: Result) -> None:
        """Add a result to the history. The oldest goes when there are too many."""
        self.results.append(result)
        for old in self.results[:-MOST_RESULTS]:
            for file in old.files.values():
                shutil.rmtree(file.parent, ignore_errors=True)
        self.results = self.results[-MOST_RESULTS:]
        self.shown = result

    def counting(self, say: Callable[[int, int, str], object]) -> Progress:
        """A progress bar for the model: ``say(done, total, label)``. It raises ``Stopped`` when the
        visitor asked for that."""

        def bar(steps: Steps, label: str, number: int) -> Steps:
            say(0, number, label)
            for done, each in enumerate(steps, 1):
                if self.stop.is_set():
                    raise Stopped
                say(done, number, label)
                yield each

        return bar


class Visitors:
    """All visitors.

    Args:
        uploads: where gradio puts what they send. Their own folders lie in it.
    """

    def __init__(self, uploads: Path):
        self.uploads, self.folder = uploads, uploads / "visitors"
        self.lock = threading.Lock()
        self.present: dict[str, Visitor] = {}  # by session
        self.known: dict[str, Visitor] = {}  # by the secret of their page

    def arrive(self, session: str | None, secret: str) -> Visitor:
        """The visitor whose page has this secret, new or back again, in a new session."""
        with self.lock:
            # On a slow machine a visitor may have done something before their page has told its secret.
            early = self.known.pop(str(session), None)
            visitor = self.known.get(secret) or early
            if visitor is not None:
                self.known[secret] = visitor
            if self.present.get(str(session)) is not visitor:
                self._end(str(session))  # it was another visitor's
            if visitor is None:
                if len(self.known) >= MOST_VISITORS:
                    self._remove(min(self.known.values(), key=lambda each: each.seen))
                visitor = self.known[secret] = Visitor(self.folder / uuid.uuid4().hex)
                visitor.folder.mkdir(parents=True)
            visitor.sessions.add(str(session))
            visitor.seen = time.monotonic()
            self.present[str(session)] = visitor
            if visitor.leaving:
                visitor.leaving.cancel()
                visitor.leaving = None
            return visitor

    def of(self, session: str | None) -> Visitor:
        """The visitor of a session."""
        visitor = self.present.get(str(session)) or self.arrive(session, str(session))
        visitor.seen = time.monotonic()
        return visitor

    def leave(self, session: str | None) -> None:
        """A session has ended. The visitor's files go, unless they come back soon."""
        with self.lock:
            self._end(str(session))

    def _end(self, session: str) -> None:
        visitor = self.present.pop(session, None)
        if visitor is None:
            return
        visitor.sessions.discard(session)
        if not visitor.sessions:
            visitor.leaving = threading.Timer(RETURN_SECONDS, self.forget, [visitor])
            visitor.leaving.daemon = True
            visitor.leaving.start()

    def sweep(self, seconds: float) -> None:
        """Delete uploads that nobody took over for so long, and visitors who went without a word."""
        with self.lock:
            idle = [v for v in self.known.values() if time.monotonic() - v.seen > IDLE_SECONDS]
            for visitor in idle:
                self._remove(visitor)
        for folder in self.uploads.iterdir():
            with suppress(OSError):  # another thread may have moved it
                if folder != self.folder and time.time() - folder.stat().st_mtime > seconds:
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def sweeping(self, seconds: float) -> Iterator[None]:
        """``sweep`` every so often while the page is open."""
        over = threading.Event()

        def work() -> None:
            while not over.wait(seconds):
                self.sweep(seconds)
                return_freed_memory()

        threading.Thread(target=work, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def forget(self, visitor: Visitor) -> None:
        """Delete what a visitor has left, unless they are back."""
        with self.lock:
            if not visitor.sessions:
                self._remove(visitor)

    def _remove(self, visitor: Visitor) -> None:
        self.known = {key: each for key, each in self.known.items() if each is not visitor}
        self.present = {key: each for key, each in self.present.items() if each is not visitor}
        visitor.stop.set()
        shutil.rmtree(visitor.folder, ignore_errors=True)
