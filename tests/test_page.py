"""The page: it makes what manipulate.py makes, keeps visitors apart, and works in a real browser."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from helpers import draw_zeros
from PIL import Image

import app
import flags
import manipulate
import studio
from attributes import CELEBA_ATTRIBUTES
from benchmarks.page_speed import CHROMIUM, Server
from checkpoint import save_model
from classifiers.guide import GuidanceClassifier
from config import (
    EditConfig,
    EditSettings,
    GenerateSettings,
    InterpolateSettings,
    ModelConfig,
    ModelFiles,
    PhotographSettings,
    SamplingConfig,
)
from diffusion_model import ConditionalDiffusion
from figures.grids import save_gif
from image_data.picture import Note, read_note, write_note
from manipulate import ManipulateConfig
from page import visitors as visitors_module
from page.fields import SELDOM
from page.folder import lock_of
from page.layout import Page
from page.leaks import leak_meter
from page.visitors import MOST_FOLDERS, MOST_MASKS, MOST_RESULTS, Edit, Source, Visitors
from page.worker import Worker, mask_in
from synthetic_faces.dataset import draw_parameters, render

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300 * 1000  # to wait for a picture, in milliseconds: slow machines are no failure


def plain_face(number: int) -> tuple[int, np.ndarray]:
    """The first drawn face from this number on that has no glasses, no hat, no blur."""
    columns = [CELEBA_ATTRIBUTES.index(name) for name in ("Eyeglasses", "Blurry", "Wearing_Hat")]
    while (draw_parameters(number, 5, True)[1][columns] > 0).any():
        number += 1
    return draw_parameters(number, 5, True)


def drawn_face(path: Path, number: int = 3) -> Path:
    """A drawn face as a picture file."""
    Image.fromarray(render(*plain_face(number), 256)).save(path)
    return path


# -------------------------------------------------------------------- what it computes


FEW = {"sampling": SamplingConfig(num_inference_steps=3)}
FEW_EDITS = {"editing": EditConfig(num_inference_steps=3)}


@pytest.fixture(scope="module")
def worker():
    return Worker(ModelFiles(checkpoint="drawn64"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return drawn_face(tmp_path_factory.mktemp("photo") / "my face.png")


def written_by(line: str, folder: Path, monkeypatch, photo: Path) -> Path:
    """The folder of what a command writes, where the photograph lies."""
    words = shlex.split(line)
    assert words[:2] == ["python", "manipulate.py"]
    monkeypatch.chdir(photo.parent)
    manipulate.manipulate(manipulate.parse_args([*words[2:], "--output_dir", str(folder)]))
    return folder


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("is_moved", (True, False))
def test_an_edit_is_that_of_its_command(worker, photo, tmp_path, monkeypatch, is_moved):
    """One attribute, in a frame that is moved by hand; and several at once, where the script makes each
    alone, too."""
    source, names = PhotographSettings(str(photo), face=0), ("Smiling=1", "Male=0", "Young=0.25")
    photograph, _ = studio.open_photograph(worker.model, source)
    if is_moved:
        marks = tuple(photograph.landmarks_moved(0.1, -0.05, 0.8, 20))
        source, names = PhotographSettings(str(photo), marks), names[:1]
        photograph, _ = studio.open_photograph(worker.model, source)
    settings = EditSettings(attributes=names, seed=3, **FEW_EDITS)
    edited = worker.compute(studio.edit, photograph.square, settings).images[0]
    out = written_by(worker.command("edit", source, settings), tmp_path, monkeypatch, photo)
    last = sorted((out / "edits").glob("*.png"))[-1]
    np.testing.assert_array_equal(edited, picture(last))
    assert (edited != photograph.square).any()


def test_a_slider_that_moves_again_costs_the_edit_alone(worker, photo):
    """What does not depend on the strength is computed once, and the edit is the same as without it."""
    square = worker.photograph(PhotographSettings(str(photo))).square
    calls: list[int] = []
    hook = worker.model.unet.register_forward_hook(lambda *_: calls.append(1))
    numbers = []
    for strength in (0.4, 0.8):
        settings = EditSettings(("Smiling=1",), strength, seed=3, **FEW_EDITS)
        calls.clear()
        edited = worker.edit(square, settings)
        numbers.append(len(calls))
        own = worker.compute(studio.edit, square, settings).images[0]
        assert (edited == own).all()
    hook.remove()
    assert numbers == [6, 3]  # the photograph's three steps in thirds, and three of the edit


def test_an_edit_is_seen_before_it_is_finished(worker, tab, photo):
    """After a third and two thirds of its steps, with nothing computed twice; then it is known."""
    visitor = tab.visitors.of(asking("live"))
    tab.look(visitor, PhotographSettings(str(photo)))
    settings = EditSettings(("Smiling=1",), editing=EditConfig(num_inference_steps=6))
    edit = Edit(visitor.picture(), settings, visitor.new_folder())
    photograph = worker.photograph(visitor.picture().settings)
    calls: list[int] = []
    hook = worker.model.unet.register_forward_hook(lambda *_: calls.append(1))
    shows = list(tab.make_live(visitor, edit, photograph, False))
    assert len(calls) == 9 and len(shows) == 2  # the photograph's steps in thirds, six of the edit
    assert all("Preview" in each[tab.status] for each in shows)
    early, late = (picture(each[tab.compared][1]).astype(int) for each in shows)
    assert list(tab.make_live(visitor, edit, photograph, False)) == []
    tab.make(visitor, edit, photograph, False)
    hook.remove()
    assert len(calls) == 9
    np.testing.assert_array_equal(
        edit.edited, worker.compute(studio.edit, visitor.picture().original, settings).images[0]
    )
    assert np.abs(late - edit.edited).mean() < np.abs(early - edit.edited).mean()


def test_a_grey_and_transparent_picture_stays_so(worker, photo, tmp_path):
    path = tmp_path / "grey.png"
    grey, alpha = Image.open(photo).convert("L"), Image.new("L", (256, 256), 255)
    alpha.paste(0, (0, 0, 40, 40))
    grey.putalpha(alpha)
    grey.save(path, dpi=(300, 300))
    settings = PhotographSettings(str(path), face=0)
    square = studio.open_photograph(worker.model, settings)[0].square
    options = EditSettings(attributes=("Blond_Hair=1",), **FEW_EDITS)
    edited = worker.compute(studio.edit, square, options).images[0]
    visitors = Visitors(tmp_path / "page")
    tab, anna = Page(worker, visitors).edit, visitors.of(asking("anna"))
    tab.look(anna, settings)
    edit = Edit(anna.source, options, anna.new_folder(), edited, 1.0, "")
    tab.finish(edit, tab.worker.photograph(edit.source.settings))
    anna.show(anna.source, edit)
    tab.paste(asking("anna"))
    shown, whole = (Image.open(edit.folder / name) for name in ("whole.jpg", "whole.png"))
    assert read_note(edit.folder / "whole.png").settings["attributes"] == ["Blond_Hair=1.0"]
    for image in (edited, np.asarray(shown.convert("RGB")), np.asarray(whole.convert("RGB"))):
        assert not np.ptp(image.astype(int), 2).any()
    assert (edited != square).any() and np.asarray(shown)[:30, :30].min() > 245, "clear is white"
    assert whole.mode == "LA" and whole.getchannel("A").tobytes() == alpha.tobytes()
    assert whole.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_a_frame_is_moved_as_its_sliders_say(worker, photo):
    before, _ = studio.open_photograph(worker.model, PhotographSettings(str(photo), face=0))
    marks = tuple(before.landmarks_moved(0.1, -0.05, 0.8, 20))
    after, _ = studio.open_photograph(worker.model, PhotographSettings(str(photo), marks))
    place = after.corners().mean(0)
    side = np.linalg.norm(before.corners()[1] - before.corners()[0])
    moved = place - before.corners().mean(0)
    np.testing.assert_allclose(moved, [0.1 * side, -0.05 * side], atol=0.05)
    np.testing.assert_allclose(before.towards(place), [0.1, -0.05], atol=1e-3)
    x, y = after.corners()[1] - after.corners()[0]
    assert np.hypot(x, y) == pytest.approx(0.8 * side, abs=0.1)
    assert np.degrees(np.arctan2(y, x)) == pytest.approx(20, abs=0.1)


def test_two_edits_are_told_apart_by_what_differs(photo):
    nothing = np.zeros(0)
    source = Source(PhotographSettings(str(photo)), None, nothing, photo, nothing, nothing)

    def edit_of(*attributes: str, **options) -> Edit:
        return Edit(source, EditSettings(attributes, **options), photo, nothing, 0, "")

    weak, strong = (edit_of("Male=1", manipulation_strength=s) for s in (0.5, 1.0))
    assert weak.unlike(strong) == "manipulation_strength 0.5"
    assert (
        strong.unlike(weak) == "manipulation_strength 1" and strong.unlike(strong) == "the same settings"
    )
    pinned = edit_of("Young=0", pins=("Male",), mask="mask.png")
    assert pinned.unlike(strong) == f"{pinned.title}, hold Male, with a mask"
    assert strong.unlike(pinned) == f"{strong.title}, no hold, without a mask"


def test_new_faces_and_films_are_those_of_their_commands(worker, photo, tmp_path, monkeypatch):
    settings = GenerateSettings(attributes=("Smiling=1",), num_samples=3, seed=4, **FEW)
    line = worker.command("generate", settings)
    out = written_by(line, tmp_path / "a", monkeypatch, photo) / "samples"
    faces = worker.compute(studio.generate, settings).images
    np.testing.assert_array_equal(faces, [picture(out / f"{i:03d}.png") for i in range(3)])
    ends = {"start": ("Male=1",), "end": ("Male=0", "Smiling=1")}
    settings = InterpolateSettings(interpolation_steps=3, seed=2, **ends, **FEW)
    images = worker.compute(studio.interpolate, settings).images
    films = {"interpolation": (images, worker.command("interpolate", settings))}
    other = drawn_face(photo.parent / "other.png", 60)
    first, last = PhotographSettings(str(photo)), PhotographSettings(str(other))
    squares = [studio.open_photograph(worker.model, each)[0].square for each in (first, last)]
    settings = InterpolateSettings(interpolation_steps=3, target_image=str(other), **FEW)
    images = worker.compute(studio.interpolate_photographs, squares, settings).images
    films["photographs"] = images, worker.command("interpolate", first, settings)
    for name, (images, line) in films.items():
        out = written_by(line, tmp_path / name, monkeypatch, photo)
        film = save_gif(tmp_path / f"{name}.gif", images)
        assert film.read_bytes() == (out / f"{name}.gif").read_bytes()


def test_a_command_says_what_differs_and_is_read_back(worker):
    source = PhotographSettings("/secret/it's me.jpg")
    settings = EditSettings(attributes=("Male=0",))
    line = worker.command("edit", source, settings)
    assert "secret" not in line and "--seed" not in line
    again = flags.parse(ManipulateConfig, None, shlex.split(line)[2:])
    assert (again.mode, again.files, again.edit) == ("edit", worker.files, settings)
    assert again.photograph == replace(source, source_image="it's me.jpg")


def test_classes_are_asked_for_by_name(class_checkpoint, tmp_path):
    """A model of other things than faces has no reader, and its page can be built."""
    worker = Worker(ModelFiles(checkpoint=str(class_checkpoint)))
    assert not studio.knows_faces(worker.model) and not worker.judged_names
    opened = Page(worker, Visitors(tmp_path))
    assert opened.generate.request.request(("red",)) == ("red=1",)
    assert opened.edit.fields.request(np.zeros(1), ["red"]) == ("red=1",)
    assert opened.edit.fields.values(np.zeros(1), {"red": 1.0}) == ["red"]
    settings = GenerateSettings(attributes=("red=1",), num_samples=1, **FEW)
    (square,) = worker.compute(studio.generate, settings).images
    settings = EditSettings(attributes=("blue=1",), **FEW_EDITS)
    edited = worker.compute(studio.edit, square, settings).images[0]
    assert edited.shape == square.shape
    silent, anna = (lambda *args, **options: None), asking("anna")
    opened.edit.take_own(anna)
    list(opened.edit.edit(anna, silent, 1.0, "0", "blue"))
    assert opened.edit.visitors.of(anna).current.request == {"blue": 1.0}


def test_who_names_nothing_gets_as_many_faces_as_they_ask_for(worker, tmp_path, monkeypatch):
    """manipulate.py draws that many of each built-in request."""
    tab, requests = Page(worker, Visitors(tmp_path)).generate, []

    def compute(function, settings: GenerateSettings, bar) -> SimpleNamespace:
        requests.append(settings)
        return SimpleNamespace(images=[])

    monkeypatch.setattr(worker, "compute", compute)
    tab.generate(asking("anna"), None, 3, 1.5, "5", [], [])
    (settings,) = requests
    drawn, _ = studio.requests_to_generate(worker.model, None, settings)
    assert drawn == 3 * [{"Blurry": 0.0}]


def test_files_that_do_not_fit_are_refused():
    with pytest.raises(FileNotFoundError, match="no judge"):
        Worker(ModelFiles(checkpoint="drawn64"), judge="nowhere.pth")


def asking(session: str) -> SimpleNamespace:
    """A request of a session."""
    return SimpleNamespace(session_hash=session)


@pytest.fixture
def tab(worker, tmp_path):
    """The tab of edits, where the session "anna" has a white picture, shown as large as it is."""
    visitors = Visitors(tmp_path)
    tab = Page(worker, visitors).edit
    wide = tmp_path / "wide.png"
    Image.new("RGB", (800, 400), "white").save(wide)
    tab.look(visitors.of(asking("anna")), PhotographSettings(str(wide)))
    return tab


def test_a_click_on_the_picture_takes_the_face_there_or_frames_the_place(tab, monkeypatch):
    anna = tab.visitors.of(asking("anna"))
    centre = lambda: studio.open_photograph(tab.worker.model, anna.source.settings)[0].corners().mean(0)  # noqa: E731
    monkeypatch.setattr(tab.worker, "face_at", lambda photograph, point: 0)
    tab.move(asking("anna"), 0, 0, 0.5, 0)
    np.testing.assert_allclose(centre(), [400, 200], atol=0.1)
    for place in ([700, 250], [150, 100]):
        tab.point(asking("anna"), SimpleNamespace(index=place))
        np.testing.assert_allclose(centre(), place, atol=0.1)
    requests = []
    monkeypatch.setattr(tab, "look", lambda visitor, settings: requests.append(settings))
    monkeypatch.setattr(tab.worker, "face_at", lambda photograph, point: 2)
    tab.point(asking("anna"), SimpleNamespace(index=[10, 10]))
    assert requests == [PhotographSettings(anna.source.settings.source_image, face=2)]


def test_sliders_ask_for_what_is_moved(tab):
    """A slider where it starts, or in the middle, asks for nothing."""
    fields, read = tab.fields, tab.visitors.of(asking("anna")).source.read
    starts = fields.values(read, {})
    assert all(0.05 <= start <= 0.95 for start in starts) and fields.request(read, starts) == ()
    request = {"Smiling": 0.15, "Eyeglasses": 1.0, "Male": 0.5}
    read = np.full_like(read, 0.31)
    values = fields.values(read, request)
    assert sorted(fields.request(read, values)) == ["Eyeglasses=1", "Smiling=0.15"]
    assert len(values) == len(fields.names) and values.count(0.3) == len(fields.names) - 3
    assert tab.set_preset(asking("anna"), ["Reset"]) == starts
    along = dict(zip(fields.sliders, values, strict=True))
    assert fields.request(read, values, along) == ()
    assert fields.pins([name == "Male" for name in fields.sliders]) == ("Male",)


def no_bar(*_, **__):
    pass


@pytest.fixture
def ask_for(tab, monkeypatch):
    """Edit the session's picture in two steps of the sampler. Returns what the page shows then."""
    settings = lambda **each: EditSettings(editing=EditConfig(num_inference_steps=2), **each)  # noqa: E731
    monkeypatch.setattr("page.edit_tab.EditSettings", settings)
    fields, session = tab.fields, asking("anna")

    def ask(pins=(), **request):
        anna = tab.visitors.of(session)
        values = fields.values(anna.source.read, request)
        locks = [name in pins for name in fields.sliders]
        list(tab.edit(session, no_bar, 1, "0", *values, *locks))
        return anna.current

    return ask


