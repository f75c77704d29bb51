"""The judge: an attribute classifier that measures and never steers. Its training and its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18
from tqdm import tqdm

from checkpoint import load_checkpoint, load_weights, refusing
from devices import autocast
from image_data.cached import random_flip

MAKE_JUDGE = "make one with evaluate.py judge"
SIDE = 64  # of the pictures that a judge reads, where its file says nothing else
MOST_SIDE = 1024


def network_input(images: Tensor, side: int) -> Tensor:
    """What judges take of images uint8 (B, H, W, 3): float (B, 3, side, side) in [-1, 1]."""
    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
    return x.contiguous(memory_format=torch.channels_last)


class Judge(nn.Module):
    """A ResNet-18 (He et al. 2015, arXiv:1512.03385) that reads attributes from clean images, through
    128 features on the way. It judges and never guides: it shares no weights with the models it judges.
    It reads every image at one ``side``, so images of all sizes compare.
    """

    def __init__(self, num_attributes: int, num_features: int = 128, side: int = SIDE):
        super().__init__()
        self.side = side
        self.backbone = resnet18(num_classes=num_features)
        # Features of mean 0 and variance 1 over the training images, so that distances have a scale.
        self.standardise = nn.BatchNorm1d(num_features, affine=False)
        self.backbone.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)  # for small images
        self.head = nn.Linear(num_features, num_attributes)

    def input(self, images: Tensor) -> Tensor:
        """``network_input``."""
        return network_input(images, self.side)

    def features(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, D)."""
        return self.standardise(self.backbone(self.input(images)).float())

    @torch.no_grad()
    def read_features(self, images: Tensor) -> Tensor:
        """``features`` of images on any device, on the CPU and without a gradient."""
        return self.features(images.to(self.head.weight.device)).cpu()

    @torch.no_grad()
    def read_logits(self, features: Tensor) -> Tensor:
        """Logits (N, A) of features (N, D), on the CPU and without a gradient."""
        return self.head(F.relu(features.to(self.head.weight.device))).float().cpu()

    def stages(self) -> list[nn.Module]:
        """The network as four stages in a row, for ``perceptual_distance``."""
        net = self.backbone
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
        return [stem, net.layer2, net.layer3, net.layer4]

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> logits (B, A), positive where the attribute is seen."""
        return self.head(F.relu(self.features(images))).float()


def fit_classifier(
    model: nn.Module,
    batch_of: Callable[[Tensor], Tensor],
    attributes: Tensor,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    generator: torch.Generator,
    label: str,
) -> nn.Module:
    """Train ``model`` with balanced binary cross-entropy: both classes of an attribute weigh the same,
    so that logit 0 is the threshold of balanced accuracy.

    Args: batch_of: images of these row numbers, augmented, on the model's device; attributes (N, A).
    """
    device = next(model.parameters()).device
    total, batch_size = len(attributes), min(batch_size, len(attributes))
    steps = epochs * (total // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    cycle = max(steps, 10)  # a shorter one has no way up, and divides by zero
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, cycle, pct_start=0.2)
    targets = (attributes + 1) / 2
    specified = (attributes != 0).float()
    share = (targets * specified).sum(0) / specified.sum(0).clamp(min=1)
    share = share.clamp(1 / total, 1 - 1 / total)
    weights = 0.5 * specified * (targets / share + (1 - targets) / (1 - share))
    bar = tqdm(total=steps, desc=label, unit="step")
    for _ in range(epochs):
        order = torch.randperm(total, generator=generator)
        for rows in order[: total // batch_size * batch_size].split(batch_size):
            images = batch_of(rows)
            with autocast("auto", device.type):
                logits = model(images)
            loss = F.binary_cross_entropy_with_logits(
                logits.float(), targets[rows].to(device), weights[rows].to(device)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
    return model.eval()


def train_judge(train_set, epochs: int, seed: int = 0, device="cpu") -> Judge:
    """A judge trained on a dataset's images, shifted by up to 3 of 64 pixels and mirrored where it
    flips. It reads images at the dataset's size, if that is above 64."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Judge(len(train_set.attribute_names), side=max(SIDE, train_set.images.shape[1]))
    most = 3 * model.side // SIDE
    model.to(device, memory_format=torch.channels_last)

    def batch_of(rows: Tensor) -> Tensor:
        images = torch.from_numpy(train_set.images[rows.numpy()])
        shift = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
        images = torch.roll(images, shift, dims=(1, 2))
        return (random_flip(images, generator) if train_set.flips else images).to(device)

    return fit_classifier(
        model,
        batch_of,
        train_set.attributes,
        epochs,
        batch_size=64,
        lr=2e-3,
        weight_decay=0.05,
        generator=generator,
        label="training the judge",
    )


def load_judge(
    path: str | Path,
    attribute_names: Sequence[str],
    crop: int,
    device: str = "cpu",
    advice: str = MAKE_JUDGE,
) -> tuple[Judge, dict]:
    """The judge in a file, reduced to these attributes, and what reports say of it: its hash and its
    balanced accuracy on the test split.

    Raises:
        FileNotFoundError, ValueError: where there is none, or one for other attributes.
    """
    return judge_in(load_checkpoint(path, "judge", advice), path, attribute_names, crop, device)


def side_in(state: dict[str, Any], path: str | Path) -> int:
    """The side at which the judge or the probe in a file with these contents reads pictures."""
    side = state.get("side", SIDE)
    if not isinstance(side, int) or not 1 <= side <= MOST_SIDE:
        raise ValueError(
            f"{path} reads pictures of side {str(side)[:20]}, which is not 1 to {MOST_SIDE}"
        )
    return side


def judge_in(
    state: dict[str, Any],
    path: str | Path,
    attribute_names: Sequence[str],
    crop: int,
    device: str = "cpu",
) -> tuple[Judge, dict]:
    """``load_judge`` of a file whose contents are read already."""
    with refusing(path, "judge"):
        names = list(state["attribute_names"])
        if [name for name in names if name in attribute_names] != list(attribute_names):
            raise ValueError(
                f"{path} reads {len(names)} attributes, the checkpoint has other "
                f"{len(attribute_names)}: train a judge on the checkpoint's data"
            )
        if state["crop"] != crop:
            raise ValueError(
                f"{path} was trained on photographs cropped to {state['crop']}, the checkpoint's are "
                f"cropped to {crop}: train another with evaluate.py judge --crop {crop}"
            )
        model = Judge(len(names), side=side_in(state, path))
        model.to(device, memory_format=torch.channels_last)
        load_weights(model, state["judge"], path)
        rows = [names.index(name) for name in attribute_names]
        model.head.weight.data, model.head.bias.data = model.head.weight[rows], model.head.bias[rows]
        accuracy = torch.tensor(state["balanced_accuracy"])[rows].nanmean()
    model.file_hash = state["file_hash"]
    return model.eval(), {"hash": model.file_hash, "test_balanced_accuracy": float(accuracy)}
