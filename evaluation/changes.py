"""What an edit changed, net of what a judge sees change where nothing was edited."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from classifiers.judge import Judge
from classifiers.probe import Probe

SPREADS = 2.0  # of a judge's noise, from which its log odds have moved: 95 % of a normal distribution
NOISE_STD, JPEG_QUALITY = 2.0, 90  # of pictures that nobody edited: levels of 255; by eye, invisible
BATCH = 100  # images that judges read at once
Pair = tuple[Tensor, Tensor]  # what a judge reads in sources and in their edits, (N, A) each


def null_edits(images: Tensor, flips: bool, generator: torch.Generator) -> list[Tensor]:
    """Images uint8 (N, S, S, 3) with changes that are no edits: shifted by a pixel, to the right and
    down; with noise; as JPEG; and, where a mirror image is as good, mirrored."""
    right = torch.cat([images[:, :, :1], images[:, :, :-1]], 2)
    down = torch.cat([images[:, :1], images[:, :-1]], 1)
    noise = NOISE_STD * torch.randn(images.shape, generator=generator)
    noisy = (images + noise).round().clamp(0, 255).byte()
    edits = [right, down, noisy, torch.stack([as_jpeg(image) for image in images])]
    return [*edits, images.flip(2)] if flips else edits


def as_jpeg(image: Tensor) -> Tensor:
    """An image uint8 (S, S, 3) after it was a JPEG file."""
    file = BytesIO()
    Image.fromarray(image.numpy()).save(file, "JPEG", quality=JPEG_QUALITY)
    return torch.from_numpy(np.array(Image.open(file)))


@torch.no_grad()
def log_odds(judge: Judge | Probe, images: Tensor) -> Tensor:
    """A judge's log odds (N, A) of images uint8 (N, S, S, 3), on the CPU."""
    device = next(judge.parameters()).device
    return torch.cat([judge(batch.to(device)).float().cpu() for batch in images.split(BATCH)])


class ChangeMeter:
    """Says which attributes an edit changed.

    An attribute *moved* if every judge's log odds moved in the same direction by more than SPREADS times
    their spread over pictures that nobody edited.

    Args:
        judges: independent of each other and of what edits.
        images: held-out, uint8 (N, S, S, 3).
        flips: whether a mirror image is as good as the image.

    Attributes:
        spreads: for each judge the spread (A,): the root mean square of the changes over ``null_edits``.
    """

    def __init__(self, judges: Sequence[Judge | Probe], images: Tensor, flips: bool):
        self.judges = judges
        edits = null_edits(images, flips, torch.Generator().manual_seed(0))
        self.spreads = []
        for judge in judges:
            before = log_odds(judge, images)
            changes = torch.stack([log_odds(judge, edited) - before for edited in edits])
            self.spreads.append(changes.square().mean((0, 1)).sqrt())

    def figures(
        self, source: Tensor, edited: Tensor, column: int, goes_along: Tensor, logits: Pair | None = None
    ) -> dict[str, Tensor]:
        """Of each edit (N,):

        - others_moved: how many attributes moved that were to stay;
        - others_turned: how many of those the first judge reads as present and no longer absent, or the
          other way round;
        - along_moved: how many moved of those that go with the request.

        Args:
            source, edited: uint8 (N, S, S, 3).
            column: of the attribute that was to change.
            goes_along: (N, A), not 0 for what goes with the request.
            logits: of the first judge, if it has read them already.
        """
        first, *others = self.judges
        readings = [logits or (log_odds(first, source), log_odds(first, edited))]
        readings += [(log_odds(judge, source), log_odds(judge, edited)) for judge in others]
        ways = []  # for each judge: 1 where an attribute rises, -1 where it falls, 0 where it is noise
        for (before, after), spread in zip(readings, self.spreads, strict=True):
            change = after - before
            ways.append(change.sign() * (change.abs() > SPREADS * spread))
        moved = (ways[0] != 0) & (torch.stack(ways) == ways[0]).all(0)
        before, after = readings[0]
        turned = moved & ((before > 0) != (after > 0))
        to_stay = goes_along == 0
        to_stay[:, column] = False
        return {
            "others_moved": (moved & to_stay).sum(1).float(),
            "others_turned": (turned & to_stay).sum(1).float(),
            "along_moved": (moved & (goes_along != 0)).sum(1).float(),
        }
