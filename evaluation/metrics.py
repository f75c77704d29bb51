"""What numbers say about images: distances between sets of features, accuracies, and their errors.

Features are float tensors (N, D), one row an image. Everything here is a pure function of tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PAIRS = 2**24  # of images, at most, that are compared at once, which bounds the memory
NEIGHBOURS = 5  # k of precision, recall, density and coverage, as their authors take it
KERNEL_IMAGES = 2000  # of each set, at most: the kernel distance is unbiased for any number

# -------------------------------------------------------------------- pairs of images


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """10 log10(255^2 / mean squared error) of each pair of images uint8 (N, H, W, 3), in dB (N,). Equal
    images give 100. With a ``mask`` (H, W), only the pixels where it is true count."""
    error = (a.float() - b.float()).square().mean(3)  # (N, H, W)
    error = error.mean((1, 2)) if mask is None else error[:, mask].mean(1)
    return (10 * torch.log10(255**2 / error)).clamp(max=100)


# -------------------------------------------------------------------- distances between feature sets


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) between the Gaussians fitted to two sets
    (Heusel et al. 2017, arXiv:1706.08500). Few images bias it upwards, so compare equal numbers."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    half = vectors * values.clamp(min=0).sqrt() @ vectors.T  # S_a^(1/2)
    # S_a S_b has the eigenvalues of S_a^(1/2) S_b S_a^(1/2), which is symmetric.
    root = torch.linalg.eigvalsh(half @ cov_b @ half).clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float(shift + cov_a.trace() + cov_b.trace() - 2 * root)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x . y / D + 1)^3 (Binkowski et al.
    2018, arXiv:1801.01401). For two sets of one distribution it lies near 0, above or below."""
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def neighbourhoods(real: Tensor, fake: Tensor, k: int = NEIGHBOURS) -> dict[str, Tensor]:
    """Precision and density of each fake image (F,), recall and coverage of each real one (R,). The
    figures usually quoted are the means.

    Each image has a ball around it that reaches to the k-th neighbour in its own set. The balls of a set
    stand for its manifold.

    - precision: whether a fake image lies in a real ball; recall: whether a real image lies in a fake
      ball (Kynkaanniemi et al. 2019, arXiv:1904.06991);
    - density: how many real balls hold a fake image, divided by k; coverage: whether a real ball holds a
      fake image (Naeem et al. 2020, arXiv:2002.09797).

    Raises:
        ValueError: unless both sets have more than k images.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"{k} neighbours need more images than {min(len(real), len(fake))}")
    real, fake = real.float(), fake.float()

    def radius(x: Tensor) -> Tensor:  # the first neighbour is the image itself
        return torch.cat([torch.cdist(p, x).kthvalue(k + 1).values for p in x.split(_rows(x))])

    fake_radius, balls = radius(fake), torch.zeros(len(fake))
    recall, coverage, number = [], [], _rows(fake)
    for part, reach in zip(real.split(number), radius(real).split(number), strict=True):
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
    """The mean of the true positive and the true negative rate of each attribute, (A,). It is NaN where
    one of them is undefined.

    Args:
        logits: (N, A); above 0 means present.
        attributes: (N, A); +1 present, -1 absent. An image with 0 (unspecified) does not count for that
            attribute.
    """
    right = (logits > 0) == (attributes > 0)
    present, absent = attributes > 0, attributes < 0
    positive = (right & present).sum(0) / present.sum(0)
    negative = (right & absent).sum(0) / absent.sum(0)
    return (positive + negative) / 2


def pooled_accuracy(logits: Tensor, requests: Tensor) -> float:
    """Balanced accuracy over all named cells of requests (N, A) together. It is for short requests, in
    which a single attribute is seldom named."""
    logits, requests = logits[requests != 0][:, None], requests[requests != 0][:, None]
    return float(balanced_accuracy(logits, requests))


def pooled_accuracy_by_chance(logits: Tensor, requests: Tensor) -> float:
    """``pooled_accuracy`` where each request (N, A) is compared with the images of all other requests,
    N (N - 1) pairs. Chance is not one half: what is common is drawn, and asked for, more often."""
    visible, number = (logits > 0).double(), len(requests)

    def rate(named: Tensor, met: Tensor) -> Tensor:  # over all images less a request's own
        hits = (named.sum(0) * met.sum(0) - (named * met).sum(0)).sum()
        return hits / (named.sum() * (number - 1))

    present, absent = (requests > 0).double(), (requests < 0).double()
    return float(rate(present, visible) + rate(absent, 1 - visible)) / 2


def with_error(
    name: str, statistic: Callable[..., float], *sizes: int, num_resamples: int = 100, seed: int = 0
) -> dict[str, float]:
    """The statistic's value under a name, and 1.96 bootstrap standard errors, which is half the width of
    a 95 % interval (Efron & Tibshirani 1993, section 13.3).

    ``statistic`` takes one tensor of row numbers for each of ``sizes``. Percentiles of the resamples
    would be wrong: images that repeat in a resample raise a Frechet distance by themselves.
    """
    generator = torch.Generator().manual_seed(seed)
    values = [
        statistic(*(torch.randint(size, (size,), generator=generator) for size in sizes))
        for _ in range(num_resamples)
    ]
    error = 1.96 * float(torch.tensor(values).double().std())
    return {name: statistic(*map(torch.arange, sizes)), f"{name}_error": error}


def mean_of(name: str, values: Tensor) -> dict[str, float]:
    """The mean of values (N,) under a name, and half the width of its 95 % interval, to which
    ``with_error`` of a mean tends. Without values both are left out, of one value the error."""
    if not len(values):
        return {}
    mean = {name: float(values.mean())}
    if len(values) > 1:
        mean[f"{name}_error"] = 1.96 * float(values.std()) / len(values) ** 0.5
    return mean


def distances(fake: Tensor, real: Tensor) -> dict[str, float]:
    """Every distance between two feature sets, each with its error (95 %).

    ``neighbourhoods`` gets at most as many real images as there are fake ones. ``kernel_distance`` gets
    at most KERNEL_IMAGES of each.
    """
    some = _spread(real, len(fake))
    wide = fake.shape[1] > 512  # 2048 dimensions take seconds a resample
    figures = with_error(
        "frechet",
        lambda i, j: frechet_distance(fake[i], real[j]),
        *(len(fake), len(real)),
        num_resamples=5 if wide else 100,
    )
    a, b = _spread(fake, KERNEL_IMAGES), _spread(some, KERNEL_IMAGES)
    figures |= with_error(
        "kernel", lambda i, j: kernel_distance(a[i], b[j]), len(a), len(b), num_resamples=30
    )
    for name, values in neighbourhoods(some, fake).items():
        figures |= mean_of(name, values)
    return figures


def _rows(images: Tensor) -> int:
    """How many images are compared with all of these at once."""
    return max(1, PAIRS // len(images))


def _spread(images: Tensor, most: int) -> Tensor:
    """At most ``most`` rows of a tensor, evenly spread over it."""
    return images[torch.linspace(0, len(images) - 1, min(most, len(images))).long()]


def nearest(queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """The distance of each query's features to the nearest reference, and the row of that one."""
    closest = [torch.cdist(part, references).min(1) for part in queries.split(_rows(references))]
    return torch.cat([c.values for c in closest]), torch.cat([c.indices for c in closest])