def test_steps_are_a_list_in_which_each_can_be_taken_back(tab, ask_for):
    anna, session = tab.visitors.of(asking("anna")), asking("anna")
    first = ask_for(Blond_Hair=1.0).edited
    assert "Black_Hair" in anna.current.along
    tab.continue_from(session)
    assert anna.current.settings is None and (anna.current.edited == first).all()
    with pytest.raises(gr.Error, match="move a slider"):
        tab.continue_from(session)
    both = ask_for(Eyeglasses=1.0)
    assert both.title == "Blond hair, then eyeglasses"
    assert ask_for(Eyeglasses=1.0) is both and anna.edits.count(both) == 1
    assert not np.array_equal(both.edited, first)
    for _ in range(2):
        tab.go(session, "Undo")
    assert anna.current.title == "Blond hair" and not anna.source.steps
    for _ in range(2):
        tab.go(session, "Redo")
    assert anna.current is both
    with pytest.raises(gr.Error, match="nothing to redo"):
        tab.go(session, "Redo")
    rest = len(tab.switches) - 1
    tab.change_steps(session, no_bar, False, *[True] * rest, *[1] * (rest + 1))
    assert anna.current.title == "Eyeglasses" and not np.array_equal(anna.current.edited, both.edited)
    number = len(anna.squares)
    tab.change_steps(session, no_bar, *[True] * (rest + 1), 0.5, *[1] * rest)
    assert anna.source.steps[0].settings.manipulation_strength == 0.5
    assert len(anna.squares) == number + 2, "both steps were made anew"
    tab.change_steps(session, no_bar, *[True] * (rest + 1), *[1] * (rest + 1))
    assert np.array_equal(anna.current.edited, both.edited)


