"""What goes with what: p(rest | named), from the attribute rows of the training set.

People name two or three attributes of forty. A network trained on whole rows draws mush for the zeros of
such a request, so the request is completed first: the rest is copied from a training row that agrees
with what is named. The rows are the exact joint distribution, need no training, and are small: 40
attributes of 18,000 pictures are 210 KB. A network would also know combinations that nobody in the
training set has; for those, the nearest rows serve.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOST_PAIRS = 2**22  # of requests and rows that are compared at once: bounds the memory


def pack_rows(attributes: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct sign patterns of attribute rows (N, A), and how often each occurs.

    Returns:
        bits: uint8 (R, 2 ceil(A / 8)), a row's "is present" bits and then its "is absent" bits.
        counts: int32 (R,).
    """
    signs = torch.stack([attributes > 0, attributes < 0], 1)  # (N, 2, A)
    padding = -signs.shape[2] % 8
    signs = nn.functional.pad(signs.byte(), (0, padding)).unflatten(2, (-1, 8))  # (N, 2, A / 8, 8)
    places = (1 << torch.arange(8, device=attributes.device)).byte()
    bits = (signs * places).sum(3, dtype=torch.uint8).flatten(1)
    bits, counts = torch.unique(bits, dim=0, return_counts=True)
    return bits, counts.int()


class AttributePrior(nn.Module):
    """The distinct attribute rows of a training set, as buffers, so that they travel with the weights.

    Args:
        num_attributes: A.
        num_rows: R, as ``pack_rows`` finds them; 0 for a model that completes nothing.
    """

    def __init__(self, num_attributes: int, num_rows: int):
        super().__init__()
        self.num_attributes = num_attributes
        bits = torch.zeros(num_rows, 2 * -(-num_attributes // 8), dtype=torch.uint8)
        counts = torch.zeros(num_rows, dtype=torch.int32)
        self.register_buffer("bits", bits, persistent=num_rows > 0)
        self.register_buffer("counts", counts, persistent=num_rows > 0)

    @classmethod
    def of(cls, attributes: Tensor) -> AttributePrior:
        """The prior of attribute rows (N, A)."""
        bits, counts = pack_rows(attributes)
        prior = cls(attributes.shape[1], len(counts))
        prior.bits.copy_(bits)
        prior.counts.copy_(counts)
        return prior

    def rows(self) -> Tensor:
        """The rows, float32 (R, A): +1 present, -1 absent, 0 unspecified."""
        places = torch.arange(8, device=self.bits.device)
        signs = (self.bits[..., None] >> places) & 1  # (R, 2 A / 8, 8)
        present, absent = signs.flatten(1).float().chunk(2, dim=1)
        return (present - absent)[:, : self.num_attributes]

    def agreeing(self, requests: Tensor, rows: Tensor) -> Tensor:
        """Weights (B, R), float64, of ``rows()``: how often each occurs, 0 unless it agrees with a
        request of (B, A) in as many named attributes as any row does."""
        agreement = requests.sign() @ rows.T  # whole numbers
        best = agreement == agreement.amax(1, keepdim=True)
        return best * self.counts.double()

    def frequencies(self, requests: Tensor) -> Tensor:
        """How often each attribute is present among the rows that agree with requests (B, A): (B, A)."""
        requests, which = torch.unique(requests, dim=0, return_inverse=True)
        rows, found = self.rows(), []
        for part in requests.split(max(1, MOST_PAIRS // len(rows))):
            weights = self.agreeing(part, rows)
            found.append(weights @ (rows > 0).double() / weights.sum(1, keepdim=True))
        return torch.cat(found).float()[which]

    def complete(self, requests: Tensor, uniform: Tensor) -> Tensor:
        """A sample of p(rest | named): requests (B, A) whose zeros are taken from a row each.

        Args:
            requests: (B, A) in [-1, 1]; what is not 0 stays.
            uniform: (B,) in [0, 1), which of the agreeing rows, all equally likely.

        Returns:
            (B, A); the requests as they are where there are no rows.
        """
        if not len(self.counts):
            return requests
        rows, found = self.rows(), []
        size = max(1, MOST_PAIRS // len(rows))
        for part, share in zip(requests.split(size), uniform.split(size), strict=True):
            ends = self.agreeing(part, rows).cumsum(1)  # (B, R)
            drawn = torch.searchsorted(ends, share.to(ends)[:, None] * ends[:, -1:], right=True)
            found.append(torch.where(part == 0, rows[drawn[:, 0].clamp(max=len(rows) - 1)], part))
        return torch.cat(found)
