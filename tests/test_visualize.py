"""Every kind of figure, from a run of three steps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import run_training
from PIL import Image

import manipulate
import visualize
from diffusion_model import load_model
from figures.figures import Sources
from image_data.datasets import find_dataset

FILES = {
    *("attribute_balance.png", "attribute_correlation.png", "real.png", "samples.png"),
    *("reconstructions.png", "latent_space_Smiling.png", "denoising.png", "animation.gif"),
    *("interpolation.png", "curves_loss.png", "curves_validation.png", "architecture.png"),
    *("architecture.svg", "curves_balanced_accuracy.png", "curves_validation_cleanest_quartile.png"),
}


def draw(what, checkpoint, out, *more) -> None:
    common = [what, "--checkpoint", checkpoint, "--output_dir", out, "--device", "cpu"]
    argv = [str(word) for word in (*common, "--num_inference_steps", 3, *more)]
    visualize.visualize(visualize.parse_args(argv))


def test_all_figures_are_drawn(checkpoint, faces, tmp_path):
    data = ["--data_root", faces, "--cache_dir", tmp_path / "cache", "--num_samples", 2]
    logs = ["--log_dir", checkpoint.parent / "logs", "--attributes", "Smiling"]
    draw("all", checkpoint, tmp_path, *data, *logs)
    assert {path.name for path in tmp_path.iterdir()} >= FILES
    with Image.open(tmp_path / "animation.gif") as film:
        playing = [film.seek(i) or film.info["duration"] for i in range(film.n_frames)]
        assert playing == [120, 120, 120, 1200]  # the noise, after each step, and the end held
    svg = (tmp_path / "architecture.svg").read_text()
    assert "svg" in svg[:500]


@pytest.fixture(scope="module")
def smiling(flags, tmp_path_factory):
    """best_model.pth of a model of one attribute alone."""
    folder = tmp_path_factory.mktemp("smiling")
    flags = [*flags, "--attribute", "Smiling", "--sample_interval", "1"]
    return run_training(flags, folder, "--max_steps", 2).with_name("best_model.pth")


def test_a_run_leaves_pictures_of_both_classes_and_of_their_way_from_noise(smiling):
    """Without a tracker. The cells of a grid are 192 pixels wide."""
    pictures = smiling.with_name("logs") / "0001" / "pictures"
    of_class = ("denoising_{}.gif", "denoising_{}.png", "samples_{}.png")
    names = {each.format(f"{name}_00000002") for name in ("Smiling", "not_Smiling") for each in of_class}
    assert {path.name for path in pictures.iterdir()} == {*names, "reconstructions_00000002.png"}

    def cell(path, column, side=192):
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
        gap = max(12, side // 10) // 2
        left = gap + column * (side + gap)
        return pixels[gap : gap + side, left : left + side]

    for name in ("Smiling", "not_Smiling"):
        sample = cell(pictures / f"samples_{name}_00000002.png", 0)
        ends = cell(pictures / f"denoising_{name}_00000002.png", 9)
        assert np.array_equal(sample, ends)  # the noise and nine steps, of which the last is the sample
        with Image.open(pictures / f"denoising_{name}_00000002.gif") as film:
            assert film.n_frames == 10


def test_a_model_of_one_attribute_draws_both_its_classes(smiling, faces, tmp_path):
    common = ["--checkpoint", str(smiling), "--output_dir", str(tmp_path), "--device", "cpu"]
    common += ["--num_inference_steps", "2"]
    manipulate.manipulate(manipulate.parse_args([*common, "--num_samples", "2"]))
    made = json.loads((tmp_path / "manifest.json").read_text())["made"]
    assert made["generate"]["attributes"] == [{"Smiling": value} for value in (0, 0, 1, 1)]
    assert (made["interpolate"]["from"], made["interpolate"]["to"]) == ({"Smiling": 0}, {"Smiling": 1})
    draw("animation", smiling, tmp_path)
    with Image.open(tmp_path / "animation.gif") as film:
        assert film.width > 2 * 128 and film.height > 2 * 128 + 15, "two columns, captions below"
    captions = Sources(visualize.parse_args(["denoising", *common])).captions
    assert captions == ["not smiling", "smiling"]
    held_out = find_dataset(faces).open_for(load_model(smiling).config, "test", tmp_path)
    assert held_out.attributes.shape == (len(held_out), 1)


@pytest.mark.parametrize(
    ("request_", "captions"),
    [
        (["--attributes", "Smiling=0", "Smiling=1"], ["not smiling", "smiling"]),
        (["--attributes", "Male", "Young=0.5"], ["male", "young 0.5"]),
        (["--unconditional"], ["unconditional"]),
    ],
)
def test_a_chain_is_captioned_with_what_it_saw(checkpoint, tmp_path, request_, captions):
    config = visualize.parse_args(["denoising", "--checkpoint", str(checkpoint), *request_])
    assert Sources(config).captions == captions
    draw("denoising", checkpoint, tmp_path, *request_)
    with Image.open(tmp_path / "denoising.png") as strip:
        assert strip.height > 2 * 128 * len(captions)


def test_several_classes_are_drawn(class_checkpoint, tmp_path):
    draw("denoising", class_checkpoint, tmp_path, "--attributes", "red", "green")
    assert (tmp_path / "denoising.png").is_file()