def test_an_edit_is_confined_and_made_again_from_its_file(tab, ask_for, tmp_path):
    """By another visitor who has the photograph and the mask, to the byte; and not without."""
    session, anna = asking("anna"), tab.visitors.of(asking("anna"))
    with pytest.raises(gr.Error, match="no face found"):
        tab.region.choose(session, "Lower half")
    mask = tmp_path / "hash" / "mask.png"
    mask.parent.mkdir()
    Image.fromarray(np.repeat(np.uint8([0, 255]), 32)[:, None].repeat(64, 1)).save(mask)
    tab.region.take(session, {"path": str(mask)})
    first = ask_for(pins=("Male",), Eyeglasses=1.0)
    changed = (first.edited != first.source.original).any((1, 2))
    assert changed.any() and not changed[:32].any()
    tab.continue_from(session)
    last = ask_for(Smiling=1.0)
    file = last.folder / "edit.png"
    ben, photograph = tab.visitors.of(asking("ben")), Path(anna.source.settings.source_image)
    send_to = lambda path: (setattr(ben, "upload", path), tab.take(asking("ben"), no_bar))[1]  # noqa: E731
    assert "send its photograph" in str(send_to(file)[tab.line])
    assert "load the mask" in str(send_to(photograph)[tab.line])
    tab.region.take(asking("ben"), {"path": str(mask)})
    shows = send_to(file)
    assert (ben.current.folder / "edit.png").read_bytes() == file.read_bytes()
    assert ben.current.title == last.title and ben.mask.name == anna.mask.name
    assert shows[tab.fields.sliders["Smiling"]] == 1.0 and shows[tab.seed] == "0"
    assert ben.source.steps[0].settings.pins == ("Male",)


def test_two_models_are_seen_side_by_side(tab, ask_for, worker, tmp_path, class_checkpoint):
    """The edit that is shown, by a model of another size: what that model makes by itself, where the
    mask allows it."""
    session, anna = asking("anna"), tab.visitors.of(asking("anna"))
    with pytest.raises(ValueError, match="give --beside a model of the same"):
        worker.another(str(class_checkpoint))
    assert worker.another("drawn64").name == "drawn64 of --beside", "files of one name are told apart"
    tab.beside = worker.another("celeba128")
    page = Page(worker, Visitors(tmp_path / "page"), tab.beside)
    assert page.edit.by_other.value == "The same by celeba128"
    with pytest.raises(gr.Error, match="no edit is shown"):
        tab.edit_by_other(session, no_bar)
    mask = tmp_path / "hash" / "mask.png"
    mask.parent.mkdir()
    Image.fromarray(np.repeat(np.uint8([0, 255]), 32)[:, None].repeat(64, 1)).save(mask)
    tab.region.take(session, {"path": str(mask)})
    edit = ask_for(Eyeglasses=1.0)
    shows = tab.edit_by_other(session, no_bar)
    left, right = shows[tab.compared]
    assert left == edit.folder / "edit.png" and right.name == "celeba128.png"
    assert str(right) in shows[tab.files] and "Left: drawn64. Right: celeba128." in shows[tab.status]
    assert read_note(right).files["checkpoint"][0] == "celeba128"
    photograph = tab.beside.photograph(anna.source.settings)
    changed = (picture(right) != photograph.square).any((1, 2))
    assert changed.shape == (128,) and changed.any() and not changed[:62].any()
    request = photograph.square, edit.settings, False, mask_in(edit.settings, 128)
    own = tab.beside.compute(studio.edit, *request).images[0]
    np.testing.assert_array_equal(picture(right), own)


