"""Pairs of a picture and its edit on disk. make_pairs.py writes them, and an editor learns from them.

folder/manifest.json        what made them
folder/00000.npz ...        of photographs that got the same edit:
    before, after           uint8 (n, S, S, 3)
    row                     int8 (A,): 1 what came, -1 what went
    convinced               bool (n,), whether all readers see what was asked for
    others                  int (n,), how many other attributes they see turn
    names                   of the photographs
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from image_data.cached import ImageDataset
from image_data.files import refusing_damaged

FORMAT, MANIFEST = "edit-pairs/1", "manifest.json"
MOST_OTHERS = 0.8  # share of an edit's pairs, those that change least else, that are learned; by eye
HELD_OUT = 0.05  # share of the photographs that validate
MOST_TIMES = 4  # that a pair of a rare edit is there for one of the most frequent; by eye


def read_pairs(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The manifest of a folder of pairs, and all pairs end to end, with a ``row`` (A,) for each.

    Raises:
        FileNotFoundError, ValueError: where there are none, or not whole ones.
    """
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: make pairs with make_pairs.py")
    parts = []
    with refusing_damaged(folder, "pairs of make_pairs.py"):
        manifest = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}, not {FORMAT!r}")
        for path in sorted(folder.glob("*.npz")):
            with np.load(path) as file:
                part = dict(file)
            part["row"] = np.repeat(part["row"][None], len(part["names"]), 0)
            parts.append(part)
    if not parts:
        raise ValueError(f"{folder} holds no pairs yet: run make_pairs.py again")
    return manifest, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


class PairDataset(ImageDataset):
    """One split of a folder of pairs: train or val. Each pair is there twice, also the other way round.
    An item's ``image`` is uint8 (S, S, 6), the pictures before and after; its ``attributes`` are what
    the second shows and the first does not. Raises as ``read_pairs``.

    Left out are pairs that did not convince both readers. Of each edit, the fifth is left out, too, in
    which most other attributes turned. In training, an edit of a quarter as many pairs as the most
    frequent one has each of them twice, and so on with the root.
    """

    def __init__(self, folder: str | Path, split: str):
        manifest, found = read_pairs(Path(folder))
        self.image_size, self.crop = manifest["image_size"], manifest["crop"]
        keep = found["convinced"].copy()
        keep[keep] = self.held_out(found["names"][keep]) == (split == "val")
        _, task = np.unique(found["row"], axis=0, return_inverse=True)
        for each in range(task.max() + 1):
            mine = keep & (task == each)
            if mine.any():
                keep &= ~mine | (found["others"] <= np.quantile(found["others"][mine], MOST_OTHERS))
        if not keep.any():
            raise ValueError(f"{folder} has no pair for {split}: make more with make_pairs.py")
        self.before, self.after = found["before"][keep], found["after"][keep]
        self.pair = np.arange(len(self.before))  # of each item of the first half, all one way
        if split == "train":
            _, edit, counts = np.unique(task[keep], return_inverse=True, return_counts=True)
            times = np.rint(np.sqrt(counts.max() / counts)).clip(max=MOST_TIMES)
            self.pair = self.pair.repeat(times[edit].astype(int))
        rows, names = found["row"][keep][self.pair].astype(np.float32), manifest["attribute_names"]
        super().__init__(self.before, np.concatenate([rows, -rows]), names, (), manifest["flips"])
        self.one_hot = False

    @staticmethod
    def held_out(names: np.ndarray) -> np.ndarray:
        """Which of the photographs validate: at least one, by a hash of its name."""
        hashes = np.array([zlib.crc32(os.fsencode(str(name))) / 2**32 for name in names])
        return hashes <= max(HELD_OUT, hashes.min(initial=1))

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        rows = np.asarray(indices, dtype=np.int64)
        pair = self.pair[rows % len(self.pair)]
        before, after = self.before[pair], self.after[pair]
        backwards = (rows >= len(self.pair))[:, None, None, None]
        pictures = np.where(backwards, after, before), np.where(backwards, before, after)
        return {
            "image": torch.from_numpy(np.concatenate(pictures, 3)),  # (B, S, S, 6)
            "attributes": self.attributes[torch.from_numpy(rows)],
        }
