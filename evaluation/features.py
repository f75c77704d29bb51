"""Feature spaces: numbers that describe an image, in which sets of images are compared.

To add one, write a function of the configuration and the judge, and give it an entry in
``FEATURE_SPACES``. Reports, tables and the features of the reference images follow from that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from checkpoint import refusing
from classifiers.judge import Judge

if TYPE_CHECKING:
    from evaluate import SamplesConfig

Features = Callable[[Tensor], Tensor]  # images uint8 (B, H, W, 3) -> floats (B, D), on the CPU


def inception_features(config: SamplesConfig, judge: Judge) -> Features | None:
    """The 2048 features of Inception-v3 that Frechet distances are usually quoted in. The weights come
    from torch-fidelity's file, or are fetched where the flag says "download".

    Raises:
        FileNotFoundError, ValueError: where there is no such file, or one of something else.
    """
    weights, device = config.inception_weights, judge.head.weight.device
    if not weights:
        return None
    file = None if weights == "download" else weights
    if file and not Path(file).is_file():
        raise FileNotFoundError(f"no Inception weights at {file}: see torch-fidelity's releases")
    with refusing(weights, "Inception network of torch-fidelity"):
        network = FeatureExtractorInceptionV3("fid", ["2048"], file).to(device).eval()

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return network(images.permute(0, 3, 1, 2).to(device))[0].cpu()

    return features


# name -> (configuration, judge) -> features, or None where the configuration does not ask for them
FEATURE_SPACES: dict[str, Callable[[SamplesConfig, Judge], Features | None]] = {
    "judge": lambda config, judge: judge.read_features,  # the 128 from which it reads attributes
    "inception": inception_features,
}