LIES = (
    {"steps": 5}, {"steps": [5]}, {"steps": [{"attributes": ["x"]}]}, {"attributes": 5},
    {"attributes": ["Smilng=1"]}, {"seed": "x"}, {"seed": 10**400}, {"num_inference_steps": 10**9},
    {"manipulation_strength": [1]}, {"landmarks": "x"}, {"face": {}}, {"attributes": []},
    {"steps": [{"attributes": ["Smiling=1"]}] * 9}, {"hold": "Male"}, {"mask": "../../x.png"},
    {"edit_margin": 1e308}, {"edit_guide_scale": 10**30}, {"landmarks": [10**400] * 10},
)  # fmt: skip


def test_notes_that_lie_are_refused_in_one_line(tab, ask_for, tmp_path):
    edit, anna = ask_for(Smiling=1.0), tab.visitors.of(asking("anna"))
    note = read_note(edit.folder / "edit.png")
    for number, lie in enumerate(LIES):
        anna.upload = tmp_path / f"{number}.png"
        Image.new("RGB", (64, 64)).save(anna.upload)
        write_note(anna.upload, Note({**note.settings, **lie}, note.files))
        line = str(tab.take(asking("anna"), no_bar)[tab.line])
        assert "mask" in lie or (anna.current is None and re.search("Not made|It says what", line)), lie
        anna.note = None
        anna.show(edit.source, edit)


@pytest.fixture
def paint(tab, tmp_path):
    """Send a painting over the region that is shown, or over one that was."""
    shown = lambda: tab.region.show(tab.visitors.of(asking("anna")))[tab.region.shown]  # noqa: E731
    return lambda painting, over=None: tab.region.paint(asking("anna"), painting, over or shown())


def test_paintings_that_lie_change_nothing(tab, paint, tmp_path):
    anna = tab.visitors.of(asking("anna"))
    (tmp_path / "hash").mkdir()
    path = tmp_path / "hash" / "layer.png"
    layer = {"layers": [{"path": str(path)}]}
    Image.new("RGBA", (384, 384), (0, 0, 0, 153)).save(path)
    paint(layer)
    assert (np.asarray(Image.open(anna.mask)) == 255).all()
    for painting in (None, 5, {}, {"layers": 5}, {"layers": []}):
        paint(painting)
    paint(layer, over="another region")
    assert anna.mask
    Image.new("RGB", (9, 9)).save(path)
    for painting in (layer, {"layers": [5]}, {"layers": [{"path": "/etc/passwd"}]}):
        with pytest.raises(gr.Error, match=r"paint once more|did not arrive"):
            paint(painting)
    Image.new("RGBA", (3000, 3000)).save(path)
    with pytest.raises(gr.Error, match="3000 x 3000 pixels, more than 2,359,296"):
        paint(layer)


def test_many_paintings_leave_what_was_made_before(tab, paint, tmp_path):
    anna, path = tab.visitors.of(asking("anna")), tmp_path / "hash" / "layer.png"
    path.parent.mkdir()
    folders, first = list(anna.folders), None
    for number in range(MOST_MASKS + 3):
        Image.new("RGBA", (384, 384), (0, 0, 0, 3 * number + 3)).save(path)
        paint({"layers": [{"path": str(path)}]})
        first = first or anna.mask
        if number == 0:
            anna.edits.append(Edit(anna.source, EditSettings(mask=str(first)), anna.new_folder()))
    assert anna.folders[: len(folders)] == folders and len(anna.folders) == len(folders) + 1
    kept = {*anna.folder.glob("mask_*.png")} - {*anna.folder.glob("*.layer.png")}
    assert len(kept) == MOST_MASKS + 1 and {first, anna.mask} < kept, "an edit has the first"


def test_a_visitor_s_pictures_take_so_much_room_only(tab, tmp_path, monkeypatch):
    monkeypatch.setattr("page.visitors.MOST_BYTES", 10_000)
    anna, path = tab.visitors.of(asking("anna")), tmp_path / "hash" / "large.png"
    path.parent.mkdir()
    path.write_bytes(bytes(4_000))
    for _ in range(20):
        tab.receive(asking("anna"), {"path": str(path)})
    assert len(list(anna.folder.glob("*/large.png"))) <= 6 and anna.upload.exists()
    assert anna.source.frame.exists()


def test_what_was_written_for_one_who_has_gone_goes(tab):
    anna = tab.visitors.of(asking("anna"))
    tab.visitors._remove(anna)
    anna.new_folder()
    tab.visitors.sweep()
    assert not anna.folder.exists()


def test_a_painting_that_comes_late_leaves_the_mask_that_was_loaded(tab, paint, tmp_path):
    """The file is kept to the byte, too, where the canvas is sent as it was shown."""
    anna, region = tab.visitors.of(asking("anna")), tab.region
    (tmp_path / "hash").mkdir()
    stroke, mask = (tmp_path / "hash" / name for name in ("layer.png", "mask.png"))
    Image.new("RGBA", (384, 384), (0, 0, 0, 153)).save(stroke)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), "uint8")).save(mask)
    before = region.show(anna)[region.shown]
    loaded = region.take(asking("anna"), {"path": str(mask)})
    kept = anna.mask
    paint({"layers": [{"path": str(stroke)}]}, over=before)
    assert anna.mask == kept
    shown = tmp_path / "hash" / "shown.png"
    shown.write_bytes(Path(loaded[region.editor]["layers"][0]).read_bytes())
    paint({"layers": [{"path": str(shown)}]})
    assert anna.mask == kept
    paint({"layers": [{"path": str(stroke)}]})
    assert anna.mask != kept
    region.empty(asking("anna"))
    assert anna.mask is None


def test_a_search_shows_the_groups_that_it_names(tab):
    visible = lambda text: sum(each["visible"] for each in tab.fields.find(text))  # noqa: E731
    assert visible("") == len(tab.fields.groups) and visible("wearing hat") == visible("Make-up") == 1
    assert visible("hair") == 2 and visible("nothing") == 0


def test_an_end_that_is_cleared_is_forgotten(worker, tmp_path):
    opened, end = Page(worker, Visitors(tmp_path)), SimpleNamespace(target=SimpleNamespace(elem_id="to"))
    (tmp_path / "hash").mkdir()
    path = drawn_face(tmp_path / "hash" / "photo.png")
    taken = opened.interpolate.take(asking("anna"), end, {"path": str(path)})
    assert taken.read_bytes() == path.read_bytes() and opened.arrive(asking("anna"), "a", "")
    with pytest.raises(gr.Error, match="two pictures are needed"):
        opened.interpolate.interpolate(asking("anna"), None, 3, 0, ["Male"], [], ["Young"], [])
    assert opened.interpolate.take(asking("anna"), end, None) is None
    assert not any(opened.visitors.of(asking("anna")).ends.values())


# -------------------------------------------------------------------- the leak meter


