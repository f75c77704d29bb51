"""What numbers say about images: distances between sets of features; drawing the images.

Features are float tensors (N, D), one row an image.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

import processes
from diffusion_model import ConditionalDiffusion
from model_config import SamplingConfig
from samplers import sample_generators

Result = TypeVar("Result")
CHUNK = 1000  # images compared with all others at once: bounds the memory of what is quadratic
KERNEL_IMAGES = 2000  # of each set, at most: the distance is unbiased for any number

# -------------------------------------------------------------------- distances between feature sets


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) between the Gaussians fitted to two sets
    (Heusel et al. 2017, arXiv:1706.08500). Biased upwards for few images: compare equal counts."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    half = vectors * values.clamp(min=0).sqrt() @ vectors.T  # S_a^(1/2); S_a S_b has the eigenvalues of
    root = torch.linalg.eigvalsh(half @ cov_b @ half).clamp(min=0).sqrt().sum()  # S_a^1/2 S_b S_a^1/2
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float(shift + cov_a.trace() + cov_b.trace() - 2 * root)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x . y / D + 1)^3 (Binkowski et al.
    2018, arXiv:1801.01401). Near 0 for two sets of one distribution, also slightly below."""
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def neighbourhoods(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, Tensor]:
    """What each image contributes to precision and density (F,), recall and coverage (R,), their means.

    Balls around each image, as wide as its distance to the k-th neighbour of its own set, stand for a
    set's manifold. precision, recall: share of fake within real balls and the reverse (Kynkaanniemi
    et al. 2019, arXiv:1904.06991); density: real balls around a fake, over k; coverage: share of real
    balls that hold a fake (Naeem et al. 2020, arXiv:2002.09797).

    Raises:
        ValueError: unless both sets have more than k images.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"{k} neighbours need more images than {min(len(real), len(fake))}")
    real, fake = real.float(), fake.float()

    def radius(x: Tensor) -> Tensor:  # the first neighbour is the image itself
        return torch.cat([torch.cdist(p, x).kthvalue(k + 1).values for p in x.split(CHUNK)])

    fake_radius, balls = radius(fake), torch.zeros(len(fake))
    recall, coverage = [], []
    for part, reach in zip(real.split(CHUNK), radius(real).split(CHUNK), strict=True):
        distance = torch.cdist(part, fake)
        balls += (distance < reach[:, None]).sum(0)
        recall.append((distance < fake_radius).any(1))
        coverage.append(distance.min(1).values < reach)
    return {
        "precision": (balls > 0).float(),
        "recall": torch.cat(recall).float(),
        "density": balls / k,
        "coverage": torch.cat(coverage).float(),
    }


def balanced_accuracy(logits: Tensor, attributes: Tensor) -> Tensor:
    """Mean of true positive and true negative rate per attribute, (A,); NaN where one is undefined.

    Args: logits (N, A), present where above 0; attributes (N, A), +1 present, -1 absent; where 0
    (unspecified), the image is left out of that attribute.
    """
    right = (logits > 0) == (attributes > 0)
    present, absent = attributes > 0, attributes < 0
    positive = (right & present).sum(0) / present.sum(0)
    negative = (right & absent).sum(0) / absent.sum(0)
    return (positive + negative) / 2


def pooled_accuracy(logits: Tensor, requests: Tensor) -> float:
    """Balanced accuracy over all named cells of requests (N, A) together, for requests so short that
    single attributes are seldom named."""
    logits, requests = logits[requests != 0][:, None], requests[requests != 0][:, None]
    return float(balanced_accuracy(logits, requests))


def pooled_accuracy_by_chance(logits: Tensor, requests: Tensor) -> float:
    """``pooled_accuracy`` of requests (N, A) on the images of all others' requests, N (N - 1) pairs:
    what is common is drawn, and asked for, more often."""
    seen = (logits > 0).double()

    def rate(asked: Tensor, met: Tensor) -> Tensor:  # over other images: all, less its own
        hits = (asked.sum(0) * met.sum(0) - (asked * met).sum(0)).sum()
        return hits / (asked.sum() * (len(asked) - 1))

    present, absent = (requests > 0).double(), (requests < 0).double()
    return float(rate(present, seen) + rate(absent, 1 - seen)) / 2


def with_error(
    statistic: Callable[..., float], *sizes: int, num_resamples: int = 100, seed: int = 0
) -> tuple[float, float]:
    """The statistic's value, and 1.96 bootstrap standard errors: half the width of a 95 % interval
    (Efron & Tibshirani 1993, section 13.3). ``statistic`` takes one tensor of row numbers for each of
    ``sizes``. Percentiles would be off: a resample's repeated images alone raise a Frechet distance.
    """
    generator = torch.Generator().manual_seed(seed)
    values = [
        statistic(*(torch.randint(size, (size,), generator=generator) for size in sizes))
        for _ in range(num_resamples)
    ]
    return statistic(*map(torch.arange, sizes)), 1.96 * float(torch.tensor(values).double().std())


def mean_error(values: Tensor) -> float:
    """Half the width of a mean's 95 % interval: what ``with_error`` tends to for a mean."""
    return 1.96 * float(values.std()) / len(values) ** 0.5


