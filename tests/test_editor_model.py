"""The editor that is taught: its network, its pairs, its training, and the edits that it makes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import TINY_FLAGS, draw_zeros, noise, refused, run_script, run_training, seeded, train_judge
from PIL import Image

import evaluate
import export
import make_pairs
import manipulate
import train
from attributes import CELEBA_ATTRIBUTES
from checkpoint import load, load_checkpoint, replace_file
from config import EditConfig, LossConfig, ModelConfig
from diffusion_model import ConditionalDiffusion
from editing import Editor
from editor_model import SMALL_CHANGE, EditorModel, load_editor
from image_data.pairs import FORMAT, PairDataset
from samplers import last

NAMES = ("Smiling", "Male", "Young")


def editor(**changes) -> EditorModel:
    torch.manual_seed(0)
    small = {"image_size": 16, "channels": (16, 32), "num_heads": 2, "latent_dim": 8}
    model = EditorModel(ModelConfig(NAMES, **small | changes))
    draw_zeros(model.unet, std=0.05)
    return model.eval()


def set_gate(model: EditorModel, value: float) -> None:
    """The same gate everywhere, whatever is seen: the last channel's patches."""
    gate = slice(-(model.unet.patch_size**2), None)
    model.unet.conv_out.weight.data[gate], model.unet.conv_out.bias.data[gate] = 0, value


