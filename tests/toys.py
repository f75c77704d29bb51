"""Pictures with two attributes that one can measure."""

from __future__ import annotations

import torch

NAMES = ("Red", "Left")


def toy_batch(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A square, red or green, on the left or the right, of any size: two attributes one can measure."""
    rows = torch.randint(0, 2, (batch, 2)) * 2.0 - 1
    pictures = torch.full((batch, 16, 16, 3), 60, dtype=torch.uint8)
    for picture, (red, left), side in zip(pictures, rows, torch.randint(4, 7, (batch,)), strict=True):
        corner = 1 if left > 0 else 15 - int(side)
        picture[5 : 5 + side, corner : corner + side, 0 if red > 0 else 1] = 230
    return pictures, rows


def measured(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 2): how red against green, and how far left against right, in about [-1, 1]."""
    colour = pictures.float()[..., 0] - pictures.float()[..., 1]  # (B, H, W), +-170 in the square
    colour = colour * (colour.abs() > 60)
    ink = colour.abs()
    side = ink[..., :8].sum((1, 2)) - ink[..., 8:].sum((1, 2))
    total = ink.sum((1, 2)).clamp(min=1)
    return torch.stack([colour.sum((1, 2)) / total, side / total], dim=1)