def test_the_meter_says_what_was_asked_for_and_what_leaked():
    names = ("Smiling", "Male", "Young", "<b>")
    before, after = np.array([0.1, 0.2, 0.6, 0.5]), np.array([0.9, 0.9, 0.65, 0.1])
    html = leak_meter(names, before, after, {"Smiling": 1.0})
    assert "believes 1 of 1" in html and "1 of 3 others changed sides" in html
    rows = re.findall(r'<tr class="(\w+)"><th scope="row">(.*?)</th>.*?<td>(.*?)</td>', html)
    assert rows == [
        ("request", "Smiling", "10% → 90%"),
        ("leak", "Male", "20% → 90%"),
        ("leak", "&lt;b&gt;", "50% → 10%"),
    ]
    assert "not believed" in leak_meter(names, before, after, {"Smiling": 0.0})
    html = leak_meter(names, before, after, {"Smiling": 1.0}, {"Male": 1, "<b>": 1}, ("Young",))
    rows = re.findall(r'<tr class="(\w+)"><th scope="row">(.*?)</th>', html)
    kinds = [("pin", "Young"), ("request", "Smiling"), ("leak", "&lt;b&gt;"), ("with", "Male")]
    assert rows == kinds and "0 of 2 others changed sides. 1 more go with" in html and "held" in html


def test_what_excludes_a_request_goes_with_it(worker):
    """Black hair ends with blond hair; where black hair ends, the likeliest other colour comes. What
    correlates in the training rows goes along, and what does not does not."""
    read = np.full(40, 0.1)
    read[CELEBA_ATTRIBUTES.index("Gray_Hair")] = 0.3
    assert worker.related({"Blond_Hair": 1.0}, read)["Black_Hair"] == -1
    assert worker.related({"Black_Hair": 0.0}, read)["Gray_Hair"] == 1
    rows, counts = worker.model.attribute_prior.rows(), worker.model.attribute_prior.counts
    table = np.corrcoef(rows.repeat_interleave(counts, 0).numpy().T)
    column = CELEBA_ATTRIBUTES.index("Male")
    goes = {name for name, each in zip(CELEBA_ATTRIBUTES, table[column], strict=True) if abs(each) > 0.3}
    assert set(worker.related({"Male": 1.0}, read)) == goes - {"Male"} and len(goes) > 1


def test_sliders_say_what_seldom_works():
    """Those with under half of the flips in the table of results."""
    table = (ROOT / "docs/results.md").read_text().split("### All attributes")[1].split("###")[0]
    seldom = {}
    for name, added, removed in re.findall(r"\| (\w+) \| ([\d.]+) \| ([\d.]+) \|", table):
        ways = [way for way, flips in (("comes", added), ("goes", removed)) if float(flips) < 0.5]
        if ways:
            seldom[name] = " or ".join(ways)
    assert seldom == SELDOM


def test_an_edit_that_is_drawn_is_believed(worker):
    """The reader is the pretrained probe: it sees glasses come in the renderer's own counterfactual."""
    identity, row = plain_face(0)
    column, other = worker.judged_names.index("Eyeglasses"), row.copy()
    other[column] = 1
    before, after = (worker.judge(render(identity, each, 64))[column] for each in (row, other))
    assert before < 0.2 and after > 0.8


# -------------------------------------------------------------------- visitors


def test_what_a_visitor_left_goes_with_them(tmp_path, monkeypatch):
    visitors = Visitors(tmp_path)
    anna, ben = visitors.arrive(asking("anna"), "a"), visitors.arrive(asking("ben"), "b")
    for visitor in (anna, ben):
        (visitor.new_folder() / "photo.jpg").write_text("me")
    visitors.leave(asking("anna"))
    visitors.sweep()
    assert visitors.arrive(asking("anna again"), "aa", "a") is anna, "who comes back finds everything"
    visitors.leave(asking("anna"))  # late
    assert anna.session == "anna again"
    visitors.leave(asking("anna again"))
    monkeypatch.setattr(visitors_module, "RETURN_SECONDS", -1.0)
    visitors.sweep()
    assert not anna.folder.exists() and list(ben.folder.rglob("photo.jpg"))
    cleo = visitors.arrive(asking("cleo"), "c")
    assert visitors.arrive(asking("ben"), "d", "c") is cleo  # the session is no longer that of the first
    visitors.sweep()
    assert not ben.folder.exists() and visitors.present == [cleo]


def test_a_second_page_with_one_secret_is_a_visitor_of_its_own(tmp_path):
    """A copy of a tab shows a secret that has served, or none."""
    visitors = Visitors(tmp_path)
    anna = visitors.arrive(asking("anna"), "a")
    assert visitors.arrive(asking("back"), "b", "a") is anna
    for copy in ("a", "", "b" * 101):
        assert visitors.arrive(asking(f"copy {copy}"), "c", copy) is not anna
    assert visitors.of(asking("back")) is anna and len(visitors.present) == 4


def test_who_is_faster_than_their_page_is_the_same_visitor(tmp_path):
    visitors = Visitors(tmp_path)
    early = visitors.of(asking("session"))
    assert visitors.arrive(asking("session"), "secret") is early is visitors.of(asking("session"))
    assert visitors.present == [early]


def test_uploads_are_swept_up_and_what_was_taken_stays(tmp_path, monkeypatch):
    """Only what was sent here is taken: paths and addresses are not followed."""
    uploads, outside = tmp_path / "uploads", tmp_path / "secret.jpg"
    visitors = Visitors(uploads)
    visitor = visitors.of(asking("anna"))
    other = visitors.of(asking("ben")).new_folder() / "photo.jpg"
    sent = uploads / "hash" / "photo.jpg"
    sent.parent.mkdir()
    for path in (other, outside, sent):
        path.write_text("me")
    taken = visitors.received(visitor, {"path": str(sent)})
    paths = ("http://127.0.0.1", other, outside, sent.parent / ".." / ".." / "secret.jpg")
    for upload in (None, "x", {}, *({"path": str(path)} for path in paths)):
        with pytest.raises(ValueError, match="did not arrive"):
            visitors.received(visitor, upload)
    visitors.sweep()
    assert sent.exists()
    monkeypatch.setattr(visitors_module, "SWEEP_SECONDS", -1.0)
    visitors.sweep()
    assert not sent.parent.exists()
    assert taken.read_text() == "me" and taken.is_relative_to(visitor.folder)
    broken = uploads / "tmpabc"  # of a visitor who left while they sent it
    broken.write_text("me")
    visitors.sweep()
    assert not broken.exists()


def test_what_waits_in_the_queue_is_kept(tab, tmp_path, monkeypatch):
    """A picture waits for the model longer than uploads are kept."""
    sent = drawn_face(tmp_path / "photo.png")
    (tmp_path / "hash").mkdir()
    sent = sent.rename(tmp_path / "hash" / "photo.png")
    taken = sent.read_bytes()
    tab.receive(asking("anna"), {"path": str(sent)})
    monkeypatch.setattr(visitors_module, "SWEEP_SECONDS", -1.0)
    tab.visitors.sweep()
    assert not sent.exists()
    tab.take(asking("anna"), no_bar)
    source = tab.visitors.of(asking("anna")).source.settings.source_image
    assert Path(source).read_bytes() == taken


def test_the_folder_is_made_anew(tmp_path, monkeypatch):
    """Systems remove old files from temporary folders. What sweeps goes on, and holds the new folder."""
    visitors = Visitors(tmp_path / "page")
    visitors.sweep()
    shutil.rmtree(tmp_path / "page")
    monkeypatch.setattr(visitors_module, "SWEEP_SECONDS", 0.0)
    sweep, turns = visitors.sweep, []

    def swept():
        turns.append(len(turns))
        if len(turns) == 1:
            raise OSError("no folder")
        if len(turns) == 3:
            raise KeyboardInterrupt
        sweep()

    monkeypatch.setattr(visitors, "sweep", swept)
    with pytest.raises(KeyboardInterrupt):
        visitors.sweep_always()
    with pytest.raises(OSError), lock_of(tmp_path / "page", timeout=0):
        pass
    assert visitors.of(asking("anna")).new_folder().is_dir()


