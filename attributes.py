"""Attributes: names to rows, what excludes what, the prior of what is not named."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from config import composed
from layers import widest

# In the order of list_attr_celeba.txt (Liu et al. 2015, "Deep Learning Face Attributes in the Wild").
CELEBA_ATTRIBUTES: tuple[str, ...] = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald",
    "Bangs", "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair",
    "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin",
    "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones",
    "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard",
    "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings",
    "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip
HAIR_COLOURS = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
# One of each pair denies the other in edits (``with_implied``). Of CelebA's pictures with one of them,
# less than 5 % have both. Bald heads with gray hair are not so rare.
EXCLUSIVE = (
    *combinations(HAIR_COLOURS, 2),
    *(("No_Beard", beard) for beard in ("Goatee", "Mustache", "Sideburns")),
    *(("Bald", hair) for hair in ("Bangs", "Straight_Hair", "Wavy_Hair", *HAIR_COLOURS[:3])),
    ("Bangs", "Receding_Hairline"),
    ("Straight_Hair", "Wavy_Hair"),
)
attr_dict: dict[str, int] = {name: column for column, name in enumerate(CELEBA_ATTRIBUTES)}

RELATED = 0.3  # correlation from which attributes go together; by eye
TURNED = 0.2  # see ``continued``; measured: docs/log.md, "Where interpolations end"
MOST_PAIRS = 2**22  # pairs of a request and a row that are compared at once; limits the memory


# -------------------------------------------------------------------- requests


def parse_request(items: Sequence[str]) -> dict[str, float]:
    """('Smiling=1', 'Male=0') -> {'Smiling': 1.0, 'Male': 0.0}. ValueError for an item that is not
    NAME=NUMBER, or a name given twice."""
    request: dict[str, float] = {}
    for item in items:
        name, _, text = item.partition("=")
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"expected NAME=VALUE such as Smiling=1, got {item!r}") from None
        if name in request:
            raise ValueError(f"{name} is given twice: {request[name]:g} and {value:g}")
        request[name] = value
    return request


def create_attribute_vector(attr_dict: dict[str, int], /, **attributes: float) -> Tensor:
    """The conditioning row of the named attributes: value v -> 2 v - 1, not named -> 0.

    Args:
        attr_dict: attribute name -> column, for A columns.
        attributes: values in [0, 1], 1 present and 0 absent. Pass a name that is no identifier as
            ``**{"5_o_Clock_Shadow": 1}``.

    Returns:
        float32 (A,) in [-1, 1]: +1 present, -1 absent, 0 unspecified.

    Raises:
        ValueError: for an unknown name, with the nearest real ones, or a value outside [0, 1].
    """
    vector = torch.zeros(len(attr_dict), dtype=torch.float32)
    attr_dict = {composed(name): column for name, column in attr_dict.items()}
    for name, value in attributes.items():
        name = composed(name)
        if name not in attr_dict:
            by_lower = {other.lower(): other for other in attr_dict}
            close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
            hint = ", ".join(by_lower[lower] for lower in close or by_lower)
            raise ValueError(f"unknown attribute {name!r}; did you mean {hint}?")
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0.0 <= number <= 1.0:
            raise ValueError(f"attribute {name} is {value!r}; give 0 (absent) to 1 (present)")
        vector[attr_dict[name]] = 2.0 * number - 1.0
    return vector


def request_rows(names: Sequence[str], requests: Sequence[Mapping[str, float]]) -> Tensor:
    """Attribute rows (B, A) of one request or more, where the attributes have these names. Raises as
    ``create_attribute_vector``."""
    columns = {name: column for column, name in enumerate(names)}
    return torch.stack([create_attribute_vector(columns, **request) for request in requests])


def columns_of(names: Sequence[str], chosen: Sequence[str]) -> list[int]:
    """Where the chosen names stand among ``names``, in rising order. ValueError for an unknown name."""
    (row,) = request_rows(names, [dict.fromkeys(chosen, 1)])
    return row.nonzero()[:, 0].tolist()


def with_implied(named: Tensor, read: Tensor, names: Sequence[str]) -> Tensor:
    """Requests for edits (N, A) with what they imply. An attribute that is asked for denies those that
    it excludes (EXCLUSIVE): hair that becomes blond is no longer black, and a goatee ends *No_Beard*.
    Hair that stops being blond gets the most likely other colour.

    Args:
        named: +1, -1 and 0 for what is not named.
        read: (N, A), what the photographs show.
        names: of the attributes.
    """
    implied = named.clone()
    for pair in EXCLUSIVE:
        if {*pair} <= {*names}:
            columns = [names.index(name) for name in pair]
            for present, denied in (columns, columns[::-1]):
                implied[(named[:, present] > 0) & (named[:, denied] == 0), denied] = -1
    columns = [names.index(colour) for colour in HAIR_COLOURS if colour in names]
    if len(columns) < 2:
        return implied
    request, colours = named[:, columns], implied[:, columns]
    decided = (request != colours).any(1, keepdim=True)  # another colour is asked for, or a bald head
    loses = (request < 0).any(1, keepdim=True) & ~decided
    following = read[:, columns].masked_fill(colours != 0, -torch.inf).argmax(1, keepdim=True)
    is_next = torch.arange(len(columns), device=named.device) == following
    implied[:, columns] = torch.where(loses & is_next & (colours == 0), 1.0, colours)
    return implied


def going_along(named: Tensor, read: Tensor, names: Sequence[str], correlation: Tensor) -> Tensor:
    """What goes with requests for edits (N, A): +1 comes, -1 ends, 0 should stay. It is what a request
    excludes or implies, and what correlates with it by more than RELATED in the training rows.

    Args:
        named, read, names: as of ``with_implied``. What is named does not go along.
        correlation: (A, A), of ``AttributePrior.correlation``.
    """
    implied = with_implied(named, read, names)
    strong = correlation * (correlation.abs() > RELATED)
    along = torch.where(implied != 0, implied, named.sign() @ strong).sign()
    return torch.where(named == 0, along, 0.0)


def deny_other_classes(rows: Tensor) -> Tensor:
    """Complete rows (B, A) of classes that exclude each other. If a row names a class (> 0), every class
    that it leaves unspecified becomes -1, as in the training rows. ValueError for two classes in one."""
    if ((rows == 1).sum(1) > 1).any():
        raise ValueError("these attributes are classes that exclude each other: name one of them")
    names_one = (rows > 0).any(1, keepdim=True)
    return torch.where((rows == 0) & names_one, -1.0, rows)


# -------------------------------------------------------------------- completing requests


class AttributePrior(nn.Module):
    """The prior p(rest | named) of attributes, from the distinct attribute rows of the training set.

    A network trained on complete rows draws shapeless images for the many zeros of a short request. So
    the request is completed first: the rest is copied from a training row that agrees with the named
    attributes. The rows are the exact joint distribution and need no training. They are buffers, so they
    travel with the weights: 210 KB for the 18,000 rows of 40 attributes. If no row agrees with all named
    attributes, the rows that agree best are used.

    Args:
        num_attributes: A.
        num_rows: R, the number of distinct rows; 0 for a model that completes nothing.

    Attributes:
        bits: uint8 (R, 2 ceil(A / 8)), a row's "is present" bits and then its "is absent" bits.
        counts: int32 (R,), how often each row occurs.
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
        """The prior of attribute rows (N, A): their distinct signs, and how often each occurs."""
        signs = torch.stack([attributes > 0, attributes < 0], 1)  # (N, 2, A)
        packed = np.packbits(signs.cpu().numpy(), axis=2, bitorder="little")  # (N, 2, ceil(A / 8))
        bits, counts = torch.unique(torch.from_numpy(packed).flatten(1), dim=0, return_counts=True)
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

    def correlation(self) -> Tensor:
        """Of the attributes in the training rows, (A, A). One that is the same in all goes with none."""
        rows = self.rows()
        if len(rows) < 2:
            return rows.new_zeros(self.num_attributes, self.num_attributes)
        covariance = torch.cov(rows.T, fweights=self.counts)
        std = covariance.diagonal().sqrt().clamp(min=1e-6)
        return covariance / std[:, None] / std

    def agreeing(self, requests: Tensor, rows: Tensor) -> Tensor:
        """Weights (B, R) of ``rows()`` for requests (B, A), as ``widest``. A row that agrees best with
        the named attributes of a request gets its count, every other row gets 0."""
        agreement = requests.sign() @ rows.T  # whole numbers
        best = agreement == agreement.amax(1, keepdim=True)
        return best * self.counts.to(widest(self.counts.device))

    def frequencies(self, requests: Tensor) -> Tensor:
        """How often each attribute occurs in the rows that agree with a request: (B, A) -> (B, A)."""
        requests, which = torch.unique(requests, dim=0, return_inverse=True)
        rows, frequencies = self.rows(), []
        for part in requests.split(max(1, MOST_PAIRS // len(rows))):
            weights = self.agreeing(part, rows)
            frequencies.append(weights @ (rows > 0).to(weights.dtype) / weights.sum(1, keepdim=True))
        return torch.cat(frequencies).float()[which]

    def complete(self, requests: Tensor, uniform: Tensor) -> Tensor:
        """A sample of p(rest | named): each request's zeros are copied from one row that agrees with it.

        Args:
            requests: (B, A) in [-1, 1]; what is not 0 stays.
            uniform: (B,) in [0, 1), selects the row; a row is as likely as it is frequent.

        Returns:
            (B, A); the requests unchanged if there are no rows.
        """
        if not len(self.counts):
            return requests
        rows, completed = self.rows(), []
        size = max(1, MOST_PAIRS // len(rows))
        for part, share in zip(requests.split(size), uniform.split(size), strict=True):
            ends = self.agreeing(part, rows).cumsum(1)  # (B, R)
            drawn = torch.searchsorted(ends, share.to(ends)[:, None] * ends[:, -1:], right=True)
            completed.append(torch.where(part == 0, rows[drawn[:, 0].clamp(max=len(rows) - 1)], part))
        return torch.cat(completed)

    def continued(self, request: Tensor, start: Tensor) -> Tensor:
        """A request (1, A) completed as the whole row ``start`` (1, A) is, except for what contradicts
        the request. An attribute is turned if it is as in ``start`` in less than the share TURNED of the
        rows that agree with the request. So a man who becomes a woman loses his beard and keeps his
        age."""
        present = self.frequencies(request)  # (1, A)
        alike = torch.where(start > 0, present, 1 - present)
        rest = torch.where(alike < TURNED, -start, start)
        return torch.where(request == 0, rest, request)