def distances(fake: Tensor, real: Tensor) -> dict[str, float]:
    """All of the above between two feature sets, with errors (95 %). Neighbourhoods take as many real
    images as there are fake ones, at most; the kernel distance KERNEL_IMAGES of each, at most."""
    some = _spread(real, len(fake))
    wide = fake.shape[1] > 512  # 2048 dimensions take seconds a resample
    frechet, frechet_error = with_error(
        lambda i, j: frechet_distance(fake[i], real[j]),
        *(len(fake), len(real)),
        num_resamples=5 if wide else 100,
    )
    a, b = _spread(fake, KERNEL_IMAGES), _spread(some, KERNEL_IMAGES)
    kernel, kernel_error = with_error(
        lambda i, j: kernel_distance(a[i], b[j]), len(a), len(b), num_resamples=30
    )
    figures = {"frechet": frechet, "frechet_error": frechet_error}
    figures |= {"kernel": kernel, "kernel_error": kernel_error}
    for name, values in neighbourhoods(some, fake).items():
        figures |= {name: float(values.mean()), f"{name}_error": mean_error(values)}
    return figures


def _spread(images: Tensor, most: int) -> Tensor:
    """At most so many rows of a tensor, evenly spread over it."""
    return images[torch.linspace(0, len(images) - 1, min(most, len(images))).long()]


def nearest(queries: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each query's features to the nearest of ``known``, and which that is."""
    closest = [torch.cdist(part, known).min(1) for part in queries.split(500)]
    return torch.cat([c.values for c in closest]), torch.cat([c.indices for c in closest])


def draw_batches(
    then: Callable[[Tensor], Result],
    model: ConditionalDiffusion,
    rows: Tensor,
    sampling: SamplingConfig,
    autocast,
    seed: int = 0,
    batch_size: int = 50,
    bar: tqdm | None = None,
    numbers: Sequence[int] | None = None,
    **options,
) -> list[Result]:
    """``then`` of every batch of images uint8 (B, H, W, 3), drawn under attribute rows (N, A), so that
    only one batch is in memory.

    Args:
        seed, numbers: image i has the seed (seed, numbers[i]), by default (seed, i).
        bar: shows progress image by image; where not given, each batch has a bar of its own.
        options: of ``ConditionalDiffusion.sample``.

    Processes share the batches.
    """
    options |= {"progress": bar is None}
    numbers = range(len(rows)) if numbers is None else numbers

    def part(start: int) -> Result:
        batch = rows[start : start + batch_size]
        generators = sample_generators(seed, numbers[start : start + batch_size])
        with autocast:
            images = model.sample(len(batch), None, batch, sampling, generators, **options)
        if bar is not None:
            bar.update(len(batch) * processes.number())
        return then(images)

    return processes.in_parallel(part, range(0, len(rows), batch_size))


def draw(*args, **options) -> Tensor:
    """``draw_batches`` that keeps the images: uint8 (N, H, W, 3), on the CPU."""
    return torch.cat(draw_batches(Tensor.cpu, *args, **options))


def inception_features(weights: str | Path, device: str) -> Callable[[Tensor], Tensor]:
    """The 2048 features of Inception-v3 that Frechet distances are usually quoted in, from torch-
    fidelity's weights file, or fetched for "download": uint8 images (B, H, W, 3) -> (B, 2048).

    Raises:
        FileNotFoundError: where the file is not there.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    fetch = weights == "download"
    if not fetch and not Path(weights).is_file():
        raise FileNotFoundError(f"no Inception weights at {weights}: see torch-fidelity's releases")
    try:
        file = None if fetch else str(weights)
        network = FeatureExtractorInceptionV3("fid", ["2048"], file).to(device).eval()
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{weights} holds no Inception weights of torch-fidelity: {error}") from None

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return network(images.permute(0, 3, 1, 2).to(device))[0].cpu()

    return features