def test_there_are_never_too_many_visitors(tmp_path, monkeypatch):
    """The one who did nothing for longest makes room; an open page is forgotten in time."""
    monkeypatch.setattr(visitors_module, "MOST_VISITORS", 3)
    visitors = Visitors(tmp_path)
    for name in "abc":
        visitors.arrive(asking(name), name)
    visitors.of(asking("a"))
    visitors.arrive(asking("d"), "d")
    assert sorted(visitor.secret for visitor in visitors.present) == ["a", "c", "d"]
    assert len(list(visitors.folder.iterdir())) == 3
    monkeypatch.setattr(visitors_module, "IDLE_SECONDS", -1.0)
    visitors.sweep()
    assert not visitors.present and not visitors.sessions and not list(visitors.folder.iterdir())


def test_the_history_and_the_files_of_a_visitor_are_bounded(tmp_path, photo):
    visitor, nothing = Visitors(tmp_path).of(asking("anna")), np.zeros(0)
    source = Source(PhotographSettings(str(photo)), None, nothing, photo, nothing, nothing)
    faces, unneeded = visitor.new_folder(), visitor.new_folder()
    visitor.faces = [faces / "000.png"]
    for _ in range(MOST_FOLDERS + 5):
        visitor.keep(Edit(source, EditSettings(), visitor.new_folder()))
    assert len(visitor.edits) == MOST_RESULTS and all(each.folder.is_dir() for each in visitor.edits)
    assert faces.is_dir() and not unneeded.exists()
    assert len(list(visitor.folder.iterdir())) <= MOST_FOLDERS + 2  # with the faces, and the newest


# -------------------------------------------------------------------- its process


def send_file(address: str, content: bytes) -> None:
    """Send a file, as a page does before it says what it is for."""
    head = '--x\r\nContent-Disposition: form-data; name="files"; filename="me.png"\r\n\r\n'
    body = head.encode() + content + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    direct.open(urllib.request.Request(f"{address}/gradio_api/upload", body, kind)).close()


PROXIES = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "https_proxy": "127.0.0.1:9",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "NO_PROXY": "example.org",
}


@pytest.fixture
def start():
    """Open pages of the pretrained model of drawn faces, which are closed after the test."""
    servers = []

    def start_one(*flags, **options):
        servers.append(Server("--checkpoint", "drawn64", "--port", "0", *flags, **options))
        return servers[-1]

    yield start_one
    for server in servers:
        server.close()


def test_nothing_stays_behind_however_a_page_ends(start, tmp_path):
    """One is killed while it holds a photograph. The next deletes what that left, and nothing of a page
    that lives. What can be caught ends in order, without a word. No proxy stands between a page and
    itself, and IPv6 works."""
    folders = lambda: list(tmp_path.glob("faces_page_*"))  # noqa: E731
    killed = start(folder=tmp_path)
    send_file(killed.address, b"me")
    killed.close(signal.SIGKILL)
    (left,) = folders()
    assert list(left.rglob("me.png"))
    first = start(folder=tmp_path, variables=PROXIES)
    (its_own,) = folders()
    assert its_own != left
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # else nohup around the tests counts for it
    second = start("--host", "::1", folder=tmp_path)
    signal.signal(signal.SIGHUP, hangup)
    assert second.address.startswith("http://[::1]:")
    assert len(folders()) == 2 and its_own.exists()
    for server, number in ((first, signal.SIGTERM), (second, signal.SIGHUP)):
        send_file(server.address, b"me")
        assert list(tmp_path.rglob("me.png"))
        assert server.close(number) == 0
        assert not list(tmp_path.rglob("me.png"))
        assert len(server.lines) == 1 and "the page:" in server.lines[0]
    assert not folders()


def test_variables_of_gradio_count_and_flags_more(monkeypatch, capsys):
    for name, value in (("NAME", "0.0.0.0"), ("PORT", "8080")):
        monkeypatch.setenv(f"GRADIO_SERVER_{name}", value)
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/faces")
    config = app.parse_args(["--port", "81"])
    assert (config.host, config.port, config.root_path) == ("0.0.0.0", 81, "/faces")
    assert not [name for name in os.environ if name.startswith("GRADIO_SERVER")]
    monkeypatch.setenv("GRADIO_SERVER_PORT", "http")
    with pytest.raises(SystemExit):
        app.parse_args(["--port", "81"])
    assert "argument --port: expected a whole number" in capsys.readouterr().err


# -------------------------------------------------------------------- the page in a browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where a page of a small model and its guide is open. They are untrained: the page does the same,
    and sooner."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    without = {"self_attention_levels": (), "cross_attention_levels": ()}
    config = ModelConfig(CELEBA_ATTRIBUTES, channels=(16, 32), patch_size=4, latent_dim=8, **without)
    model, guide = ConditionalDiffusion(config), GuidanceClassifier(config)
    draw_zeros(model.unet, std=0.05)  # else it would draw the same for every request
    save_model(model, folder / "model.pth")
    torch.nn.init.normal_(guide.network.weight)
    save_model(guide, folder / "guide.pth", "guide")
    files = ["--checkpoint", folder / "model.pth", "--guide", folder / "guide.pth"]
    files += ["--judge", "drawn64_probe"]
    server = Server(*files, "--port", "0", "--max_upload", "0.5")
    yield server.address
    server.close()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


# No animation: a browser without a graphics card draws each frame of it on the processors.
STILL = """addEventListener("DOMContentLoaded", () => {
    const style = document.createElement("style");
    style.textContent = "* {animation: none !important; transition: none !important}";
    document.head.append(style);
})"""


@pytest.fixture
def visit(browser, address):
    """Open the page as a new visitor; its picture, once chosen, is ``photo``."""
    contexts = []

    def open_page(**how):
        contexts.append(browser.new_context(**({"viewport": {"width": 1400, "height": 1000}} | how)))
        contexts[-1].add_init_script(STILL)
        opened = contexts[-1].new_page()
        opened.set_default_timeout(SECONDS)
        opened.goto(address)
        opened.wait_for_selector("#upload input[type=file]", state="attached")
        return opened

    yield open_page
    for context in contexts:
        context.close()


def wait_until(opened, holds: str, arg=None) -> None:
    """Wait for a function of the page. Usually it would be called for every frame that is drawn, which
    takes a processor from what is waited for."""
    opened.wait_for_function(holds, arg=arg, timeout=SECONDS, polling=200)


def says(opened, where: str, text: str) -> str:
    """Wait until a part of the page says something, and return all that it says."""
    holds = "([where, text]) => document.querySelector(where)?.innerText.includes(text)"
    wait_until(opened, holds, [where, text])
    return opened.inner_text(where)


def send(opened, photo: Path) -> None:
    """Send a picture, and wait until it is shown and the sliders are where the model reads it."""
    opened.set_input_files("#upload input[type=file]", photo)
    opened.wait_for_selector("#frame img")
    sliders = "[...document.querySelectorAll('[id^=attribute-] input[type=range]')]"
    wait_until(opened, f"() => {sliders}.some(each => each.value != '0.5')")


