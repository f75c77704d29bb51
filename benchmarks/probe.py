"""Train a small CNN to read the 40 attributes of rendered faces, and report how well it reads them.

    python benchmarks/probe.py [--data_root /path/to/celeba]

Prints the balanced accuracy of each attribute on identities that the probe never saw. The last line is
one JSON object. --out writes the probe: pretrained/ has one, which judges the demo's pictures and the
edits of `python -m synthetic_faces.benchmark`.
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

import flags
from attributes import CELEBA_ATTRIBUTES
from celeba_dataset import CelebADataset
from classifiers.judge import SIDE, fit_classifier
from classifiers.probe import Probe, save_probe
from config import SEED, Config, count, flag, share, weight
from devices import autocast
from evaluation.metrics import balanced_accuracy
from synthetic_faces.dataset import draw_parameters, parallel_draw, render


@dataclass(frozen=True)
class ProbeConfig(Config):
    """Flags of this benchmark."""

    data_root: str | None = flag(None, "folder of CelebA; none given: draws faces")
    num_images: int = count(14_000, "drawn faces to train on")
    num_test: int = count(4000, "drawn faces to test on")
    image_size: int = count(64, "side of the square images", low=16)
    epochs: int = count(4, "passes over the faces")
    dropout: float = share(0.1, "of the features, before the last layer")
    weight_decay: float = weight(0.02, "share of the learning rate by which weights shrink in a step")
    seed: int = count(0, "of faces and weights", **SEED)
    cache_dir: str = flag("data/cache", "where decoded images are kept")
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
    to 2 of 64 pixels; each picture's brightness changed; noise added."""
    most = max(2, 2 * pictures.shape[1] // SIDE)
    shift = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    batch = torch.roll(pictures, shift, dims=(1, 2)).float()
    if torch.rand((), generator=generator) < 0.5:
        batch = batch.flip(2)
    gain = 1 + 0.1 * torch.randn((len(batch), 1, 1, 3), generator=generator)
    grain = torch.randn(batch.shape[1:], generator=generator)  # one for the batch: much cheaper
    scale = 6 * torch.rand((len(batch), 1, 1, 1), generator=generator)
    return (batch * gain + scale * grain).clamp_(0, 255)


def train_probe(
    pictures: Tensor,
    attributes: Tensor,
    epochs: int = 4,
    dropout: float = 0.1,
    weight_decay: float = 0.02,
    seed: int = 0,
    batch_size: int = 64,
) -> Probe:
    """A `Probe` in evaluation mode, trained on pictures uint8 (N, H, W, 3) and attributes (N, 40). It is
    trained on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = Probe(dropout, max(SIDE, pictures.shape[1])).to(memory_format=torch.channels_last)
        return fit_classifier(
            probe,
            lambda rows: _augment(pictures[rows], generator),
            attributes,
            epochs,
            batch_size,
            lr=3e-3,
            weight_decay=weight_decay,
            generator=generator,
            label="training probe",
        )


def photographs(config: ProbeConfig, split: str) -> tuple[Tensor, Tensor]:
    """A split of CelebA: pictures uint8 (N, S, S, 3) and attributes (N, 40)."""
    data = CelebADataset(config.data_root, split, config.image_size, cache_dir=config.cache_dir)
    return torch.from_numpy(data.images[:]), data.attributes


def predict(probe, pictures, batch_size: int = 256):
    """Logits (N, 40) of the probe for uint8 pictures (N, H, W, 3), in batches."""
    with torch.inference_mode(), autocast("auto", "cpu"):
        return torch.cat([probe(batch).float() for batch in pictures.split(batch_size)])


def main() -> None:
    config = flags.parse(ProbeConfig, __doc__)
    if config.out:
        flags.check_writable(Path(config.out).parent, "--out")
    start = time.perf_counter()
    if config.data_root:
        faces, attributes = photographs(config, "train")
        tests = {"test": photographs(config, "test")}
    else:  # the tests have other seeds, so identities that the probe never saw
        draw = partial(draw_labelled, image_size=config.image_size)
        faces, attributes = draw(config.num_images, seed=config.seed)
        tests = {
            name: draw(config.num_test, seed=config.seed + 1 + balanced, balanced=balanced)
            for name, balanced in (("balanced draw", True), ("CelebA draw", False))
        }
    options = (config.epochs, config.dropout, config.weight_decay, config.seed)
    probe = train_probe(faces, attributes, *options)
    seconds = time.perf_counter() - start
    accuracies = {name: balanced_accuracy(predict(probe, x), y) for name, (x, y) in tests.items()}
    first = next(iter(accuracies.values()))
    if config.out:
        save_probe(probe, config.out, first.tolist())
    print(f"{'attribute':<22}" + "".join(f"{name:>14}" for name in accuracies))
    for column, name in enumerate(CELEBA_ATTRIBUTES):
        print(f"{name:<22}" + "".join(f"{each[column]:>14.3f}" for each in accuracies.values()))
    summary = {
        "worst_balanced_accuracy": round(float(first.min()), 4),
        "worst_attribute": CELEBA_ATTRIBUTES[int(first.argmin())],
        "mean_balanced_accuracy": {name: round(float(a.nanmean()), 4) for name, a in accuracies.items()},
        "num_images": len(faces),
        "processors": os.cpu_count(),
        "seconds": round(seconds, 1),  # for the faces and the training
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    flags.run(main)
