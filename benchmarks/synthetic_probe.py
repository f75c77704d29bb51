"""Train a small CNN to read the 40 attributes of rendered faces, and report how well it reads them.

    python benchmarks/synthetic_probe.py

Prints the balanced accuracy of each attribute on identities that the probe never saw. The last line is
one JSON object. `train_probe` also gives a judge for generated pictures. --out writes the probe:
pretrained/ has one, which reads the edits of `python -m synthetic_faces.benchmark`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli
from celeba_dataset import CELEBA_ATTRIBUTES
from classifiers.judge import fit_classifier
from classifiers.probe import Probe, save_probe
from config import Config, count, flag
from evaluation.metrics import balanced_accuracy
from synthetic_faces.dataset import draw_parameters, parallel_draw, render


@dataclass(frozen=True)
class ProbeConfig(Config):
    """Flags of this benchmark."""

    num_images: int = count(14_000, "faces to train on")
    num_test: int = count(4000, "faces to test on")
    image_size: int = count(64, "side of the square images", low=16)
    epochs: int = count(4, "passes over the faces")
    seed: int = count(0, "of faces and weights", low=0)
    out: str | None = flag(None, "file to write the probe to, in half precision; none given: none")


def _draw(image_size: int, seed: int, balanced: bool, index: int):
    identity, attributes = draw_parameters(index, seed, balanced)
    return render(identity, attributes, image_size), attributes


def draw_labelled(
    num_images: int, image_size: int, seed: int, balanced: bool = True, num_workers: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rendered faces, uint8 (N, H, W, 3), and their attributes, float32 (N, 40) of -1 and +1."""
    draw = partial(_draw, image_size, seed, balanced)
    pictures = np.empty((num_images, image_size, image_size, 3), np.uint8)
    attributes = np.empty((num_images, len(CELEBA_ATTRIBUTES)), np.float32)
    drawn = parallel_draw(draw, num_images, num_workers, "drawing faces")
    for index, (picture, row) in enumerate(drawn):
        pictures[index], attributes[index] = picture, row
    return torch.from_numpy(pictures), torch.from_numpy(attributes)


def _augment(pictures, generator):
    """uint8 (B, H, W, 3) -> float (B, H, W, 3) in [0, 255]: the batch flipped or not, and shifted by up
    to 2 pixels; each picture's brightness changed; noise added."""
    shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
    batch = torch.roll(pictures, shift, dims=(1, 2)).float()
    if torch.rand((), generator=generator) < 0.5:
        batch = batch.flip(2)
    gain = 1 + 0.1 * torch.randn((len(batch), 1, 1, 3), generator=generator)
    grain = torch.randn(batch.shape[1:], generator=generator)  # one for the batch: much cheaper
    scale = 6 * torch.rand((len(batch), 1, 1, 1), generator=generator)
    return (batch * gain + scale * grain).clamp_(0, 255)


def train_probe(
    num_images: int = 14000,
    image_size: int = 64,
    seed: int = 0,
    epochs: int = 4,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> Probe:
    """A trained `Probe`, in evaluation mode.

    Draws ``num_images`` faces with balanced attributes and trains on the CPU in bfloat16.
    """
    pictures, attributes = draw_labelled(num_images, image_size, seed, True, num_workers)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = Probe().to(memory_format=torch.channels_last)
    return fit_classifier(
        probe,
        lambda rows: _augment(pictures[rows], generator),
        attributes,
        epochs,
        batch_size,
        lr=3e-3,
        weight_decay=0.02,
        generator=generator,
        label="training probe",
    )


def predict(probe, pictures, batch_size: int = 256):
    """Logits (N, 40) of the probe for uint8 pictures (N, H, W, 3), in batches."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return torch.cat([probe(batch).float() for batch in pictures.split(batch_size)])


def main() -> None:
    config = cli.parse(ProbeConfig, __doc__)
    if config.out:
        cli.check_writable(Path(config.out).parent, "--out")
    start = time.perf_counter()
    probe = train_probe(config.num_images, config.image_size, config.seed, config.epochs)
    seconds = time.perf_counter() - start
    columns = []
    for balanced in (True, False):  # other seeds, so identities that the probe never saw
        seed = config.seed + 1 + balanced
        faces, attributes = draw_labelled(config.num_test, config.image_size, seed, balanced)
        columns.append(balanced_accuracy(predict(probe, faces), attributes))
    even, natural = columns
    if config.out:
        save_probe(probe, config.out, even.tolist())
    print(f"{'attribute':<22}{'balanced draw':>14}{'CelebA draw':>14}")
    for column, name in enumerate(CELEBA_ATTRIBUTES):
        print(f"{name:<22}{even[column]:>14.3f}{natural[column]:>14.3f}")
    summary = {
        "worst_balanced_accuracy": round(float(even.min()), 4),
        "worst_attribute": CELEBA_ATTRIBUTES[int(even.argmin())],
        "mean_balanced_accuracy": round(float(even.mean()), 4),
        "mean_balanced_accuracy_celeba_draw": round(float(natural.nanmean()), 4),
        "num_images": config.num_images,
        "processors": os.cpu_count(),
        "seconds": round(seconds, 1),  # for drawing the faces and training
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    cli.run(main)