def edit(opened, preset: str, title: str) -> None:
    """Click a preset, and wait for its edit."""
    opened.get_by_role("button", name=preset, exact=True).click()
    says(opened, "#edit_status", title)


def drag(opened, name: str, to: float) -> None:
    """Drag the slider of an attribute to a value."""
    slider = opened.locator(f"#attribute-{name} input[type=range]")
    slider.hover()  # waits until it stands still
    box = slider.bounding_box()
    there, middle = float(slider.input_value()), box["y"] + box["height"] / 2
    opened.mouse.move(box["x"] + 6 + there * (box["width"] - 12), middle)
    opened.mouse.down()
    opened.mouse.move(box["x"] + to * box["width"], middle, steps=4)
    opened.mouse.up()
    assert float(slider.input_value()) == to


def test_a_visit(visit, photo, tmp_path):
    """Upload, move a slider, see picture and meter change, bring back, take away and make it again."""
    opened = visit()
    send(opened, photo)
    opened.get_by_role("button", name="Accessories").click()
    drag(opened, "Eyeglasses", 1)
    assert "Eyeglasses" in says(opened, "#edit_status", "seconds.")
    assert re.search(r"Eyeglasses\s+\d+% → \d+%\s+(not )?believed", opened.inner_text("#meter"))
    first = opened.locator("#whole img").last.get_attribute("src")

    edit(opened, "Smile", "Smiling:")
    assert opened.locator("#whole img").last.get_attribute("src") != first
    opened.locator("#past button").first.click()
    says(opened, "#edit_status", "Eyeglasses:")
    assert opened.locator("#attribute-Eyeglasses input[type=range]").input_value() == "1"
    opened.get_by_label("compare it with what is shown").check()
    opened.locator("#past button").last.click()
    says(opened, "#edit_status", "Right: Eyeglasses")

    saved = tmp_path / "saved.png"
    taken(opened, saved)
    line = opened.locator("#take textarea").input_value()
    script = [sys.executable, ROOT / "manipulate.py", *shlex.split(line)[2:]]
    subprocess.run([*script, "--output_dir", tmp_path], cwd=photo.parent, check=True)
    assert saved.read_bytes() == (tmp_path / "edits" / "000.png").read_bytes()


def test_a_part_is_painted_and_steps_are_undone_and_brought_back(visit, photo, tmp_path):
    """Painted and erased, saved, loaded; two steps, undo, redo, off; a lock; and another visitor drops
    the result."""
    opened = visit()
    send(opened, photo)
    opened.get_by_role("button", name="Change only a part of it").click()
    canvas = opened.locator("#painting canvas").first
    opened.wait_for_timeout(2000)  # it draws the picture

    def stroke():
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        at = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])  # noqa: E731
        opened.mouse.move(*at(0.45, 0.45))
        opened.mouse.down()
        opened.mouse.move(*at(0.55, 0.6), steps=5)
        opened.mouse.up()

    stroke()
    says(opened, "#region_line", "%")
    painted = opened.inner_text("#region_line")
    with opened.expect_download() as download:
        opened.locator("#save_mask").click()
    download.value.save_as(tmp_path / "mask.png")
    opened.get_by_label("Erase").first.click()
    stroke()
    fewer = "most => parseInt(document.querySelector('#region_line').innerText) < parseInt(most)"
    wait_until(opened, fewer, painted)
    opened.get_by_label("Clear canvas").click()
    says(opened, "#region_line", "All of the frame")
    stroke()
    wait_until(opened, fewer, "100")
    load_mask(opened, tmp_path / "mask.png")
    assert says(opened, "#region_line", painted)

    opened.get_by_label("Lock blond hair").check()
    edit(opened, "Glasses", "Eyeglasses:")
    assert opened.locator("#meter tr").first.inner_text().startswith("Blond hair")
    opened.get_by_role("button", name="Go on").click()
    edit(opened, "Smile", "Eyeglasses, then smiling:")
    buttons = opened.locator("#edit_bar")
    undo, redo = (buttons.get_by_role("button", name=name) for name in ("Undo", "Redo"))
    switch = opened.locator("#steps input[type=checkbox]")
    undo.click()
    says(opened, "#edit_status", "Eyeglasses:")
    undo.click()
    switch.wait_for(state="hidden")
    redo.click()
    switch.wait_for()
    redo.click()
    says(opened, "#edit_status", "Eyeglasses, then smiling:")
    switch.uncheck()
    says(opened, "#edit_status", "Smiling:")
    switch.check()
    says(opened, "#edit_status", "Eyeglasses, then smiling:")
    first = taken(opened, tmp_path / "first.png")

    other = visit()
    send(other, photo)
    other.get_by_role("button", name="Change only a part of it").click()
    load_mask(other, tmp_path / "mask.png")
    says(other, "#region_line", "%")
    other.set_input_files("#upload input[type=file]", tmp_path / "first.png")
    says(other, "#edit_status", "Eyeglasses, then smiling:")
    assert other.locator("#attribute-Smiling input[type=range]").input_value() == "1"
    assert other.get_by_label("Lock blond hair").is_checked()
    assert taken(other, tmp_path / "second.png") == first


def load_mask(opened, path: Path) -> None:
    with opened.expect_file_chooser() as chooser:
        opened.locator("#load_mask").click()
    chooser.value.set_files(path)


def taken(opened, path: Path) -> bytes:
    """The file of the edit that a page shows."""
    opened.get_by_role("button", name="Take it away").click()
    with opened.expect_download() as download:
        opened.locator("#take a[download='edit.png']").click()
    download.value.save_as(path)
    return path.read_bytes()


def test_a_new_face_is_edited_and_becomes_an_end(visit):
    opened = visit()
    opened.get_by_role("tab", name="Interpolate").click()
    opened.locator("#interpolate").click()
    says(opened, "#interpolate_status", "10 frames")
    opened.get_by_role("tab", name="Generate").click()
    opened.locator("#generate").click()
    says(opened, "#generate_status", "8 in")
    opened.locator("#faces button").nth(1).click()
    says(opened, "#generate_status", "2 is chosen")
    opened.get_by_role("button", name="Interpolate from it").click()
    opened.wait_for_selector("#from img", state="visible")
    opened.locator("#interpolate").click()
    says(opened, "body", "two pictures are needed")
    opened.get_by_role("tab", name="Generate").click()
    opened.get_by_role("button", name="Edit it").click()
    opened.wait_for_selector("#frame img", state="visible")


def test_junk_is_refused_in_one_line_and_nothing_is_lost(visit, photo, tmp_path):
    opened = visit()
    send(opened, photo)
    edit(opened, "Glasses", "Eyeglasses:")
    junk = tmp_path / "junk.png"
    junk.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    opened.set_input_files("#upload input[type=file]", junk)
    words = says(opened, "body", "junk.png is not a readable picture")
    assert "Traceback" not in words and "/junk.png" not in words
    large = tmp_path / "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)).save(large)
    opened.reload()
    opened.wait_for_selector("#upload input[type=file]", state="attached")
    opened.set_input_files("#upload input[type=file]", large)
    says(opened, "body", "maximum allowed size")


