"""Making pairs of photographs and edits, in the form that `image_data/pairs.py` reads.

The editor without training makes them. Two readers, the guide and a judge, say which are worth learning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attributes import going_along
from checkpoint import replace_file
from classifiers.guide import GuidanceClassifier
from classifiers.judge import Judge
from classifiers.probe import Probe
from config import EditConfig
from diffusion_model import ConditionalDiffusion
from editing import Editor, resolve
from image_data.cached import ImageDataset
from image_data.pairs import FORMAT
from samplers import sample_generators
from training.encoding import FolderWriter

ATTEMPTS = 2  # where a reader is not convinced
MORE_GUIDE, MORE_MARGIN = 7.0, 3.0  # of each further attempt; measured: docs/log.md
LEAST_MOVE = 1.0  # log odds by which an attribute that turned has moved; by eye


@dataclass(frozen=True)
class Edits:
    """Photographs that get the same edit: ``row`` (A,) says which, ``indices`` which photographs."""

    row: np.ndarray
    indices: np.ndarray


def edits_to_make(
    data: ImageDataset, columns: list[int], number: int, batch_size: int, seed: int
) -> list[Edits]:
    """Batches of ``number`` photographs for each of these attributes, added, and as many removed. Men
    are among them as often as among the pictures that show the result. So beards go mostly to men.
    """
    labels, names = data.attributes.numpy(), list(data.attribute_names)
    male = labels[:, names.index("Male")] > 0 if "Male" in names else np.zeros(len(labels), bool)
    edits = []
    for column in columns:
        for way in (1, -1):
            rng = np.random.default_rng([seed, column, way + 1])
            lack, have = labels[:, column] == -way, labels[:, column] == way
            weights = np.zeros(len(labels))
            for group in (male, ~male):
                share = (group & have).sum() / max(have.sum(), 1)
                weights[group & lack] = share / max((group & lack).sum(), 1)
            total = min(number, np.count_nonzero(weights))
            if not total:
                continue
            chosen = rng.choice(len(labels), total, replace=False, p=weights / weights.sum())
            row = np.zeros(len(names), np.int8)
            row[column] = way
            parts = np.split(chosen, np.arange(batch_size, total, batch_size))
            edits.append([Edits(row, part) for part in parts])
    longest = max(map(len, edits), default=0)  # all in turn, so that a part of the pairs is of all edits
    return [batches[i] for i in range(longest) for batches in edits if i < len(batches)]


class PairMaker:
    """Makes pairs by ``Editor``, and writes them.

    Args:
        judge: reads the edits beside the guide. It may not judge what learns from the pairs.
        editing: how photographs are edited.
        folder: as of ``FolderWriter``.
        facts: about the choice of photographs, for the manifest.
    """

    def __init__(
        self,
        model: ConditionalDiffusion,
        guide: GuidanceClassifier,
        judge: Judge | Probe,
        editing: EditConfig,
        folder: str | Path,
        facts: dict[str, Any],
    ):
        self.model, self.guide, self.judge, self.editing = model, guide, judge, editing
        self.editor = Editor(model)
        self.correlation = model.attribute_prior.correlation().cpu()
        manifest = {
            "format": FORMAT,
            "image_size": model.config.image_size,
            "crop": model.config.crop,
            "attribute_names": list(model.config.attribute_names),
            "checkpoint": model.file_hash,
            "guide": getattr(guide, "file_hash", model.file_hash),  # it may be inside the model
            "judge": judge.file_hash,
            "editing": editing.to_dict(),
        }
        self.writer = FolderWriter(folder, manifest | facts, "made")

    def file(self, number: int) -> Path:
        return self.writer.folder / f"{number:05d}.npz"

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Log odds (2, n, A) of the attributes in images, by the guide and by the judge."""
        images = images.to(self.model.device)
        guide = self.guide.read_logits(images) - self.guide.prior
        return torch.stack([guide.float(), self.judge(images).float()]).cpu()

    def edit(
        self, images: Tensor, row: Tensor, generators: list[torch.Generator], attempt: int
    ) -> Tensor:
        """Images (n, S, S, 3) after an edit, at an attempt that counts from 0."""
        (column,) = row.nonzero()[:, 0].tolist()
        editing = resolve(self.editing, [self.model.config.attribute_names[column]], True)
        assert editing.margin is not None  # resolved
        editing = replace(
            editing,
            guide_scale=editing.guide_scale + MORE_GUIDE * attempt,
            margin=editing.margin + MORE_MARGIN * attempt,
        )
        rows = row.expand(len(images), -1)
        return self.editor.edit(images, rows, 1.0, editing, guide=self.guide, generator=generators).cpu()

    def make(self, data: ImageDataset, edits: Edits, number: int, seed: int) -> int:
        """Make and write file ``number``. Returns how many of its pairs convince both readers."""
        images = data.__getitems__(edits.indices.tolist())["image"]
        row = torch.from_numpy(edits.row).float()
        before = self.read(images)
        may_convince = (before[0] * row).sum(1) < 0  # the guide reads these as they are labelled
        edited, after, convinced = images.clone(), before.clone(), torch.zeros_like(may_convince)
        for attempt in range(ATTEMPTS):
            left = (may_convince & ~convinced).nonzero()[:, 0]
            if len(left):
                samples = (edits.indices[left.numpy()] + attempt * len(data)).tolist()
                generators = sample_generators(seed, samples)
                edited[left] = self.edit(images[left], row, generators, attempt)
                after[:, left] = self.read(edited[left])
                convinced[left] = ((after[:, left] * row).sum(2) > 0).all(0)
        arrays = {
            "before": images.numpy(),
            "after": edited.numpy(),
            "row": edits.row,
            "convinced": convinced.numpy(),
            "others": self.others(before, after, row).numpy(),
            "names": np.array([data.filenames[i] for i in edits.indices]),
        }
        replace_file(self.file(number), lambda file: np.savez(file, **arrays))
        return int(convinced.sum())

    def others(self, before: Tensor, after: Tensor, row: Tensor) -> Tensor:
        """How many attributes both readers see turn that do not go with the edit (n,)."""
        turned = ((before > 0) != (after > 0)) & ((after - before).abs() > LEAST_MOVE)
        rows = row.expand(before.shape[1], -1)
        along = going_along(rows, before[0].sign(), self.model.config.attribute_names, self.correlation)
        return (turned.all(0) & (along == 0) & (rows == 0)).sum(1)