def write_pairs(folder, number=40, size=16, names=NAMES, **changes):
    """Pairs of plain pictures, the second brighter, in files of ten, as make_pairs.py writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"format": FORMAT, "image_size": size, "crop": 178, "attribute_names": names, "flips": True}
    (folder / "manifest.json").write_text(json.dumps(facts))
    rng = np.random.default_rng(0)
    for file in range(number // 10):
        before = rng.integers(0, 150, (10, 1, 1, 3), np.uint8) + np.zeros((10, size, size, 3), np.uint8)
        row = np.zeros(len(names), np.int8)
        row[file % len(names)] = 1
        arrays = {
            "before": before,
            "after": before + 100,
            "row": row,
            "convinced": np.ones(10, bool),
            "others": np.zeros(10, int),
            "names": np.array([f"{10 * file + i:06d}.jpg" for i in range(10)]),
        }
        np.savez(folder / f"{file:05d}.npz", **arrays | changes)
    return folder


# -------------------------------------------------------------------- the network


def test_a_shut_gate_copies_the_picture_and_an_open_one_does_not():
    model, x_t, source = editor(), noise(2, 3, 16, 16).float(), noise(2, 3, 16, 16, seed=1).float()
    t, change = torch.tensor([10, 900]), torch.tensor([[1.0, 0, 0], [0, -1.0, 0]])
    set_gate(model, -100)
    assert torch.equal(model.predict(x_t, t, source, change), source)
    set_gate(model, 100)
    output = model.unet(torch.cat([x_t, source], 1), t, change)
    own, _ = model.schedule.to_x0_eps("x0", output[:, :3], x_t, t)
    torch.testing.assert_close(model.predict(x_t, t, source, change), own)


def test_it_starts_as_the_model_does_with_every_gate_half_open(make_model):
    model, own, source = make_model(NAMES), editor(), noise(2, 3, 16, 16, seed=1).float()
    own.start_from(model.unet)
    x_t, t, rows = noise(2, 3, 16, 16).float(), torch.tensor([10, 900]), torch.eye(3)[:2]
    x0_hat, _ = model.denoiser(rows)(x_t, t)
    expected = (source + x0_hat) / 2
    torch.testing.assert_close(own.predict(x_t, t, source, rows), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_at_scale_0_nothing_changes_and_with_more_more(steps):
    model, source = editor(), noise(2, 3, 16, 16, seed=1).float().clamp(-1, 1)
    change, x_T = torch.eye(3)[:2], noise(2, 3, 16, 16).float()

    def distance(scale: float) -> float:
        with torch.no_grad():
            edited = last(model.edit(source, change, model.grid(steps), x_T, scale))
        return float((edited - source).square().mean())

    assert distance(0) < 1e-10
    assert distance(0) < distance(0.5) < distance(1)


def test_the_loss_is_the_share_of_the_change_that_is_missed():
    model, before = editor(), torch.full((2, 16, 16, 3), 50, dtype=torch.uint8)
    pairs = torch.cat([before, before + 100], 3)
    set_gate(model, -100)  # x0_hat is the picture before
    terms, per_sample, _ = model(pairs, torch.eye(3)[:2], LossConfig(), torch.tensor([10, 900]))
    change = (100 / 127.5) ** 2
    torch.testing.assert_close(per_sample, torch.full((2,), change / (change + SMALL_CHANGE)))
    assert terms["total"] == per_sample.mean()


def test_in_training_some_pairs_ask_for_what_is_there():
    """The picture after is then also the one before, and a shut gate makes no error."""
    model = editor().train()
    set_gate(model, -100)
    before = torch.full((400, 16, 16, 3), 50, dtype=torch.uint8)
    torch.manual_seed(0)
    with torch.no_grad():
        _, errors, t = model(torch.cat([before, before + 100], 3), torch.zeros(400, 3), LossConfig())
    assert 0.1 < (errors == 0).float().mean() < 0.2
    assert 0.68 < (t > 500).float().mean() < 0.82  # t / T is the root of a uniform number


# -------------------------------------------------------------------- its pairs


def test_pairs_are_read_both_ways_and_split_by_photograph(tmp_path):
    write_pairs(tmp_path, 400)
    sets = {split: PairDataset(tmp_path, split) for split in ("train", "val")}
    assert len(sets["train"]) + len(sets["val"]) == 800 and 10 < len(sets["val"]) < 80
    data = sets["train"]
    half = len(data) // 2
    item = data.__getitems__([3, 3 + half])
    first, second = item["image"].split(3, 3)
    assert torch.equal(first[0] + 100, second[0]) and torch.equal(first[0], second[1])
    assert torch.equal(item["attributes"][0], -item["attributes"][1])
    assert item["attributes"][0].sum() == 1


def test_doubtful_pairs_and_those_that_change_most_else_are_left_out(tmp_path):
    doubtful = np.arange(10) < 3
    write_pairs(tmp_path / "doubtful", 40, convinced=~doubtful)
    write_pairs(tmp_path / "other", 40, others=np.arange(10))
    sets = [PairDataset(tmp_path / "doubtful", split) for split in ("train", "val")]
    assert sum(len(data.before) for data in sets) == 28
    kept = PairDataset(tmp_path / "other", "train")
    assert 0.7 * 80 < 2 * len(kept.before) < 0.85 * 80


def test_pairs_of_rare_edits_are_repeated_in_training(tmp_path):
    """Of 33 files, 30 are of one edit: 300 pairs, 20 and 10."""
    write_pairs(tmp_path, 330)
    for path in sorted(tmp_path.glob("*.npz"))[3:]:
        with np.load(path) as file:
            pairs = dict(file)
        pairs["row"] = np.array([0, 1, 0] if path.stem == "00003" else [1, 0, 0], np.int8)
        np.savez(path, **pairs)
    for split, times in (("train", (1, 4, 4)), ("val", (1, 1, 1))):
        data = PairDataset(tmp_path, split)
        half = len(data) // 2
        for column, expected in enumerate(times):
            mine = (data.attributes[:half, column] == 1).nonzero()[:, 0].tolist()
            different = {bytes(image.numpy()) for image in data.__getitems__(mine)["image"]}
            assert len(mine) == expected * len(different), (split, column)


def test_a_folder_without_pairs_is_refused_in_one_line(tmp_path):
    refused(lambda: PairDataset(tmp_path, "train"), "manifest.json", "make_pairs.py")
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    refused(lambda: PairDataset(tmp_path, "train"), "other", FORMAT)
    (tmp_path / "manifest.json").write_text("{")
    refused(lambda: PairDataset(tmp_path, "train"), str(tmp_path), "no whole pairs")
    write_pairs(tmp_path / "none", 0)
    refused(lambda: PairDataset(tmp_path / "none", "train"), "no pairs yet")
    write_pairs(tmp_path / "cut")
    (tmp_path / "cut" / "00001.npz").write_bytes(b"PK")
    refused(lambda: PairDataset(tmp_path / "cut", "train"), "no whole pairs")


@pytest.fixture(scope="module")
def judge(faces, flags, tmp_path_factory):
    path = tmp_path_factory.mktemp("judge") / "judge.pth"
    train_judge(path, *flags[:4], "--image_size", 32, "--judge_epochs", 1)
    return path


def test_pairs_are_made_once_and_by_whoever_goes_on(flags, checkpoint, judge, tmp_path, monkeypatch):
    names = ("--attribute", "Smiling", "Eyeglasses", "--number", 3, "--batch_size", 2)
    words = [
        *flags[:4],
        "--checkpoint",
        checkpoint,
        "--judge",
        judge,
        *names,
        "--num_inference_steps",
        2,
    ]
    run_script(make_pairs, *words, "--output_dir", tmp_path / "whole")
    files = sorted((tmp_path / "whole").glob("*.npz"))
    assert len(files) >= 4
    made = {file.name: file.read_bytes() for file in files}
    with np.load(files[0]) as file:
        assert file["before"].shape == file["after"].shape and file["row"].sum() in (1, -1)
    written = []

    def stops(path, write):
        written.append(path)
        if len(written) > 2:
            raise KeyboardInterrupt
        replace_file(path, write)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("training.pairs.replace_file", stops)
        run_script(make_pairs, *words, "--output_dir", tmp_path / "parts")
    assert 0 < len([*(tmp_path / "parts").glob("*.npz")]) < len(files)
    run_script(make_pairs, *words, "--output_dir", tmp_path / "parts")
    for name in made:
        with np.load(tmp_path / "whole" / name) as whole, np.load(tmp_path / "parts" / name) as parts:
            assert all(np.array_equal(whole[key], parts[key]) for key in whole.files)
    refused(
        lambda: run_script(make_pairs, *words, "--seed", 1, "--output_dir", tmp_path / "parts"),
        "seed 0, not 1",
    )


# -------------------------------------------------------------------- its training, and its edits


@pytest.fixture(scope="module")
def taught(checkpoint, tmp_path_factory):
    """editor_best.pth after three steps, for the tiny model of faces, from whose weights it starts."""
    folder = tmp_path_factory.mktemp("taught")
    pairs = write_pairs(folder / "pairs", 60, 32, CELEBA_ATTRIBUTES)
    words = ["--data_root", str(pairs), "--stage", "editor", *TINY_FLAGS, "--init_from", str(checkpoint)]
    run_training(words, folder, "--max_steps", 3, "--sample_interval", 1)
    return folder / "editor_best.pth"


def test_it_learns_what_pairs_have_in_common_and_makes_it():
    """All pictures after are brighter. Then so is an edit, from whatever noise."""
    model, generator = editor(), seeded()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    torch.manual_seed(0)
    for _ in range(80):
        before = torch.randint(0, 150, (8, 1, 1, 3), generator=generator).expand(-1, 16, 16, -1).byte()
        terms, _, _ = model(torch.cat([before, before + 100], 3), torch.eye(3)[[0] * 8], LossConfig())
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
    x0, x_T = model.first_stage.encode(before), torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        edited = last(model.edit(x0, torch.eye(3)[[0] * 8], model.grid(4), x_T))
    brighter = (edited - x0).mean() * 127.5
    assert 80 < brighter < 120


def test_an_editor_is_as_large_as_its_pairs_and_learns_all_of_them(tmp_path):
    pairs = write_pairs(tmp_path / "pairs", 20, 16, CELEBA_ATTRIBUTES)
    words = ["--data_root", str(pairs), "--stage", "editor", *TINY_FLAGS, "--max_steps", "1"]
    run_training(words, tmp_path)  # whose --image_size is 32
    assert load_editor(tmp_path / "editor_best.pth").config.image_size == 16
    for flag in (("--attribute", "Smiling"), ("--data_fraction", "0.5")):
        refused(lambda flag=flag: run_training(words, tmp_path / "part", *flag), str(pairs), flag[0])


def test_one_may_start_from_another_but_not_from_another_network(taught, checkpoint, tmp_path):
    pairs = write_pairs(tmp_path / "pairs", 20, 32, CELEBA_ATTRIBUTES)
    words = ["--data_root", str(pairs), "--stage", "editor", *TINY_FLAGS, "--max_steps", "1"]
    run_training([*words, "--lr", "1e-9"], tmp_path, "--init_from", taught)
    first, then = (load_editor(each) for each in (taught, tmp_path / taught.name))
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(then.state_dict()[name], weight, atol=1e-6, rtol=0)
    for other in (taught, checkpoint):
        words = [*words, "--channels", "16", "16", "--init_from", str(other)]
        refused(lambda words=words: run_training(words, tmp_path / "other"), "architecture", str(other))


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, stop_after_three):
    pairs = write_pairs(tmp_path / "pairs", 60, 32, CELEBA_ATTRIBUTES)
    words = ["--data_root", str(pairs), "--stage", "editor", *TINY_FLAGS, "--max_steps", "5"]
    run_training(words, tmp_path / "whole")
    with stop_after_three():
        run_training(words, tmp_path / "parts")
    run_training(words, tmp_path / "parts", "--resume")
    whole, parts = (load_checkpoint(tmp_path / name / "editor_last.pth") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 5
    for name, weight in whole["ema"].items():
        assert torch.equal(weight, parts["ema"][name]), name


def test_a_photograph_is_edited_by_the_editor_of_a_file(taught, checkpoint, tmp_path):
    photograph = tmp_path / "photograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(photograph)

    def edit(*more: object) -> dict:
        words = ("--mode", "edit", "--source_image", photograph, "--attributes", "Smiling=1", "Bangs=1")
        run_script(manipulate, *words, "--checkpoint", checkpoint, "--output_dir", tmp_path, *more)
        return json.loads((tmp_path / "manifest.json").read_text())

    facts = edit("--editor", taught)
    assert facts["files"]["editor"][1] == facts["editor"] == load_checkpoint(taught)["file_hash"]
    picture = tmp_path / "edit_strength.png"
    again = ("--from_picture", picture, "--source_image", photograph, "--checkpoint", checkpoint)
    run_script(manipulate, *again, "--editor", taught, "--output_dir", tmp_path / "again")
    assert (tmp_path / "again" / picture.name).read_bytes() == picture.read_bytes()
    without = (*again, "--output_dir", tmp_path / "without")
    refused(lambda: run_script(manipulate, *without), "--editor 'editor_best.pth'", "none")
    assert edit("--editor", "no")["editor"] is None
    refused(lambda: edit("--editor", checkpoint), str(checkpoint), "editor")


def test_edits_by_an_editor_are_measured(taught, checkpoint, judge, flags, tmp_path):
    words = (*flags[:4], "--checkpoint", checkpoint, "--judge", judge, "--edit_sources", 2)
    words += ("--strengths", 0.5, 1, "--edit_attributes", "Smiling", "--output_dir", tmp_path)
    run_script(evaluate, "edits", *words, "--editor", taught)
    first, second = json.loads((tmp_path / "edits.json").read_text())["edits"]
    assert (first["name"], second["name"]) == ("no edit", "editor")


def test_an_editor_is_exported(taught, tmp_path):
    model = load_editor(taught)
    out = tmp_path / "small_editor.safetensors"
    run_script(export, "--checkpoint", taught, "--out", out, "--half")
    exported = load_editor(out)
    assert exported.config == model.config
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(exported.state_dict()[name], weight, atol=1e-3, rtol=1e-3)


def test_an_upscaler_goes_behind_an_editor_as_behind_its_model(taught, checkpoint, flags, tmp_path):
    options = ["--image_size", 64, "--channels", 8, "--max_steps", 1, "--perceptual_weight", 0]
    folders = ["--save_dir", tmp_path, "--log_dir", tmp_path]
    run_script(train, "--stage", "upscaler", *flags[:4], *options, *folders)
    behind = ("--first_stage", tmp_path / "first_stage.pth")
    run_script(export, "--checkpoint", taught, "--out", tmp_path / "editor.pth", *behind)
    run_script(export, "--checkpoint", checkpoint, "--out", tmp_path / "model.pth", *behind)
    model = load(ConditionalDiffusion, "model", tmp_path / "model.pth", "cpu")
    model.use_editor(load_editor(tmp_path / "editor.pth"))
    photograph = torch.randint(0, 256, (1, 64, 64, 3)).byte()
    assert Editor(model).edit(photograph, {"Smiling": 1}, generator=seeded()).shape == (1, 64, 64, 3)


def test_a_model_with_an_editor_edits_by_it(make_model, tmp_path):
    model, photographs = make_model(NAMES), torch.randint(0, 256, (2, 16, 16, 3)).byte()
    guided = Editor(model).edit(photographs, {"Smiling": 1}, generator=seeded())
    model.use_editor(editor())
    assert "editor.unet.stem.weight" not in model.state_dict()
    edited = Editor(model).edit(photographs, {"Smiling": 1}, generator=seeded())
    assert not torch.equal(guided, edited)
    assert torch.equal(edited, Editor(model).edit(photographs, {"Smiling": 1}, generator=seeded()))
    none = Editor(model).edit(photographs, {"Smiling": 1}, 0.0, generator=seeded())
    assert torch.equal(none, photographs)
    by_guide = EditConfig(guide_scale=4.0)
    assert not Editor(model).is_taught(by_guide) and not Editor(model).is_taught(EditConfig(), ["Male"])
    guided_too = EditConfig(t_start=0.65)  # what this attribute has
    again = Editor(model).edit(photographs, {"Smiling": 1}, 1.0, guided_too, generator=seeded())
    assert torch.equal(guided, again)
    model.use_editor(None)
    assert torch.equal(guided, Editor(model).edit(photographs, {"Smiling": 1}, generator=seeded()))


def test_several_attributes_are_edited_one_after_the_other(make_model):
    model, photograph = make_model(NAMES), torch.randint(0, 256, (1, 16, 16, 3)).byte()
    model.use_editor(editor())
    x0, changes = model.encode_images(photograph), torch.diag(torch.tensor([1.0, -1.0, 0.0]))
    x_T = torch.randn(x0.shape, generator=seeded())
    for change in changes[:2]:
        with torch.no_grad():
            x0 = last(model.editor.edit(x0, change[None], model.editor.grid(4), x_T, 1.3))
    unlocalised = EditConfig(localise=0)
    edited = Editor(model).edit(
        photograph, {"Smiling": 1, "Male": 0}, editing=unlocalised, generator=seeded()
    )
    assert (edited.int() - model.first_stage.decode(x0).int()).abs().max() <= 1


def test_half_an_attribute_is_half_an_edit_and_each_picture_has_its_own_request(make_model):
    """From one photograph: what is not named in a row is not edited in it."""
    model, photograph = make_model(NAMES), torch.randint(0, 256, (1, 16, 16, 3)).byte()
    model.use_editor(editor())
    whole, half = {"Smiling": 1}, {"Smiling": 0.75}
    edit_at = Editor(model).prepare_edit(photograph, [whole, half, {"Male": 0}], generator=seeded())
    alone = [
        Editor(model).edit(photograph, each, strength, generator=seeded())
        for each, strength in ((whole, 1.0), (whole, 0.5), ({"Male": 0}, 1.0))
    ]
    assert (edit_at(1.0).int() - torch.cat(alone).int()).abs().max() <= 1
    assert not torch.equal(alone[0], alone[1])


def test_nothing_changes_outside_a_mask(make_model):
    model, photograph = make_model(NAMES), torch.randint(0, 256, (1, 16, 16, 3)).byte()
    model.use_editor(editor())
    mask = torch.zeros(16, 16)
    mask[:8] = 1
    edit_at = Editor(model).prepare_edit(photograph, {"Male": 1}, generator=seeded(), mask=mask)
    edited = edit_at(1.0)
    assert torch.equal(edited[:, 8:], photograph[:, 8:]) and not torch.equal(edited, photograph)


def test_an_editor_of_other_attributes_is_refused(make_model):
    refused(lambda: make_model(("Smiling",)).use_editor(editor()), "attribute_names", "Smiling")
    refused(lambda: make_model(NAMES, image_size=32).use_editor(editor()), "image_size", "16", "32")