def test_three_visitors_at_once_see_their_own(visit, photo):
    pages = [visit() for _ in range(3)]
    for opened in pages:
        send(opened, photo)
    for opened, button in zip(pages, ("Glasses", "Smile", "Older"), strict=True):
        opened.get_by_role("button", name=button, exact=True).click()
    for opened, title in zip(pages, ("Eyeglasses:", "Smiling:", "Not young:"), strict=True):
        assert title in says(opened, "#edit_status", "seconds.")
        assert opened.locator("#past button").count() == 1


def test_a_lost_connection_loses_nothing(visit, photo):
    opened = visit()
    send(opened, photo)
    edit(opened, "Glasses", "Eyeglasses:")
    opened.context.set_offline(True)
    opened.get_by_role("button", name="Smile", exact=True).click()
    with opened.expect_navigation():  # gradio loads the page anew
        opened.context.set_offline(False)
    says(opened, "#edit_status", "Eyeglasses:")
    edit(opened, "Smile", "Smiling:")
    assert opened.locator("#past button").count() == 2


def test_two_tabs_are_two_visitors(visit, photo, tmp_path):
    """A copy of a tab takes along what the tab has stored. Each edits its own picture, and finds it
    again when it is loaded anew."""
    first, other = visit(), drawn_face(tmp_path / "other.png", 60)
    send(first, photo)
    with first.context.expect_page() as opening:
        first.evaluate("() => { open(location.href) }")
    second = opening.value
    second.set_default_timeout(SECONDS)
    second.wait_for_selector("#upload input[type=file]", state="attached")
    send(second, other)
    edit(second, "Glasses", "Eyeglasses:")
    edit(first, "Smile", "Smiling:")
    for tab, name, request in ((first, photo.name, "Smiling=1"), (second, other.name, "Eyeglasses=1")):
        tab.reload()
        says(tab, "#edit_status", "seconds.")
        assert tab.locator("#past button").count() == 1
        tab.get_by_role("button", name="Take it away").click()
        line = tab.locator("#take textarea").input_value()
        words = shlex.split(line)
        assert words[words.index("--source_image") + 1] == name
        assert words[words.index("--attributes") + 1 :][:1] == [request] and line.count("=") == 1, line


def test_seeds_are_as_large_as_those_of_the_scripts(visit):
    opened = visit()
    opened.get_by_role("tab", name="Generate").click()
    opened.get_by_label("How many").last.fill("1")
    seed = opened.get_by_label("Seed").locator("visible=true")
    seed.fill(str(2**63 - 1))
    opened.locator("#generate").click()
    says(opened, "#generate_status", "1 in")
    assert "--seed 9223372036854775807" in opened.locator("textarea:visible").last.input_value()
    for wrong in ("1.5", "-1", "9" * 19):
        seed.fill(wrong)
        opened.locator("#generate").click()
        says(opened, "body", wrong)


class BelowPath(BaseHTTPRequestHandler):
    """A proxy that shows a page at /faces/, and nothing elsewhere."""

    page = ""

    def do_GET(self):
        if not self.path.startswith("/faces/"):
            self.send_error(404)
            return
        length = int(self.headers.get("Content-Length") or 0)
        request = urllib.request.Request(self.page + self.path.removeprefix("/faces"))
        request.data = self.rfile.read(length) if self.command == "POST" else None
        request.headers = dict(self.headers)
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            answer = error
        with answer, suppress(OSError):  # the browser may have left
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            while part := answer.read1():
                self.wfile.write(part)
                self.wfile.flush()

    do_POST = do_GET

    def log_message(self, *words):
        pass


def test_it_works_below_a_path(start, browser, photo):
    server = start("--root_path", "faces/")
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("Proxy", (BelowPath,), {"page": server.address}))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    opened, missing = browser.new_page(), []
    opened.set_default_timeout(SECONDS)
    opened.on("response", lambda answer: missing.append(answer.url) if answer.status >= 400 else None)
    opened.goto(f"http://127.0.0.1:{proxy.server_port}/faces/")
    opened.wait_for_selector("#upload input[type=file]", state="attached")
    send(opened, photo)
    edit(opened, "Glasses", "Eyeglasses:")
    wait_until(opened, "() => document.querySelector('#whole img')?.naturalWidth")
    opened.close()
    proxy.shutdown()
    assert not missing and len(server.lines) == 1


def test_it_fits_a_telephone(visit):
    opened = visit(viewport={"width": 390, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    # Both pictures stay above the sliders, the buttons below them, once there is so much to scroll.
    scrolled = "() => {scrollTo(0, 1000); return scrollY == 1000}"
    wait_until(opened, scrolled)
    edges = "[...document.querySelectorAll('#pictures, #edit_bar')].map(e => e.getBoundingClientRect())"
    pictures, bar = opened.evaluate(f"{edges}.map(e => [e.top, e.bottom])")
    assert abs(pictures[0]) < 2 and pictures[1] < 400 and abs(bar[1] - 800) < 2
    unlabelled = """() => [...document.querySelectorAll('input:not([type=file]), textarea, button')]
        .filter(each => each.offsetParent && !each.labels?.length && !each.ariaLabel && !each.title
                && !each.getAttribute('aria-labelledby') && !each.innerText.trim() && !each.placeholder)
        .map(each => each.outerHTML.slice(0, 200))"""
    assert opened.evaluate(unlabelled) == []


def test_a_page_that_cannot_open_says_so():
    """A port that is taken, and one that nobody may listen at: one line each."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        run = subprocess.run(
            [sys.executable, "app.py", "--port", port], cwd=ROOT, capture_output=True, text=True
        )
    assert run.returncode == 2 and "choose another --port" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_it_works_by_program(address, photo, tmp_path):
    """The example of docs/page.md. Nothing else can be called, and errors are one line."""
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    text = (ROOT / "docs/page.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.S)[1]
    example = example.replace("http://127.0.0.1:7860", address).replace("me.jpg", str(photo))
    values = {}
    exec(example, values)
    assert [Image.open(each).size for each in values["faces"]] == [(64, 64)] * 2
    assert Image.open(values["whole"]).size == (256, 256) and Image.open(values["film"]).n_frames > 3
    client = Client(address, verbose=False)
    assert sorted(client.view_api(return_format="dict")["named_endpoints"]) == [
        "/edit", "/generate", "/interpolate",
    ]  # fmt: skip
    outside = {"path": str(tmp_path / "no.png"), "url": "http://127.0.0.1:9/x.png"}
    for bad in ((outside, "Smiling=1"), ("x", "Smiling=1"), (None, "")):
        with pytest.raises(AppError, match="did not arrive"):
            client.predict(*bad, api_name="/edit")
    for bad in (("Smilng=1",), ("Smiling=1", 10**9), ({"Smiling": {}},), ("", 1, -1)):
        with pytest.raises(AppError, match=r"did you mean|give|expected|seed"):
            client.predict(*bad, api_name="/generate")


def test_nobody_reads_files_of_this_machine(address):
    """The route of files gives what the page made alone."""
    for path in ("/etc/passwd", str(ROOT / "config.py"), str(ROOT / "pretrained")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}")
        assert refused.value.code in (403, 404)
    with urllib.request.urlopen(f"{address}/gradio_api/component_server", b"{}") as answer:
        assert answer.read() == b"null", "what gradio would keep is not taken"
