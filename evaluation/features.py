"""Feature spaces: numbers that describe an image, in which sets of images are compared.

To add one, write a function of the configuration and the judge, and give it an entry in
``FEATURE_SPACES``. Reports, tables and the features of the reference images follow from that.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from classifiers.judge import Judge

if TYPE_CHECKING:
    from evaluate import SamplesConfig

Features = Callable[[Tensor], Tensor]  # images uint8 (B, H, W, 3) -> floats (B, D), on the CPU


def judge_features(config: SamplesConfig, judge: Judge) -> Features:
    """The 128 features from which the judge reads attributes."""
    return judge.read_features


def inception_features(config: SamplesConfig, judge: Judge) -> Features:
    """The 2048 features of Inception-v3 that Frechet distances are usually quoted in. The weights come
    from torch-fidelity's file, or are fetched where the flag says "download".

    Raises:
        FileNotFoundError, ValueError: where there is no such file, or one of something else.
    """
    weights, device = config.inception_weights or "", judge.head.weight.device
    fetch = weights == "download"
    if not fetch and not Path(weights).is_file():
        raise FileNotFoundError(f"no Inception weights at {weights}: see torch-fidelity's releases")
    try:
        file = None if fetch else weights
        network = FeatureExtractorInceptionV3("fid", ["2048"], file).to(device).eval()
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{weights} holds no Inception weights of torch-fidelity: {error}") from None

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return network(images.permute(0, 3, 1, 2).to(device))[0].cpu()

    return features


@dataclass(frozen=True)
class FeatureSpace:
    """How features are made, and when.

    make: (configuration, judge) -> a function of images uint8 (B, H, W, 3) that gives features (B, D).
    applies: whether a configuration has what this needs.
    """

    make: Callable[[SamplesConfig, Judge], Features]
    applies: Callable[[SamplesConfig], bool] = lambda config: True


FEATURE_SPACES: dict[str, FeatureSpace] = {
    "judge": FeatureSpace(judge_features),
    "inception": FeatureSpace(inception_features, lambda config: bool(config.inception_weights)),
}


def make_features(config: SamplesConfig, judge: Judge) -> dict[str, Features]:
    """The features of every space that applies to this configuration."""
    return {
        name: space.make(config, judge)
        for name, space in FEATURE_SPACES.items()
        if space.applies(config)
    }
