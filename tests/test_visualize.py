"""Every kind of figure, from a run of three steps."""

from __future__ import annotations

import json

import pytest
from helpers import run_training
from PIL import Image

import manipulate
import visualize
from diffusion_model import load_model
from figures.figures import Sources
from image_data.datasets import find_dataset

WANTED = {
    "attribute_balance.png",
    "attribute_correlation.png",
    "real.png",
    "samples.png",
    "reconstructions.png",
    "latent_space_Smiling.png",
    "denoising.png",
    "animation.gif",
    "interpolation.png",
    "curves_loss.png",
    "curves_validation.png",
    "architecture.png",
    "architecture.svg",
}


def test_all_figures_are_drawn(checkpoint, faces, tmp_path):
    flags = ["all", "--checkpoint", str(checkpoint), "--data_root", str(faces), "--output_dir"]
    flags += [str(tmp_path)]
    flags += ["--log_dir", str(checkpoint.parent / "logs"), "--attributes", "Smiling"]
    flags += ["--num_samples", "2", "--num_inference_steps", "3", "--device", "cpu"]
    flags += ["--cache_dir", str(tmp_path / "cache")]
    visualize.visualize(visualize.parse_args(flags))
    written = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert written >= WANTED
    with Image.open(tmp_path / "animation.gif") as film:
        playing = [film.seek(i) or film.info["duration"] for i in range(film.n_frames)]
        assert playing == [120, 120, 120, 1200]  # the noise, after each step, and the end held
    svg = (tmp_path / "architecture.svg").read_text()
    assert "svg" in svg[:500]


def test_several_classes_are_drawn(class_checkpoint, tmp_path):
    flags = ["denoising", "--checkpoint", str(class_checkpoint), "--output_dir", str(tmp_path)]
    flags += ["--attributes", "red", "green", "--num_inference_steps", "2", "--device", "cpu"]
    visualize.visualize(visualize.parse_args(flags))
    assert (tmp_path / "denoising.png").is_file()


@pytest.fixture(scope="module")
def smiling(flags, tmp_path_factory):
    """best_model.pth of a model of one attribute alone."""
    folder = tmp_path_factory.mktemp("smiling")
    drawn = ("--report_to", "tensorboard")  # both its classes, while it trains
    last = run_training(flags, folder, "--attribute", "Smiling", "--max_steps", 2, *drawn)
    return last.with_name("best_model.pth")


def test_a_model_of_one_attribute_draws_both_its_classes(smiling, faces, tmp_path):
    common = ["--checkpoint", str(smiling), "--output_dir", str(tmp_path), "--device", "cpu"]
    common += ["--num_inference_steps", "2"]
    manipulate.manipulate(manipulate.parse_args([*common, "--num_samples", "2"]))
    made = json.loads((tmp_path / "manifest.json").read_text())["made"]
    assert made["generate"]["attributes"] == [{"Smiling": value} for value in (0, 0, 1, 1)]
    assert (made["interpolate"]["from"], made["interpolate"]["to"]) == ({"Smiling": 0}, {"Smiling": 1})
    visualize.visualize(visualize.parse_args(["animation", *common]))
    with Image.open(tmp_path / "animation.gif") as film:
        assert film.width > 2 * 128 and film.height > 2 * 128 + 15, "two columns, captions below"
    captions = Sources(visualize.parse_args(["denoising", *common])).captions
    assert captions == ["not smiling", "smiling"]
    held_out = find_dataset(faces).open_for(load_model(smiling).config, "test", tmp_path)
    assert held_out.attributes.shape == (len(held_out), 1)


@pytest.mark.parametrize(
    ("asked", "captions"),
    [
        (["--attributes", "Smiling=0", "Smiling=1"], ["not smiling", "smiling"]),
        (["--attributes", "Male", "Young=0.5"], ["male", "young 0.5"]),
        (["--unconditional"], ["unconditional"]),
    ],
)
def test_a_chain_is_captioned_with_what_it_saw(checkpoint, tmp_path, asked, captions):
    common = ["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path), "--device", "cpu"]
    config = visualize.parse_args(["denoising", *common, *asked, "--num_inference_steps", "2"])
    assert Sources(config).captions == captions
    visualize.visualize(config)
    with Image.open(tmp_path / "denoising.png") as strip:
        assert strip.height > 2 * 128 * len(captions)
