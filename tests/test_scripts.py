"""The command lines: what they write, and one line with exit code 2 for whatever is wrong."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, SCRIPTS, one_line, run_script, train_judge
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

import evaluate
import manipulate
import train
import visualize
from image_data.picture import NOTE, read_note


@pytest.fixture
def photograph(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    path = tmp_path / "input" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    return path


def made(*words: str) -> subprocess.CompletedProcess:
    """What make would do, with the environment that is there."""
    command = ["make", "--dry-run", "--old-file", ".venv/installed", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_the_workflow_of_the_makefile_is_commands_that_go_on(tmp_path):
    (tmp_path / "diffusion").mkdir()
    for stopped in (False, True):
        done = made("latent", "DATA=/my faces", f"RUN={tmp_path}", "FLAGS=--max_steps 2")
        commands = re.findall(r"python (\S+)\.py (.*)", done.stdout.replace("\\\n", " "))
        flags = {line: SCRIPTS[name].parse_args(shlex.split(line)) for name, line in commands}
        folders = {config.data_root for line, config in flags.items() if "--data_root" in line}
        assert folders - {f"{tmp_path}/latents"} == {"/my faces"}
        (diffusion,) = (config for line, config in flags.items() if f"{tmp_path}/diffusion/logs" in line)
        assert diffusion.max_steps == 2 and (diffusion.resume == "") == stopped
        (tmp_path / "diffusion" / "last.pth").touch()
    (line,) = (line for line in made("latent").stderr.splitlines() if "***" in line)
    assert "no DATA: make latent DATA=/path/to/celeba" in line


def test_all_modes_write_what_they_promise(checkpoint, photograph, tmp_path):
    out = tmp_path / "out"
    common = ["--checkpoint", checkpoint, "--output_dir", out, "--num_inference_steps", "2"]
    run_script(manipulate, *common, "--source_image", photograph, "--num_samples", "2")
    names = {str(path.relative_to(out)) for path in out.rglob("*.*")}
    fixed = {"samples.png", "interpolation.png", "interpolation.gif", "edit.png", "manifest.json"}
    assert fixed <= names
    assert {f"samples/{i:03d}.png" for i in range(16)} <= names, "two of each built-in request"
    assert "edits/006.png" in names
    assert Image.open(out / "samples" / "000.png").size == (32, 32)
    # Ten frames there and eight back at 120 ms each; Pillow merges equal frames and adds their times.
    frames = ImageSequence.Iterator(Image.open(out / "interpolation.gif"))
    assert sum(frame.info["duration"] for frame in frames) == 18 * 120
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["arguments"]["seed"] == 0
    asked = manifest["made"]["generate"]["attributes"]
    assert asked[0]["Smiling"] == 1 and asked == asked[:8] * 2
    assert len(manifest["model"]["attribute_names"]) == 40


def test_what_is_not_named_is_drawn_from_the_training_rows(checkpoint, faces, tmp_path):
    """Whole rows in the manifest, each as in the data; with --open, zeros; and no condition at all."""
    common = ["--checkpoint", checkpoint, "--num_samples", "6", "--num_inference_steps", "2"]
    lines = (faces / "list_attr_celeba.txt").read_text().splitlines()[2:]
    known = {tuple(map(float, line.split()[1:])) for line in lines}
    made = {}
    for which, request in {
        "completed": ["--attributes", "Smiling=1"],
        "again": ["--attributes", "Smiling=1"],
        "open": ["--attributes", "Smiling=1", "5_o_Clock_Shadow=0.75", "--open"],
        "unconditional": ["--unconditional"],
    }.items():
        mode = [] if which == "unconditional" else ["--mode", "generate"]
        run_script(manipulate, *common, *mode, *request, "--output_dir", tmp_path / which)
        manifest = json.loads((tmp_path / which / "manifest.json").read_text())
        assert list(manifest["made"]) == ["generate"]
        made[which] = manifest["made"]["generate"]
    assert {tuple(row) for row in made["completed"]["rows"]} <= known
    assert made["completed"]["attributes"] == [{"Smiling": 1}] * 6
    assert made["again"]["rows"] == made["completed"]["rows"]
    assert len({tuple(row) for row in made["completed"]["rows"]}) > 1
    assert [sum(map(abs, row)) for row in made["open"]["rows"]] == [1.5] * 6
    assert not np.any(made["unconditional"]["rows"])
    assert made["unconditional"]["attributes"] == [{}] * 6
    files = [tmp_path / which / "samples" / "000.png" for which in made]
    assert len({file.read_bytes() for file in files}) == 3
    run_script(manipulate, *common, "--mode", "interpolate", "--output_dir", tmp_path / "between")
    made = json.loads((tmp_path / "between" / "manifest.json").read_text())["made"]["interpolate"]
    names = manifest["model"]["attribute_names"]
    assert tuple(made["rows"][0]) in known, "the start is a row of the data"
    for row, sign in zip(made["rows"], (1, -1), strict=True):
        assert all(row), "both ends are whole"
        assert (row[names.index("Male")], row[names.index("Smiling")]) == (sign, -sign)


def test_fewer_samples_into_a_folder_of_more(checkpoint, faces, tmp_path, monkeypatch):
    """What a manifest named and its successor does not is gone. What other modes made is still named,
    and what somebody else put there stays, as does the photograph."""
    monkeypatch.chdir(tmp_path)
    common = ["--checkpoint", checkpoint, "--output_dir", "out", "--num_inference_steps", "2"]
    few = [*common, "--mode", "generate", "--attributes", "Smiling=1", "--num_samples"]
    edit = ["--mode", "edit", "--attributes", "Smiling=1", "Male=1"]

    def manifest() -> dict:
        return json.loads(Path("out", "manifest.json").read_text())

    def images(made: dict) -> list[str]:
        return [Path(path).name for path in made["images"]]

    run_script(manipulate, *few, "6")
    Path("out", "samples", "own.png").write_bytes(Path("out", "samples", "005.png").read_bytes())
    photograph = Path("out", "samples", "004.png").absolute()
    run_script(manipulate, *common, *edit, "--source_image", photograph, "--face", "0", "--paste_back")
    assert list(manifest()["made"]) == ["edit"] and len(images(manifest()["made"]["edit"])) == 3
    (before,) = manifest()["earlier"]
    assert before["arguments"]["mode"] == "generate" and len(images(before["made"]["generate"])) == 6
    source = Path("out", "samples", "004.png").read_bytes()
    run_script(manipulate, *few, "2")
    names = sorted(path.name for path in Path("out", "samples").iterdir())
    assert names == ["000.png", "001.png", "own.png"]
    assert images(manifest()["made"]["generate"]) == ["000.png", "001.png"]
    (before,) = manifest()["earlier"]
    assert list(before["made"]) == ["edit"]
    assert sorted(path.name for path in Path("out", "edits").iterdir()) == [
        *("000.png", "000_whole.png", "001.png", "001_whole.png", "002.png", "002_whole.png")
    ]
    Path("out", "edits", "photograph.png").write_bytes(source)
    run_script(
        manipulate, *common, *edit[:3], "Male=1", "--face", "0", "--source_image",
        Path("out", "edits", "photograph.png").absolute(),
    )  # fmt: skip
    assert sorted(path.name for path in Path("out", "edits").iterdir()) == ["000.png", "photograph.png"]
    assert [list(each["made"]) for each in manifest()["earlier"]] == [["generate"]]
    Path("out", "manifest.json").write_text("no manifest")
    run_script(manipulate, *few, "1")
    assert manifest()["earlier"] == [] and Path("out", "samples", "001.png").is_file()


def test_an_edit_does_not_depend_on_what_else_is_asked_for(checkpoint, faces, tmp_path):
    """Edits of another depth are made in a batch of their own. The source is a test image."""
    edits = []
    for more in ([], ["Blond_Hair=1"]):
        out = tmp_path / f"with{len(more)}"
        run_script(
            manipulate, "--checkpoint", checkpoint, "--output_dir", out, "--mode", "edit", "--data_root",
            faces, "--attributes", *more, "Smiling=1", "--num_inference_steps", "2",
        )  # fmt: skip
        edits.append((out / "edits" / f"{len(more):03d}.png").read_bytes())
    assert edits[0] == edits[1]
    made = json.loads((out / "manifest.json").read_text())["made"]["edit"]
    assert made["attributes"][-1] == {"Blond_Hair": 1.0, "Smiling": 1.0}
    assert "img_align_celeba" in made["source"]


def test_a_picture_says_what_made_it_and_is_made_again(checkpoint, photograph, tmp_path, capsys):
    """To the same bytes, by what its text chunk says; the files must be the same."""
    folder, mask = photograph.parent, photograph.parent / "mask.png"
    Image.fromarray(np.uint8([[255, 255], [0, 255]])).resize((32, 32)).save(mask)
    given = ["--checkpoint", checkpoint, "--source_image", photograph, "--mask", mask]
    few = ["--num_inference_steps", "2", "--seed", "5", "--paste_back"]
    run_script(
        manipulate, *given, "--output_dir", folder / "edit", "--mode", "edit", *few, "--attributes",
        "Smiling=1", "Eyeglasses=1", "--hold", "Male",
    )  # fmt: skip
    run_script(
        manipulate, "--checkpoint", checkpoint, "--output_dir", folder / "new", "--mode", "generate",
        "--num_samples", "1", "--num_inference_steps", "2",
    )  # fmt: skip
    note = read_note(folder / "edit" / "edits" / "001.png")
    assert note.settings["attributes"] == ["Eyeglasses=1.0"] and note.settings["hold"] == ["Male"]
    for i, (name, again) in enumerate(
        {
            "edit/edits/001.png": "edits/000.png",
            "edit/edits/002_whole.png": "edits/002_whole.png",
            "edit/edit_strength.png": "edit_strength.png",
            "new/samples/007.png": "samples/007.png",
        }.items()
    ):
        picture, out = folder / name, tmp_path / f"again{i}"
        assert str(tmp_path.name).encode() not in picture.read_bytes()
        files = given[:2] if "new" in name else given
        run_script(manipulate, "--from_picture", picture, *files, "--output_dir", out)
        assert (out / again).read_bytes() == picture.read_bytes(), name

    def line(*argv: object) -> str:
        picture = folder / "edit" / "edits" / "000.png"
        return one_line(
            capsys, lambda: run_script(manipulate, "--from_picture", picture, *argv, "--output_dir", out)
        )

    out = tmp_path / "none"
    other = folder / "other.png"
    Image.new("L", (32, 32), 99).save(other)
    assert re.search(
        r"made with --mask 'mask.png' \w{12}, and this is 'other.png' \w{12}:",
        line(*given[:4], "--mask", other),
    )
    assert re.search(
        r"--source_image 'photo.png' \w{12}, and this is 'other.png' \w{12}:",
        line(*given[:2], "--source_image", other),
    )
    assert "--mask 'mask.png'" in line(*given[:4]) and "needs a photograph" in line(*given[:2])
    assert not out.exists()
    run_script(manipulate, "--from_picture", picture, *given[:2], "--no_metadata", "--output_dir", out)
    with pytest.raises(ValueError, match="does not say what made it"):
        read_note(out / "samples" / "007.png")


HOSTILE = (
    "", "[", "[1]", "3", '{"settings": {}}', '{"settings": [], "files": {}}', "[" * 9000, "x" * 10**6,
    '{"settings": {}, "files": []}', '{"settings": {}, "files": {"mask": 3}}',
    *(
        f'{{"settings": {{{each}}}, "files": {{}}}}'
        for each in (
            '"seed": "a"', '"seed": -1', '"seed": 1' + "0" * 4000, '"seed": 1' + "0" * 5000,
            '"seed": [[]]',
            '"seed": {}', '"output_dir": "/tmp"', '"source_image": "/etc/passwd"', '"from_picture": "a"',
            '"device": "cpu"', '"nothing": 1', '"attributes": 3', '"attributes": [3]', '"mode": "x"',
            '"attributes": ["Smiling=\\ud800"]', '"attributes": ["\\n\\u001b[31mA=1"]', '"hold": [null]',
            '"manipulation_strength": NaN', '"manipulation_strength": 1e999', '"config": "a"',
        )
    ),
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_chunk_from_a_stranger_is_one_line(
    text, checkpoint, photograph, tmp_path, capsys, monkeypatch
):
    info = PngInfo()
    info.add_text(NOTE, text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    monkeypatch.chdir(tmp_path)
    argv = ["--from_picture", "a.png", "--mode", "edit", "--checkpoint", checkpoint]
    assert one_line(
        capsys, lambda: run_script(manipulate, *argv, "--source_image", photograph)
    ).isprintable()
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "input"}


def test_many_photographs_are_edited_and_one_that_fails_ends_no_other(checkpoint, tmp_path, capsys):
    """A folder and a file. Each edit is that of its photograph alone. The table says what failed."""
    folder, out = tmp_path / "some", tmp_path / "out"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (60, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture")
    common = ["--checkpoint", checkpoint, "--mode", "edit", "--attributes", "Smiling=1", "Male=0"]
    common += ["--num_inference_steps", "2", "--output_dir"]
    more = ["--source_image", folder, tmp_path / "none.jpg", "--paste_back"]
    run_script(manipulate, *common, out, *more)
    assert "3 pictures; passed over: 1 .txt" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "edits.csv").read_text(encoding="utf-8").splitlines()))
    written = ["edits/000_0.png", "", "edits/002_2.png", ""]
    assert [row["written"] for row in rows] == written and rows[0]["width"] == "50"
    assert "not a readable picture" in rows[1]["error"] and "does not exist" in rows[3]["error"]
    assert rows[0]["found"] and not rows[0]["error"]
    names = {"edits.csv", "contact_sheet.png", "manifest.json", "edits"}
    assert {path.name for path in out.iterdir()} == names and (
        out / "edits" / "002_2_whole.png"
    ).is_file()
    run_script(manipulate, *common, tmp_path / "one", "--source_image", folder / "2.png", "--paste_back")
    one = (tmp_path / "one" / "edits" / "002.png").read_bytes()
    assert one == (out / "edits" / "002_2.png").read_bytes()
    run_script(manipulate, *common, out, "--source_image", out / "edits")
    assert {"000_0.png", "000_000_0.png"} <= {path.name for path in (out / "edits").iterdir()}


@pytest.fixture
def broken(tmp_path, faces):
    """Inputs that are wrong: a text file named .jpg, and a folder whose rows do not match its images."""
    (tmp_path / "text.jpg").write_text("this is no picture")
    (tmp_path / "typo.yaml").write_text("bach_size: 3\n")
    (tmp_path / "code.yaml").write_text("lr: !!python/object/apply:os.getcwd []\n")
    (tmp_path / "wrong.yaml").write_text("lr: fast\n")
    short = tmp_path / "short"
    short.mkdir()
    (short / "img_align_celeba").symlink_to(faces / "img_align_celeba")
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        lines = (faces / name).read_text().splitlines()
        (short / name).write_text("\n".join(lines[:-3]) + "\n")
    return tmp_path


# A script, flags that are wrong, and what its one line must name. {braces} are the fixtures'.
WRONG = """
manipulate | --attributes Smilling=1 | Smiling
manipulate | --attributes Male | 'Male'
manipulate | --attributes Male=3 | 3
manipulate | --attributes Male=1 Male=0 | Male
manipulate | --cfg_scale 0 | --unconditional
manipulate | --edit_cfg_scale 0 | --edit_cfg_scale 0
manipulate | --mode edit --cfg_scale 2 | --edit_cfg_scale
evaluate | edits --data_root {faces} --cfg_scale 2 | --edit_cfg_scale
visualize | denoising --cfg_scale 0 | --unconditional
manipulate | --guidance guide --guide_scale 0 --mode generate | --unconditional
manipulate | --guidance guide --edit_guide_scale 0 --mode edit | --edit_guide_scale 0
visualize | samples --unconditional | for denoising
visualize | animation --unconditional --attributes Male=1 | leave --attributes out
visualize | denoising --attributes Male=3 --checkpoint {checkpoint} --output_dir {tmp} | Male is 3.0
train | --data_root {faces} --attribute Male Smilling | did you mean Smiling
manipulate | --unconditional --attributes Male=1 | --attributes
manipulate | --unconditional --mode edit | --mode edit
manipulate | --from Male=1 | --to
manipulate | --checkpoint {tmp}/none.pth | none.pth
manipulate | --checkpoint {tmp}/text.jpg | text.jpg
manipulate | --mode edit --source_image {tmp}/no.jpg | --source_image {tmp}/no.jpg does not exist
manipulate | --mode edit --source_image {faces} | or a folder, are for --mode edit --attributes
manipulate | --source_image a b --attributes Male=1 | several --source_image, or a folder, are for
manipulate | --mode edit --source_image {tmp}/short --attributes Male=1 | no picture that can be read
manipulate | --mode edit --source_image https://a.org/b.jpg | https://a.org/b.jpg is an address: download
manipulate | --source_image {tmp}/text.jpg --target_image {tmp} | --target_image {tmp} is a folder
manipulate | --mode edit --data_root https://a.org/b | https://a.org/b is an address: download it
manipulate | --mode generate --output_dir s3://a/b | s3://a/b is an address
train | --data_root {faces} --save_dir gs://a/b | gs://a/b is an address
manipulate | --checkpoint https://a.org/b.pth | https://a.org/b.pth is an address: download it
manipulate | --mode edit | --source_image
manipulate | --mode edit --face 2 | --source_image
manipulate | --mode edit --source_image {faces}/img_align_celeba/000001.jpg --face 9 | --face 9
manipulate | --mode edit --source_image {tmp}/text.jpg | text.jpg
manipulate | --num_inference_steps 2000 | 2000
manipulate | --mode generate --mask eyes | --mask is of edits, and this is --mode generate
manipulate | --mode edit --attributes Male=1 --hold Male | Male is both asked for
manipulate | --mode edit --data_root {faces} --hold Mal | the guide does not read Mal
manipulate | --mode edit --data_root {faces} --mask {tmp}/text.jpg | text.jpg is not a readable picture
train | --bach_size 3 | --bach_size
train | --batch_size -4 | '-4'
train | --data_root {tmp}/nowhere | nowhere
train | --data_root {tmp}/short | list_attr_celeba.txt
train | --data_root {faces} --image_size 36 | 36 is not divisible by 8
train | --data_root {faces} --image_size 32 --channels 32 66 | 66
train | --data_root {faces} --resume {tmp}/none.pth | none.pth
train | --config {tmp}/typo.yaml | did you mean batch_size
train | --config {tmp}/code.yaml | --lr
train | --config {tmp}/wrong.yaml | 'fast'
train | --config {tmp}/none.yaml | none.yaml
train | --stage first_stage --compile | --compile is for the UNet
visualize | attributes | --data_root
visualize | denoising --attributes Smilling --checkpoint {checkpoint} --output_dir {tmp} | Smiling
encode_latents | --data_root {faces} --first_stage {tmp}/none.pth --output_dir {tmp}/out | none.pth
manipulate | --mode generate --output_dir {tmp}/text.jpg/out | --output_dir
visualize | architecture --checkpoint {checkpoint} --output_dir /proc/a | /proc/a
evaluate | --data_root {faces} --output_dir {tmp}/text.jpg | --output_dir
train | --data_root {faces} --save_dir {tmp}/text.jpg/a | --save_dir
train | --data_root {faces} --device cuda | --device cpu
"""


@pytest.mark.parametrize("case", WRONG.strip().splitlines())
def test_wrong_input_is_one_line_exit_2_and_nothing_written(
    case, broken, faces, checkpoint, capsys, monkeypatch
):
    name, flags, message = case.split(" | ")
    monkeypatch.chdir(broken)
    before = set(broken.rglob("*"))
    argv = flags.format(tmp=broken, faces=faces, checkpoint=checkpoint).split()
    if name == "manipulate" and "--checkpoint" not in argv:
        argv += ["--checkpoint", checkpoint]
    message = message.format(tmp=broken, faces=faces)
    assert message in one_line(capsys, lambda: run_script(SCRIPTS[name], *argv))
    assert set(broken.rglob("*")) == before


def test_another_architecture_is_refused_on_resume(flags, checkpoint, tmp_path, capsys):
    more = ["--channels", "16", "16", "--resume", checkpoint.with_name("last.pth")]
    line = one_line(capsys, lambda: run_script(train, *flags, *more, "--save_dir", tmp_path))
    assert "channels = [16, 32], this run has [16, 16]" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", [*SCRIPTS, "synthetic_faces", "synthetic_faces.benchmark"])
def test_help_needs_no_torch(script):
    code = (
        f"import sys, runpy; sys.argv = ['{script}', '--help']\n"
        f"try: runpy.run_module('{script}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop: assert stop.code in (0, None)\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_every_configuration_is_one(path):
    train.parse_args(["--config", str(path)])


def test_classes_through_every_script(class_checkpoint, colours, tmp_path, capsys):
    """A row for each class, edits from one class to others, and no guidance without what it needs."""
    out = tmp_path / "out"
    common = ["--checkpoint", class_checkpoint, "--num_inference_steps", "2"]
    run_script(manipulate, *common, "--data_root", colours, "--output_dir", out, "--num_samples", "2")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["sampling"]["cfg_scale"] == 1 and manifest["editing"]["cfg_scale"] == 8
    rows = np.array(manifest["made"]["generate"]["rows"])
    assert rows.shape == (6, 3) and ((rows == 1).sum(1) == 1).all() and ((rows == -1).sum(1) == 2).all()
    edits = manifest["made"]["edit"]["attributes"]
    assert len(edits) == 2 and all(value == 1 for edit in edits for value in edit.values())
    for argv, message in (
        (["--cfg_scale", "3"], "cfg_scale 3 is for models trained without condition, too"),
        (["--guidance", "guide", "--guide", class_checkpoint], "use --guidance both"),
        (["--unconditional"], "without any request is for models trained without condition, too"),
        (["--attributes", "red=1", "blue=1"], "classes that exclude each other"),
    ):
        argv = [*common, "--mode", "generate", "--output_dir", out, *argv]
        assert message in one_line(capsys, lambda argv=argv: run_script(manipulate, *argv))
    figures = [*common, "--data_root", colours, "--output_dir", out, "--cache_dir", tmp_path / "cache"]
    for what in ("samples", "interpolation"):
        run_script(visualize, what, *figures, "--num_samples", "4")
        assert (out / f"{what}.png").is_file()


def test_the_class_asked_for_is_judged(class_checkpoint, colours, tmp_path, capsys):
    data = ["--data_root", colours, "--cache_dir", tmp_path / "cache"]
    train_judge(tmp_path / "judge.pth", *data, "--judge_epochs", "5", "--image_size", "32")
    common = ["--checkpoint", class_checkpoint, *data, "--judge", tmp_path / "judge.pth"]
    common += ["--batch_size", "32", "--num_inference_steps", "2", "--output_dir", tmp_path / "out"]
    run_script(evaluate, *common, "--attribute_split", "train", "--num_samples", "32")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["real"]["attributes"]["class_accuracy"] > 0.9  # colours are easy
    setting, nothing = report["settings"]
    assert nothing["request"] == "none" and "unasked" in nothing["attributes"]
    assert 0 <= setting["attributes"]["class_accuracy"] <= 1 and setting["sampling"]["cfg_scale"] == 1
    assert "request met" in capsys.readouterr().out
    run_script(evaluate, "edits", *common, "--edit_sources", "2", "--strengths", "1")
    edits = json.loads((tmp_path / "out" / "edits.json").read_text())["edits"]
    assert [task["task"] for task in edits[1]["tasks"]] == ["add blue", "add green", "add red"]
