"""Every kind of figure, from a run of three steps."""

from __future__ import annotations

from PIL import Image

import visualize

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
    flags += ["--log_dir", str(checkpoint.parents[1] / "logs"), "--attributes", "Smiling"]
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
