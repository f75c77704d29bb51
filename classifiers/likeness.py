"""How alike two pictures look: a distance in the features of a network that knows pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg16

from checkpoint import load_checkpoint
from classifiers.judge import MAKE_JUDGE, load_judge

NO_JUDGE = f"{MAKE_JUDGE}, or train without: --perceptual_weight 0"
VGG_FILE = "vgg16-397923af.pth"  # as torchvision names it
VGG_ENDS = (4, 9, 16, 23, 30)  # of its five stages, each ending in an activation


def perceptual_distance(stages: list[nn.Module], a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of two batches' features at each position, the channels scaled to unit length,
    averaged over positions and stages: LPIPS without its learned weights (Zhang et al. 2018,
    arXiv:1801.03924). a, b (B, 3, H, W) in [-1, 1] -> (B,), 0 for equal images."""
    x, total = torch.cat([a, b]), torch.zeros(len(a), device=a.device)
    for stage in stages:
        x = stage(x)
        first, second = F.normalize(x.float()).chunk(2)
        total = total + (first - second).square().sum(1).mean((1, 2)) / len(stages)
    return total


class ImageNetScale(nn.Module):
    """[-1, 1] to the mean and deviation that torchvision's classifiers were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.new_tensor([0.485, 0.456, 0.406])[:, None, None]
        std = x.new_tensor([0.229, 0.224, 0.225])[:, None, None]
        return ((x + 1) / 2 - mean) / std


def vgg_file() -> Path:
    """Where torchvision keeps the weights of VGG16."""
    return Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE


def check_likeness(judge: str | Path) -> None:
    """Raise as ``perceptual_stages`` where no network can judge likeness."""
    if not vgg_file().is_file():
        load_checkpoint(judge, "judge", NO_JUDGE)


def perceptual_stages(
    judge: str | Path, attribute_names: Sequence[str], crop: int
) -> tuple[nn.ModuleList, str]:
    """The stages of the network that judges likeness, frozen, and its name: torchvision's VGG16 where
    its weights lie in torch's hub folder, otherwise the judge in this file.

    Raises:
        FileNotFoundError: where neither is there.
    """
    if vgg_file().is_file():
        network = vgg16()
        network.load_state_dict(torch.load(vgg_file(), weights_only=True))
        layers, starts = network.features, (0, *VGG_ENDS[:-1])
        stages = [layers[start:end] for start, end in zip(starts, VGG_ENDS, strict=True)]
        stages[0] = nn.Sequential(ImageNetScale(), stages[0])
        name = "VGG16"
    else:
        network, facts = load_judge(judge, attribute_names, crop, advice=NO_JUDGE)
        stages, name = network.stages(), f"judge {facts['hash']}"
    return nn.ModuleList(stages).eval().requires_grad_(False), name
