"""What the evaluations share: work in batches, the model with its judge, the judge's training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

import devices
from checkpoint import save_atomically
from classifiers.judge import Judge, load_judge, train_judge
from config import ModelConfig, ModelFiles
from diffusion_model import load_model
from evaluation.metrics import balanced_accuracy
from evaluation.tables import write_report
from image_data.labelled import LabelledImages
from studio import guide_hash, load_guide_of

if TYPE_CHECKING:
    from evaluate import JudgeConfig, MeasureConfig

Done = TypeVar("Done")
Reading = tuple[Tensor, Tensor]  # a judge's features (N, D) and logits (N, A) of N images, on the CPU
CHANCE = 0.55  # balanced accuracy of a judge that has hardly learnt; by eye


def say(text: str) -> None:
    """Print on the main process only."""
    if PartialState().is_main_process:
        print(text)


def main_bar(total: int, label: str, unit: str = "image") -> tqdm:
    """A progress bar that only the main process shows; without a label nobody does."""
    hidden = not label or not PartialState().is_main_process
    return tqdm(total=total, desc=label, leave=False, unit=unit, disable=hidden)


def in_batches(
    work: Callable[[Tensor, range], Done],
    items: Any,
    batch_size: int = 250,
    label: str = "",
    bar: tqdm | None = None,
) -> list[Done]:
    """``work`` of every batch of items and of their numbers. The processes share the batches.

    Every process must call this, and every process gets all results. So what follows is the same in all
    of them.

    Args:
        items: (N, ...), an array or a tensor; ``work`` gets tensors.
        label: of a progress bar; without one there is no bar.
        bar: in the place of that one.
    """
    processes = PartialState()
    number, starts = processes.num_processes, range(0, len(items), batch_size)
    own = []
    with nullcontext(bar) if bar is not None else main_bar(len(items), label) as counter:
        for start in starts[processes.process_index :: number]:
            batch = items[start : start + batch_size]
            batch = batch if isinstance(batch, Tensor) else torch.from_numpy(batch.copy())  # read-only
            own.append(work(batch, range(start, start + len(batch))))
            counter.update(len(batch) * number)
    done = gather_object([own])  # done[p]: what process p did
    return [done[i % number][i // number] for i in range(len(starts))]


def read(judge: Judge, images, label: str = "") -> Reading:
    """What the judge reads in images uint8 (N, H, W, 3)."""
    features = torch.cat(in_batches(lambda batch, _: judge.read_features(batch), images, label=label))
    return features, judge.read_logits(features)


def make_judge(config: JudgeConfig, data: LabelledImages, device: str) -> float:
    """Train the judge on the training split, test it, and write it with its accuracies to --judge.

    Returns:
        its balanced accuracy on the test split, the mean over attributes.
    """
    view = ModelConfig(data.names, image_size=config.image_size, crop=config.crop)
    test, train = (data.open_for(view, split, config.cache_dir) for split in ("test", "train"))
    rows = train.attributes
    if not ((rows > 0).any(0) & (rows < 0).any(0)).any():
        raise ValueError(
            f"a judge would learn nothing from {config.data_root}: no attribute is present in some "
            "training pictures and absent in others. Label them, or compare folders of pictures with "
            "torch-fidelity (docs/evaluation.md)"
        )
    judge = train_judge(train, config.judge_epochs, config.seed, device)
    accuracy = balanced_accuracy(read(judge, test.images)[1], test.attributes)
    content = {
        "judge": judge.state_dict(),
        "attribute_names": list(train.attribute_names),
        "balanced_accuracy": accuracy.tolist(),
        "crop": config.crop,
        "side": judge.side,
    }
    save_atomically(content, config.judge)
    return float(accuracy.nanmean())


class Evaluation:
    """A model, its judge, its guide if one is given, and the images that it is measured against.

    Attributes:
        train, reference_set: the training split, and the split to compare with.
        judge_facts: what reports say of the judge.
        fewest: images of the reference split, with fewer of which nothing can be said.
        spaces: where sets are compared: name -> features (B, D) of a batch of images.
        writes: whether this process writes files. Only the main process does.

    Raises:
        FileNotFoundError, ValueError: for files that are missing, or do not fit the model.
    """

    fewest = 2

    def __init__(self, config: MeasureConfig, data: LabelledImages, device: str):
        self.config = config
        self.model = load_model(config.checkpoint, device)
        files = ModelFiles(checkpoint=config.checkpoint, guide=config.guide)
        self.guide = load_guide_of(files, self.model)
        if config.needs_guide and self.guide is None:
            raise ValueError(f"{config.needs_guide} needs a guide, and the model has none: give --guide")
        of_model = self.model.config
        self.names = of_model.attribute_names
        self.judge, self.judge_facts = load_judge(config.judge, self.names, of_model.crop, device)
        accuracy = self.judge_facts["test_balanced_accuracy"]
        if math.isnan(accuracy):
            raise ValueError(
                f"{config.judge} learned nothing: no attribute was present in some test pictures and "
                "absent in others. Distances in its features mean nothing (docs/evaluation.md)"
            )
        say(f"judge {self.judge_facts['hash']}: balanced accuracy {accuracy:.4f} on the test split")
        if accuracy < CHANCE:
            say("That is hardly more than chance, 0.5: what it measures says little. Train it longer.")
        if self.judge_facts["hash"] in of_model.first_stage_judge:
            say(
                "The first stage was trained to look right to this judge, so distances in its features "
                "are too small. Measure with another: evaluate.py judge --seed 1 --judge FILE"
            )
        self.train = data.open_for(of_model, "train", config.cache_dir)
        self.reference_set = data.open_for(of_model, config.reference_split, config.cache_dir)
        number, split = len(self.reference_set), config.reference_split
        if number < self.fewest:
            raise ValueError(
                f"{number} images in the {split} split, at least {self.fewest} are needed: choose "
                "another --reference_split, or put more images into this one (docs/datasets.md#splits)"
            )
        self.output_dir, self.writes = Path(config.output_dir), PartialState().is_main_process
        self.autocast = devices.autocast(config.mixed_precision, device)
        self.spaces: dict[str, Callable[[Tensor], Tensor]] = {"judge": self.judge.read_features}

    def features_of(self, images: Tensor) -> dict[str, Tensor]:
        """Features (B, D) of a batch of images uint8 (B, H, W, 3) in every feature space."""
        return {space: features(images) for space, features in self.spaces.items()}

    def read(self, images, label: str) -> dict[str, Tensor]:
        """``features_of`` all images. ``label`` is of the progress bar."""
        parts = in_batches(lambda batch, _: self.features_of(batch), images, 50, label)
        return {space: torch.cat([part[space] for part in parts]) for space in self.spaces}

    def write(self, name: str, report: dict[str, Any], as_text: Callable[[dict[str, Any]], str]) -> str:
        """``write_report`` into the output folder, by the main process. Returns the text."""
        return write_report(self.output_dir if self.writes else None, name, report, as_text)

    @cached_property
    def reference(self) -> dict[str, Tensor]:
        """Features of the reference images."""
        return self.read(self.reference_set.images, f"{self.config.reference_split} split")

    @cached_property
    def train_features(self) -> Tensor:
        """The judge's features of the training images."""
        if self.config.reference_split == "train":
            return self.reference["judge"]
        return read(self.judge, self.train.images, "training images")[0]

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What the figures of samples and of edits depend on."""
        config, of_model, reference = self.config, self.model.config, self.reference_set
        return {
            "checkpoint": self.model.file_hash,
            "judge": self.judge_facts,
            "guide": guide_hash(self.model, self.guide),
            "image_size": of_model.image_size,
            "crop": of_model.crop,
            "reference": f"{config.reference_split}, {len(reference)} images",
            "data": hashlib.sha256(reference.images.data).hexdigest()[:12],
            "seed": config.seed,
            "precision": devices.choose_precision(config.mixed_precision, self.model.device.type),
        }
