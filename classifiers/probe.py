"""The probe: a small judge of faces. Its network and its files in pretrained/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attributes import CELEBA_ATTRIBUTES, columns_of
from checkpoint import load_checkpoint, load_weights, save_atomically
from classifiers.judge import MAKE_JUDGE, SIDE, Judge, judge_in, network_input, side_in

PROBE = "drawn64_probe"  # of drawn faces, in pretrained/


def _block(inputs: int, outputs: int, stride: int, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Probe(nn.Module):
    """Reads CelebA's 40 attributes from faces at one ``side``, 0.4 M weights. Like the judge, it
    measures and never steers."""

    def __init__(self, dropout: float = 0.1, side: int = SIDE) -> None:
        super().__init__()
        self.side = side
        self.features = nn.Sequential(
            nn.PixelUnshuffle(2), _block(12, 80, 2),  # (B, 80, H/4, W/4)
            _block(80, 96, 1), _block(96, 96, 1),
            _block(96, 160, 2),  # (B, 160, H/8, W/8)
            nn.AdaptiveAvgPool2d(8), _block(160, 48, 1, 1),  # no pooling: it matters where a thing is
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(48 * 64, len(CELEBA_ATTRIBUTES))
        )

    def input(self, images: Tensor) -> Tensor:
        """``network_input``, as of the judge."""
        return network_input(images, self.side)

    def stages(self) -> list[nn.Module]:
        """The network as four stages in a row, for ``perceptual_distance``."""
        layers = self.features
        return [layers[:2], layers[2:4], layers[4:5], layers[5:]]

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> logits (B, 40), positive where the attribute is seen."""
        return self.head(self.features(self.input(images)))


def save_probe(probe: Probe, path: str | Path, balanced_accuracy: list[float]) -> None:
    """Write a probe in half precision, with its balanced accuracy for each attribute."""
    weights = {name: w.half() if w.is_floating_point() else w for name, w in probe.state_dict().items()}
    content = {"judge": weights, "balanced_accuracy": balanced_accuracy, "side": probe.side}
    save_atomically(content, path)


def probe_in(state: dict[str, Any], path: str | Path, attribute_names: Sequence[str]) -> Probe:
    """The probe in a file with these contents, reduced to these attributes, in evaluation mode.
    ValueError for another file, or an attribute that CelebA lacks."""
    probe = Probe(side=side_in(state, path))
    load_weights(probe, state["judge"], path)
    rows, last = columns_of(CELEBA_ATTRIBUTES, attribute_names), probe.head[-1]
    last.weight.data, last.bias.data = last.weight[rows], last.bias[rows]
    probe.file_hash = state["file_hash"]
    return probe.eval()


def load_reader(
    path: str | Path, attribute_names: Sequence[str], crop: int, device: str = "cpu"
) -> Judge | Probe:
    """What reads these attributes from pictures: a judge or a probe, as the file holds.

    Raises:
        FileNotFoundError, ValueError: where there is none, or one of other attributes.
    """
    state = load_checkpoint(path, "judge", MAKE_JUDGE)
    if "attribute_names" in state:
        return judge_in(state, path, attribute_names, crop, device)[0]
    return probe_in(state, path, attribute_names).to(device)
