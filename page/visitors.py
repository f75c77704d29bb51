"""Who is on the page: a folder for each visitor, what they made, and when all of it goes.

Gradio loses its state of a session when the page is loaded anew, as after a lost connection, and shares
that of a browser between tabs. It deletes files by their age, not with their visitor. Therefore
visitors are kept here.
"""

from __future__ import annotations

import ctypes
import shutil
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from attributes import parse_request
from config import EditSettings, PhotographSettings
from figures.grids import caption
from page.folder import lock_of, renew

MOST_RESULTS = 24  # results kept for a visitor, by eye: three rows of the history
MOST_VISITORS = 200  # at once; by eye: some 100 MB of files. Then the one who was idle longest must go
IDLE_SECONDS = 6 * 3600.0  # after which an open page is forgotten: most of a working day
RETURN_SECONDS = 60.0  # a visitor whose connection broke has this long to come back, by eye
SWEEP_SECONDS = 30.0  # what has to go is looked for this often, by eye: it goes within two minutes


@dataclass
class Source:
    """The picture that a visitor edits."""

    settings: PhotographSettings  # its file and where the face is
    square: np.ndarray  # what the model sees, uint8 (S, S, 3)
    line: str  # what is to be said of it
    frame: Path  # the picture with its frame
    read: np.ndarray  # how sure the model is of each attribute, 0 ... 1 (A,)
    judged: np.ndarray  # how sure the independent reader is of those that it knows


@dataclass
class Edit:
    """An edit: what it was made from and with, and what it is."""

    source: Source
    settings: EditSettings
    folder: Path  # its pictures and its manifest
    edited: np.ndarray  # uint8 (S, S, 3)
    seconds: float
    meter: str  # what the independent reader says, as HTML

    @property
    def request(self) -> dict[str, float]:
        return parse_request(self.settings.attributes)

    @property
    def title(self) -> str:
        return caption(self.request).capitalize()

    def files(self) -> list[str]:
        """What there is to take away."""
        files = (self.folder / name for name in ("edit.png", "manifest.json", "whole.png"))
        return [str(file) for file in files if file.exists()]


@dataclass(eq=False)
class Visitor:
    """One open page. When it is loaded anew, in another session, it shows the secret of before."""

    folder: Path
    session: str | None  # the one that is open; None: it has ended
    secret: str | None = None  # None until the page has told it
    active: float = field(default_factory=time.monotonic)  # when they last did something, or left
    upload: Path | None = None  # what they sent last, to edit it
    source: Source | None = None
    edits: list[Edit] = field(default_factory=list)
    current: Edit | None = None  # the edit that the page shows
    faces: list[Path] = field(default_factory=list)  # generated ones
    chosen: Path | None = None  # of the faces
    ends: dict[str, Path | None] = field(default_factory=dict)  # of an interpolation between pictures
    stop: threading.Event = field(default_factory=threading.Event)

    def new_folder(self) -> Path:
        """A folder whose name nobody can guess."""
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def picture(self) -> Source:
        """The picture that they edit."""
        if self.source is None:
            raise ValueError("no picture yet: drop one, or take a generated one")
        return self.source

    def chosen_face(self) -> Path:
        """The generated face that was clicked."""
        if self.chosen is None:
            raise ValueError("no face is chosen: generate some, and click one")
        return self.chosen

    def keep(self, edit: Edit) -> None:
        """Add an edit to the history, and show it. The oldest goes when there are too many."""
        self.edits.append(edit)
        for old in self.edits[:-MOST_RESULTS]:
            shutil.rmtree(old.folder, ignore_errors=True)
        self.edits = self.edits[-MOST_RESULTS:]
        self.source, self.current = edit.source, edit


class Visitors:
    """All visitors.

    Args:
        uploads: the folder into which gradio puts what visitors send. Their own folders lie in it.
    """

    def __init__(self, uploads: Path):
        self.uploads, self.folder = uploads.resolve(), uploads.resolve() / "visitors"
        self.own_lock = lock_of(self.uploads)
        self.lock = threading.RLock()
        self.present: list[Visitor] = []
        self.sessions: dict[str | None, Visitor] = {}  # whose page each is, or was

    def arrive(self, request: gr.Request, secret: str, before: str = "") -> Visitor:
        """The visitor whose page has this secret: new, or back again in a new session, with the secret
        that their page had ``before``. That one serves once: a second page that shows it is a visitor of
        its own. On a slow machine they may have done something before their page told its secret."""
        with self.lock:
            for visitor in self.present:
                if before and visitor.secret == before:
                    self.leave(request)  # what they were until now
                    self.sessions[request.session_hash] = visitor
            visitor = self.of(request)
            visitor.secret, visitor.session = secret, request.session_hash
            return visitor

    def of(self, request: gr.Request) -> Visitor:
        """The visitor of a session. If there are too many, the one who was idle longest makes room."""
        with self.lock:
            if request.session_hash not in self.sessions:
                if len(self.present) >= MOST_VISITORS:
                    self._remove(min(self.present, key=lambda each: each.active))
                visitor = Visitor(self.folder / uuid.uuid4().hex, request.session_hash)
                visitor.folder.mkdir(parents=True)
                self.present.append(visitor)
                self.sessions[request.session_hash] = visitor
            visitor = self.sessions[request.session_hash]
            visitor.active = time.monotonic()
            return visitor

    def stop(self, request: gr.Request) -> None:
        """End what computes for a visitor, before its next step."""
        self.of(request).stop.set()

    def leave(self, request: gr.Request) -> None:
        """A session has ended. The visitor's files go with the next ``sweep``, unless they are back."""
        with self.lock:
            visitor = self.sessions.get(request.session_hash)
            if visitor and visitor.session == request.session_hash:
                visitor.session, visitor.active = None, time.monotonic()

    def received(self, visitor: Visitor, upload: Any) -> Path:
        """The file that a visitor has sent, copied into their folder: the browser still shows the one
        that arrived, which is swept up later.

        Raises:
            ValueError: for what was not sent here: paths and addresses are not followed.
        """
        path = Path(str(upload.get("path") or "") if isinstance(upload, dict) else "").resolve()
        if path.parent.parent != self.uploads or not path.is_file():  # uploads/HASH/NAME
            raise ValueError("that picture did not arrive: send it again")
        return Path(shutil.copy(path, visitor.new_folder()))

    def sweep(self) -> None:
        """Delete visitors who have gone, and old uploads. What is in use is a copy."""
        renew(self.own_lock)
        with self.lock:
            for visitor in list(self.present):
                limit = IDLE_SECONDS if visitor.session else RETURN_SECONDS
                if time.monotonic() - visitor.active > limit:
                    self._remove(visitor)
        for path in self.uploads.iterdir():
            with suppress(OSError):  # gradio may have moved it
                old = time.time() - path.stat().st_mtime > SWEEP_SECONDS
                if old and path not in (self.folder, Path(self.own_lock.lock_file)):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def sweep_always(self) -> None:
        """``sweep`` every SWEEP_SECONDS, whatever happens to the files."""
        while True:
            with suppress(OSError):
                self.sweep()
            # Return freed memory to the system. Otherwise each thread that has opened a large picture
            # keeps as much. Only glibc has this function.
            with suppress(OSError, TypeError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
            time.sleep(SWEEP_SECONDS)

    def _remove(self, visitor: Visitor) -> None:
        self.present.remove(visitor)
        self.sessions = {key: each for key, each in self.sessions.items() if each is not visitor}
        visitor.stop.set()
        shutil.rmtree(visitor.folder, ignore_errors=True)
