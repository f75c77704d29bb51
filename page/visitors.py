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
from itertools import chain
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

import flags
from attributes import parse_request
from config import EditSettings, PhotographSettings
from figures.grids import caption
from image_data.face_finder import FaceSearch
from image_data.picture import Note
from page.folder import lock_of, renew

MOST_RESULTS = 24  # results kept for a visitor, by eye: three rows of the history
MOST_SQUARES = 60  # results of the model, kept for a visitor so that they need not be made again; by eye
MOST_FOLDERS = 100  # of pictures, kept for a visitor beside those that are needed; by eye
MOST_MASKS = 40  # of regions, beside those that edits have; by eye
FEWEST_FOLDERS = 5  # instead, while a visitor's files have more than MOST_BYTES; by eye
MOST_BYTES = 2e8
MOST_VISITORS = 200  # at once; by eye: some 100 MB of files. Then the one who was idle longest must go
IDLE_SECONDS = 6 * 3600.0  # after which an open page is forgotten: most of a working day
RETURN_SECONDS = 60.0  # a visitor whose connection broke has this long to come back, by eye
SWEEP_SECONDS = 30.0  # what has to go is looked for this often, by eye: it goes within two minutes


@dataclass(frozen=True)
class Step:
    """One of several edits of a picture, each made of the result of the one before."""

    settings: EditSettings
    is_on: bool = True


@dataclass(frozen=True, eq=False)
class Source:
    """The picture that a visitor edits: a photograph, or the result of steps."""

    settings: PhotographSettings  # the photograph's file and where the face is
    search: FaceSearch | None  # how it was found
    original: np.ndarray  # what the model sees of it, uint8 (S, S, 3)
    frame: Path  # the photograph with its frame, beside other views of it
    judged: np.ndarray  # how sure the independent reader is of each attribute in the photograph
    read: np.ndarray  # how sure the model is of each attribute after the steps, 0 ... 1 (A,)
    steps: tuple[Step, ...] = ()

    @property
    def chain(self) -> tuple[EditSettings, ...]:
        """The settings of the steps that are on."""
        return tuple(step.settings for step in self.steps if step.is_on)


