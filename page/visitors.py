"""Who is on the page: a folder for each visitor, what they made, and when all of it goes.

Gradio keeps the state of a session: it is lost when the page is loaded anew, as after a lost connection,
and deleted an hour after the page was closed. It deletes files by their age, not with their visitor.
Therefore visitors are kept here.
"""

from __future__ import annotations

import ctypes
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from config import EditSettings, PhotographSettings

MOST_RESULTS = 24  # results kept for a visitor, by eye: three rows of the history
MOST_VISITORS = 200  # at once; by eye: some 100 MB of files. Then the one who was idle longest must go
IDLE_SECONDS = 6 * 3600.0  # after which an open page is forgotten: most of a working day
RETURN_SECONDS = 60.0  # a visitor whose connection broke has this long to come back, by eye


def return_freed_memory() -> None:
    """Let glibc return freed memory to the system. Otherwise each thread that has opened a large picture
    keeps as much. Other C libraries do nothing."""
    with suppress(OSError, TypeError, AttributeError):  # Windows, macOS
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class Source:
    """The picture that a visitor edits.

    settings: its file and where the face is.
    square: what the model sees, uint8 (S, S, 3).
    line: what was found in it.
    frame: the picture with its frame, for the page.
    read: how sure the model is of each attribute, 0 ... 1 (A,).
    judged: how sure the independent reader is, or None.
    """

    settings: PhotographSettings
    square: np.ndarray
    line: str
    frame: Path
    read: np.ndarray
    judged: np.ndarray | None


@dataclass
class Edit:
    """An edit: what it was made from and with, what it is, and how the page showed it."""

    source: Source
    settings: EditSettings
    edited: np.ndarray
    title: str
    seconds: float
    request: dict[str, float]  # the sliders that were moved
    meter: str
    files: dict[str, Path]  # pictures for the page and for taking away


@dataclass
class Visitor:
    """One open page, under the secret that it keeps when it is loaded anew in another session."""

    folder: Path
    secret: str | None = None  # None until the page has told it
    sessions: set[str] = field(default_factory=set)
    active: float = field(default_factory=time.monotonic)  # when they last did something, or left
    source: Source | None = None
    edits: list[Edit] = field(default_factory=list)
    current: Edit | None = None  # the edit that the page shows
    faces: list[Path] = field(default_factory=list)  # generated ones
    chosen: int | None = None  # of the faces
    ends: dict[str, Path] = field(default_factory=dict)  # of an interpolation between pictures
    stop: threading.Event = field(default_factory=threading.Event)

    def new_file(self, name: str) -> Path:
        """A path of this name that nobody can guess."""
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder / name

    def chosen_face(self) -> Path:
        """The generated face that was clicked."""
        if self.chosen is None or self.chosen >= len(self.faces):
            raise ValueError("no face is chosen: generate some, and click one")
        return self.faces[self.chosen]

    def keep(self, edit: Edit) -> None:
        """Add an edit to the history. The oldest goes when there are too many."""
        self.edits.append(edit)
        for old in self.edits[:-MOST_RESULTS]:
            for file in old.files.values():
                shutil.rmtree(file.parent, ignore_errors=True)
        self.edits = self.edits[-MOST_RESULTS:]
        self.current = edit


class Visitors:
    """All visitors.

    Args:
        uploads: the folder into which gradio puts what visitors send. Their own folders lie in it.
    """

    def __init__(self, uploads: Path):
        self.uploads, self.folder = uploads, uploads / "visitors"
        self.lock = threading.Lock()
        self.present: list[Visitor] = []

    def arrive(self, session: str | None, secret: str) -> Visitor:
        """The visitor whose page has this secret, new or back again, in a new session."""
        with self.lock:
            before = self._in_session(str(session))
            visitor = next((each for each in self.present if each.secret == secret), None)
            if visitor is None and before is not None and before.secret is None:
                visitor = (
                    before  # on a slow machine they did something before their page told its secret
                )
            if before is not None and before is not visitor:
                before.sessions.discard(str(session))
            if visitor is None:
                visitor = self._welcome()
            visitor.secret, visitor.active = secret, time.monotonic()
            visitor.sessions.add(str(session))
            return visitor

    def of(self, session: str | None) -> Visitor:
        """The visitor of a session."""
        with self.lock:
            visitor = self._in_session(str(session)) or self._welcome()
            visitor.sessions.add(str(session))
            visitor.active = time.monotonic()
            return visitor

    def leave(self, session: str | None) -> None:
        """A session has ended. The visitor's files go with the next ``sweep``, unless they are back."""
        with self.lock:
            visitor = self._in_session(str(session))
            if visitor is not None:
                visitor.sessions.discard(str(session))
                visitor.active = time.monotonic()

    def received(self, visitor: Visitor, upload: Any) -> Path:
        """The file that a visitor has sent, copied into their folder: the browser still shows the one
        that arrived, which is swept up later.

        Raises:
            ValueError: for what was not sent here: paths and addresses are not followed.
        """
        path = Path(str(upload.get("path") or "")) if isinstance(upload, dict) else Path()
        path, uploads = path.resolve(), self.uploads.resolve()
        is_upload = path.parent.parent == uploads  # uploads/HASH/NAME
        if not is_upload or not path.is_file():
            raise ValueError("that picture did not arrive: send it again")
        return Path(shutil.copy(path, visitor.new_file(path.name)))

    def sweep(self, seconds: float) -> None:
        """Delete uploads that nobody took over for so long, and visitors who have gone."""
        with self.lock:
            for visitor in list(self.present):
                limit = IDLE_SECONDS if visitor.sessions else RETURN_SECONDS
                if time.monotonic() - visitor.active > limit:
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

    def _in_session(self, session: str) -> Visitor | None:
        return next((each for each in self.present if session in each.sessions), None)

    def _welcome(self) -> Visitor:
        """A new visitor. If there are too many, the one who was idle longest makes room."""
        if len(self.present) >= MOST_VISITORS:
            self._remove(min(self.present, key=lambda each: each.active))
        visitor = Visitor(self.folder / uuid.uuid4().hex)
        visitor.folder.mkdir(parents=True)
        self.present.append(visitor)
        return visitor

    def _remove(self, visitor: Visitor) -> None:
        self.present.remove(visitor)
        visitor.stop.set()
        shutil.rmtree(visitor.folder, ignore_errors=True)
