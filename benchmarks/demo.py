"""The demo: synthetic faces -> a small model -> pictures -> how well they follow their attributes.

    make demo

Runs the project's own commands and prints each before it starts. The model's recipe is
configs/demo.yaml. Then the probe of synthetic_probe.py, which never saw a generated picture, judges
fresh samples. Results go to outputs/demo/. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli
from config import Config, count, flag

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("outputs/demo")
FACES = Path("data/demo_faces")
CHECKPOINT = OUT / "checkpoints" / "best_model.pth"


@dataclass(frozen=True)
class DemoConfig(Config):
    """Flags of the demo."""

    minutes: float | None = flag(None, "training time; none given: that of the recipe", above=0)
    num_images: int = count(6000, "synthetic faces to draw")
    num_samples: int = count(192, "faces to draw for the probe")
    num_probe_images: int = count(8000, "faces to train the probe on")


def command(*arguments: object) -> None:
    """Run one of the project's scripts as a user would. If it fails, the demo ends."""
    argv = list(map(str, arguments))
    print("\n$ python", " ".join(argv), flush=True)
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def judge(num_samples: int, num_probe_images: int) -> dict:
    """Draw faces under held-out attribute rows. The probe says which attributes it sees in them."""
    import torch
    from synthetic_probe import predict, train_probe
    from tqdm import tqdm

    from celeba_dataset import CelebADataset
    from checkpoint import load_model
    from config import SamplingConfig
    from evaluation.drawing import draw
    from evaluation.metrics import balanced_accuracy
    from figures.grids import save_grid

    probe = train_probe(num_images=num_probe_images)
    held_out = CelebADataset(FACES, "test", 64, cache_dir="data/cache")
    attributes = held_out.attributes[:num_samples]
    sampling = SamplingConfig(cfg_scale=2.0, num_inference_steps=10)
    with tqdm(total=num_samples, desc="faces to judge", unit="img") as bar:
        model, autocast = load_model(CHECKPOINT), cli.autocast("auto", "cpu")
        samples = draw(model, attributes, sampling, autocast, bar=bar)
    accuracy = balanced_accuracy(predict(probe, samples), attributes)
    names = held_out.attribute_names
    for value, name in sorted(zip(accuracy.tolist(), names, strict=True)):
        print(f"{name:<22}{value:6.3f}")
    title = f"samples under held-out rows, cfg_scale {sampling.cfg_scale:g}"
    save_grid(OUT / "judged.png", samples[:64].numpy(), [""] * len(samples[:64]), 16, title=title)
    real = balanced_accuracy(
        predict(probe, torch.from_numpy(held_out.images[:].copy())), held_out.attributes
    )
    return {
        "attribute_balanced_accuracy": round(float(accuracy.nanmean()), 4),
        "worst_attribute": names[int(accuracy.nan_to_num(1).argmin())],
        "on_held_out_faces": round(float(real.nanmean()), 4),
        "samples": len(attributes),
    }


def main() -> None:
    config = cli.parse(DemoConfig, __doc__)
    started = float(os.environ.get("DEMO_STARTED", time.time()))
    os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)
    command(
        *("-m", "synthetic_faces", "--out", FACES, "--num_images", config.num_images),
        *("--image_size", 64, "--seed", 0, "--floor", 0.1),  # rare attributes need longer training
    )
    minutes = [] if config.minutes is None else ["--max_minutes", config.minutes]
    command(
        *("train.py", "--config", "configs/demo.yaml", "--data_root", FACES, *minutes),
        *("--save_dir", OUT / "checkpoints", "--log_dir", OUT / "logs"),
    )
    command(
        *("manipulate.py", "--checkpoint", CHECKPOINT, "--data_root", FACES, "--output_dir", OUT),
        *("--num_samples", 16, "--num_inference_steps", 30, "--manipulation_strength", 1),
        *("--cfg_scale", 1.5, "--from", "Blond_Hair=1", "Smiling=0"),
        *("--to", "Blond_Hair=0", "Black_Hair=1", "Smiling=1"),
    )
    print("\njudging samples with a probe trained on rendered faces", flush=True)
    result = judge(config.num_samples, config.num_probe_images)
    print(f"pictures: {OUT}/samples.png, interpolation.png, interpolation.gif, edit.png, judged.png")
    print(json.dumps(result | {"seconds": round(time.time() - started, 1)}))


if __name__ == "__main__":
    cli.run(main)