@dataclass(eq=False)
class Edit:
    """An edit: what it was made from and with, and what it is."""

    source: Source
    settings: EditSettings | None  # of the last step; None: nothing was asked for after the source's
    folder: Path  # its pictures and its manifest
    edited: np.ndarray = field(default_factory=lambda: np.zeros(0))  # uint8 (S, S, 3)
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0  # from its start to its end
    meter: str = ""  # what the independent reader says, as HTML
    along: dict[str, float] = field(default_factory=dict)  # readings of what goes with the request
    read: np.ndarray = field(default_factory=lambda: np.zeros(0))  # what the model reads, 0 ... 1 (A,)

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*self.source.steps, *([Step(self.settings)] if self.settings else []))

    @property
    def chain(self) -> tuple[EditSettings, ...]:
        """The settings of the steps that are on."""
        return (*self.source.chain, *([self.settings] if self.settings else []))

    @property
    def request(self) -> dict[str, float]:
        """What was asked for, in all steps that are on."""
        parts = (parse_request(settings.attributes) for settings in self.chain)
        return {name: value for part in parts for name, value in part.items()}

    @property
    def title(self) -> str:
        texts = [caption(parse_request(settings.attributes)) for settings in self.chain]
        return ", then ".join(texts).capitalize() or "No step is on"

    def unlike(self, other: Edit) -> str:
        """How this edit differs from another one of the same source: settings of its last step. Of
        another source: its title."""
        if self.source is not other.source or not (self.settings and other.settings):
            return self.title
        own, others = flags.portable(self.settings), flags.portable(other.settings)
        texts = []
        for name in own | others:
            if own.get(name) == others.get(name):
                continue
            if name == "attributes":
                texts.append(self.title)
            else:
                texts.append(f"{name} {flags.as_text(own[name])}" if name in own else f"no {name}")
        if self.settings.mask != other.settings.mask:
            texts.append("with a mask" if self.settings.mask else "without a mask")
        return ", ".join(texts) or "the same settings"

    def files(self) -> list[str]:
        """What there is to take away."""
        files = [self.folder / name for name in ("edit.png", "manifest.json", "moves.yaml", "whole.png")]
        masks = {settings.mask for settings in self.chain if settings.mask}
        return [str(file) for file in files if file.exists()] + sorted(masks)


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
    mask: Path | None = None  # where the next edit may act
    note: Note | None = None  # of a picture whose photograph is to come
    # What the page showed, for undo and redo, and which of it is shown now.
    trail: list[tuple[Source, Edit | None]] = field(default_factory=list)
    place: int = -1
    squares: dict[tuple, np.ndarray] = field(default_factory=dict)  # photograph and chain -> result
    folders: list[Path] = field(default_factory=list)  # the oldest first
    faces: list[Path] = field(default_factory=list)  # generated ones
    chosen: Path | None = None  # of the faces
    ends: dict[str, Path | None] = field(default_factory=dict)  # of an interpolation between pictures
    stop: threading.Event = field(default_factory=threading.Event)

    def new_folder(self) -> Path:
        """Make a folder whose name nobody can guess. Delete old ones that the page no longer needs."""
        kept = MOST_FOLDERS if self.size() < MOST_BYTES else FEWEST_FOLDERS
        unneeded = {*self.folders[:-kept]} - self.needed()
        for folder in unneeded:
            shutil.rmtree(folder, ignore_errors=True)
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir(parents=True)
        self.folders = [*(each for each in self.folders if each not in unneeded), folder]
        return folder

    def size(self) -> int:
        """Bytes of all files."""
        size = 0
        for path in self.folder.rglob("*"):
            with suppress(OSError):  # it has just gone
                size += path.stat().st_size
        return size

    def needed(self) -> set[Path]:
        """The folders of what the page shows or may show again."""
        edits = self.all_edits()
        sources = {*(edit.source for edit in edits), *(source for source, _ in self.trail)}
        photographs = (Path(str(source.settings.source_image)) for source in sources)
        files = {*photographs, *(source.frame for source in sources), *self.faces, self.upload}
        files |= {self.chosen, *self.ends.values()}
        return {edit.folder for edit in edits} | {file.parent for file in files if file}

    def all_edits(self) -> set[Edit]:
        """What the page shows or may show again."""
        return {*self.edits, *(edit for _, edit in self.trail if edit)}

    def keep_mask(self, mask: Path | None) -> None:
        """The next edit may act there. Old masks that no edit has go when there are too many."""
        self.mask = mask
        steps = [each.steps for each in self.all_edits()] + [source.steps for source, _ in self.trail]
        kept = {str(mask), *(str(step.settings.mask) for step in chain.from_iterable(steps))}
        masks = sorted(self.folder.glob(f"mask_{'?' * 12}.png"), key=lambda path: path.stat().st_mtime)
        for path in masks[:-MOST_MASKS]:
            if str(path) not in kept:
                path.unlink()
                path.with_suffix(".layer.png").unlink(missing_ok=True)

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

    def shown_edit(self) -> Edit:
        """The edit that the page shows."""
        if self.current is None:
            raise ValueError("no edit is shown: make one, or click one that you made")
        return self.current

    def show(self, source: Source, edit: Edit | None = None) -> None:
        """Show a picture, or an edit of it. Undo leads back."""
        self.source, self.current = source, edit
        self.trail = [*self.trail[: self.place + 1], (source, edit)][-MOST_RESULTS:]
        self.place = len(self.trail) - 1

    def go(self, steps: int) -> None:
        """Show what was shown before, or after that."""
        if not 0 <= self.place + steps < len(self.trail):
            raise ValueError(f"nothing to {'redo' if steps > 0 else 'undo'}: move a slider")
        self.place += steps
        self.source, self.current = self.trail[self.place]

    def keep_square(self, key: tuple, square: np.ndarray) -> None:
        """Keep a result, so that it is not computed again. The oldest go when there are too many."""
        self.squares[key] = square
        for old in list(self.squares)[:-MOST_SQUARES]:
            del self.squares[old]

    def keep(self, edit: Edit) -> None:
        """Add an edit to the history, and show it. The oldest goes when there are too many."""
        self.edits = [*self.edits, edit][-MOST_RESULTS:]
        self.show(edit.source, edit)


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
        that their page had ``before``. The old secret works once; a second page that sends it is a new
        visitor. On a slow machine they may have done something before their page told its secret."""
        with self.lock:
            for visitor in self.present:
                if before and visitor.secret == before:
                    self.leave(request)  # what they were until now
                    self.sessions[request.session_hash] = visitor
            visitor = self.of(request)
            visitor.secret, visitor.session = secret, request.session_hash
            return visitor

    def of(self, request: gr.Request) -> Visitor:
        """The visitor of a session, perhaps a new one."""
        with self.lock:
            if request.session_hash not in self.sessions:
                self.sessions[request.session_hash] = self.add(request.session_hash)
            visitor = self.sessions[request.session_hash]
            visitor.active = time.monotonic()
            return visitor

    def add(self, session: str) -> Visitor:
        """A new visitor. If there are too many, the one who was idle longest makes room."""
        with self.lock:
            if len(self.present) >= MOST_VISITORS:
                self._remove(min(self.present, key=lambda each: each.active))
            visitor = Visitor(self.folder / uuid.uuid4().hex, session)
            visitor.folder.mkdir(parents=True)
            self.present.append(visitor)
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

    def sent(self, upload: Any) -> Path:
        """The file that a visitor has sent, where it arrived. It is swept up later.

        Raises:
            ValueError: for what was not sent here: paths and addresses are not followed.
        """
        path = Path(str(upload.get("path") or "") if isinstance(upload, dict) else "").resolve()
        if path.parent.parent != self.uploads or not path.is_file():  # uploads/HASH/NAME
            raise ValueError("that picture did not arrive: send it again")
        return path

    def received(self, visitor: Visitor, upload: Any) -> Path:
        """The file that a visitor has ``sent``, copied into their folder, where it stays."""
        return Path(shutil.copy(self.sent(upload), visitor.new_folder()))

    def sweep(self) -> None:
        """Delete visitors who have gone, and old uploads. What is in use is a copy."""
        renew(self.own_lock)
        with self.lock:
            for visitor in list(self.present):
                limit = IDLE_SECONDS if visitor.session else RETURN_SECONDS
                if time.monotonic() - visitor.active > limit:
                    self._remove(visitor)
            # What still computed when its visitor was removed may have written since.
            for folder in {*self.folder.glob("*")} - {visitor.folder for visitor in self.present}:
                shutil.rmtree(folder, ignore_errors=True)
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
