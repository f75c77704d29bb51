"""CelebA's attributes, label files and splits; requests and their attribute rows."""

from __future__ import annotations

import difflib
import math
import os
import textwrap
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from config import composed
from image_data.cached import SPLITS, CachedDataset
from image_data.files import Picture, checked_root, csv_rows, list_pictures, no_picture, read_text
from image_data.labelled import Labelled
from image_data.picture import check_geometry, decode_image
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
# One of each pair denies the other in edits (``settle``): together they are on less than 5 % of CelebA's
# pictures that have one of them. Bald heads with gray hair are not so rare.
EXCLUSIVE = (
    *combinations(HAIR_COLOURS, 2),
    *(("No_Beard", beard) for beard in ("Goatee", "Mustache", "Sideburns")),
    *(("Bald", hair) for hair in ("Bangs", "Straight_Hair", "Wavy_Hair", *HAIR_COLOURS[:3])),
    ("Bangs", "Receding_Hairline"),
    ("Straight_Hair", "Wavy_Hair"),
)
attr_dict: dict[str, int] = {name: column for column, name in enumerate(CELEBA_ATTRIBUTES)}

CELEBA_HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
IMAGE_FOLDER = "img_align_celeba"
# The lists as CelebA has them, and as Kaggle does.
ATTRIBUTE_FILES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
PARTITION_FILES = ("list_eval_partition.txt", "list_eval_partition.csv")
# Files of CelebA that nothing here reads: not to be taken for a misspelt one of the above.
OTHER_FILES = ("identity_CelebA.txt", "list_landmarks_align_celeba.txt", "list_bbox_celeba.txt")
OTHER_FILES += ("list_landmarks_align_celeba.csv", "list_bbox_celeba.csv")


MOST_PAIRS = 2**22  # pairs of a request and a row that are compared at once; limits the memory


# -------------------------------------------------------------------- requests


def parse_request(items: Sequence[str]) -> dict[str, float]:
    """('Smiling=1', 'Male=0') -> {'Smiling': 1.0, 'Male': 0.0}.

    Raises:
        ValueError: for an item that is not NAME=NUMBER, or a name given twice.
    """
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
            hint = _nearest(name, attr_dict) or f"one of all {len(attr_dict)}: {', '.join(attr_dict)}"
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


def columns_of(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where the wanted names stand among ``names``, in rising order. ValueError for an unknown name."""
    (row,) = request_rows(names, [dict.fromkeys(wanted, 1)])
    return row.nonzero()[:, 0].tolist()


def _nearest(name: str, known) -> str:
    """The known names most like `name`, whatever their case, as "A, B"; empty if none is."""
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return ", ".join(by_lower[lower] for lower in close)


def settle(named: Tensor, read: Tensor, names: Sequence[str]) -> Tensor:
    """Requests for edits (N, A) with what they imply. What is asked for denies what it excludes
    (EXCLUSIVE): hair that becomes blond is no longer black, and a goatee ends *No_Beard*. Hair that
    stops being blond gets the next colour that is read.

    Args:
        named: +1, -1 and 0 for what is not named.
        read: (N, A), what the photographs show.
        names: of the attributes.
    """
    settled = named.clone()
    for pair in EXCLUSIVE:
        if {*pair} <= {*names}:
            columns = [names.index(name) for name in pair]
            for there, denied in (columns, columns[::-1]):
                settled[(named[:, there] > 0) & (named[:, denied] == 0), denied] = -1
    columns = [names.index(colour) for colour in HAIR_COLOURS if colour in names]
    if len(columns) < 2:
        return settled
    asked, colours = named[:, columns], settled[:, columns]
    loses = (asked < 0).any(1, keepdim=True) & (asked == colours).all(1, keepdim=True)  # not bald
    following = read[:, columns].masked_fill(colours != 0, -torch.inf).argmax(1, keepdim=True)
    is_next = torch.arange(len(columns), device=named.device) == following
    settled[:, columns] = torch.where(loses & is_next & (colours == 0), 1.0, colours)
    return settled


def deny_other_classes(rows: Tensor) -> Tensor:
    """Complete rows (B, A) of classes that exclude each other. If a row names a class (> 0), every class
    that it leaves unspecified becomes -1, as in the training rows of such a dataset.

    Raises:
        ValueError: for two classes in a row.
    """
    if ((rows == 1).sum(1) > 1).any():
        raise ValueError("these attributes are classes that exclude each other: name one of them")
    names_one = (rows > 0).any(1, keepdim=True)
    return torch.where((rows == 0) & names_one, -1.0, rows)


# -------------------------------------------------------------------- completing requests


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
    """The prior p(rest | named) of attributes, from the distinct attribute rows of the training set.

    A network trained on complete rows draws shapeless images for the many zeros of a short request. So
    the request is completed first: the rest is copied from a training row that agrees with the named
    attributes. The rows are the exact joint distribution and need no training. They are buffers, so they
    travel with the weights: 210 KB for the 18,000 rows of 40 attributes. If no row agrees with all named
    attributes, the rows that agree best are used.

    Args:
        num_attributes: A.
        num_rows: R, the number of rows of ``pack_rows``; 0 for a model that completes nothing.
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
        """Weights (B, R) of ``rows()`` for requests (B, A), as ``widest``. A row that agrees best with
        the named attributes of a request gets its count, every other row gets 0."""
        agreement = requests.sign() @ rows.T  # whole numbers
        best = agreement == agreement.amax(1, keepdim=True)
        return best * self.counts.to(widest(self.counts.device))

    def frequencies(self, requests: Tensor) -> Tensor:
        """How often each attribute occurs in the rows that agree with a request: (B, A) -> (B, A)."""
        requests, which = torch.unique(requests, dim=0, return_inverse=True)
        rows, found = self.rows(), []
        for part in requests.split(max(1, MOST_PAIRS // len(rows))):
            weights = self.agreeing(part, rows)
            found.append(weights @ (rows > 0).to(weights.dtype) / weights.sum(1, keepdim=True))
        return torch.cat(found).float()[which]

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
        rows, found = self.rows(), []
        size = max(1, MOST_PAIRS // len(rows))
        for part, share in zip(requests.split(size), uniform.split(size), strict=True):
            ends = self.agreeing(part, rows).cumsum(1)  # (B, R)
            drawn = torch.searchsorted(ends, share.to(ends)[:, None] * ends[:, -1:], right=True)
            found.append(torch.where(part == 0, rows[drawn[:, 0].clamp(max=len(rows) - 1)], part))
        return torch.cat(found)

    def nearest(self, request: Tensor, start: Tensor) -> Tensor:
        """A request (1, A) completed from the row that agrees with it and, among those, is most like the
        whole row ``start`` (1, A); of equally like rows the most frequent."""
        rows = self.rows()
        likeness = start.sign() @ rows.T + self.counts / (self.counts.sum() + 1)  # (1, R)
        best = likeness.masked_fill(self.agreeing(request, rows) == 0, -math.inf).argmax()
        return torch.where(request == 0, rows[best], request)


# -------------------------------------------------------------------- pictures


def load_and_preprocess_image(path: str | os.PathLike, image_size: int = 64, crop: int = 178) -> Tensor:
    """One picture file, upright, RGB over white, cropped and resized exactly as in the dataset.

    Returns:
        uint8 (1, image_size, image_size, 3) in [0, 255].

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a file that is not a whole picture, one so large that it may be a decompression
            bomb, or an impossible image_size or crop.
    """
    check_geometry(image_size, crop)
    return torch.from_numpy(decode_image(path, image_size, crop))[None]  # (1, H, W, 3)


# -------------------------------------------------------------------- CelebA's folder


def celeba_folder(root: str | os.PathLike) -> Path:
    """The folder that holds CelebA's files: root, or root/celeba, as torchvision leaves it.

    Raises:
        FileNotFoundError: if root is no folder.
    """
    root = checked_root(root, "CelebA")
    inside = root / "celeba"
    return inside if (inside / IMAGE_FOLDER).is_dir() and not (root / IMAGE_FOLDER).is_dir() else root


def read_celeba(root: str | os.PathLike) -> Labelled:
    """CelebA's pictures, attributes and splits, in the order of the attribute file. No picture is read.

    The lists are CelebA's .txt files, or .csv files as Kaggle has them. The pictures may lie one folder
    deeper, as Kaggle's do. Rows without a picture are left out.

    Raises:
        FileNotFoundError, ValueError: one line, for files that are missing, wrong or do not match.
    """
    root = celeba_folder(root)
    folder = require(root, IMAGE_FOLDER)
    listing = list_pictures(folder, deep=False)
    if not listing.pictures and (folder / IMAGE_FOLDER).is_dir():
        folder /= IMAGE_FOLDER
        listing = list_pictures(folder, deep=False)
    if not listing.pictures:
        raise no_picture(folder, listing)

    path = require(root, *ATTRIBUTE_FILES)
    names, attributes = read_attributes(path)
    pictures, rows = match_rows(path, names, folder, listing.pictures)
    skipped = listing.others
    skipped["rows without a picture"] += len(names) - len(rows)

    path = require(root, *PARTITION_FILES)
    listed, splits = read_table(path)
    matched = zip(*match_rows(path, listed, folder, listing.pictures), strict=True)
    split_of = {picture.name: splits[row, 0] for picture, row in matched}
    partition = np.array([split_of[picture.name] for picture in pictures])
    bad = np.flatnonzero(~np.isin(partition, list(SPLITS.values())))
    if len(bad):
        value = f"{pictures[bad[0]].name} has {partition[bad[0]]}"
        raise ValueError(f"{path}: {value}; use 0 (train), 1 (val) or 2 (test)")
    labels = attributes[rows], CELEBA_ATTRIBUTES, partition
    return Labelled(root, "CelebA", pictures, *labels, +skipped, shuffled=False)


def require(root: Path, *names: str, reason: str = "") -> Path:
    """The first of root / name that exists. FileNotFoundError, with the nearest name that does or the
    reason why it is needed, if none does."""
    for name in names:
        if (root / name).exists():
            return root / name
    own = {IMAGE_FOLDER, *ATTRIBUTE_FILES, *PARTITION_FILES, *OTHER_FILES}
    near = _nearest(names[0], {path.name for path in root.iterdir()} - own)
    hint = reason or (f"rename or unpack {near}?" if near else f"CelebA's files are at {CELEBA_HOME}")
    raise FileNotFoundError(f"{root} has no {' or '.join(names)}; {hint}")


def read_attributes(path: Path) -> tuple[list[str], np.ndarray]:
    """N file names and attributes (N, 40), +1 or -1, of a list that says 1 and -1, or 1 and 0.

    Raises:
        ValueError: one line, for a list with other columns or values.
    """
    names, attributes = read_table(path, header=CELEBA_ATTRIBUTES)
    absent = -1 if (attributes == -1).any() else 0
    bad = np.argwhere((attributes != 1) & (attributes != absent))
    if len(bad):
        row, column = bad[0]
        value = f"{CELEBA_ATTRIBUTES[column]} is {attributes[row, column]}"
        raise ValueError(
            f"{path}: {value} for {names[row]}; attributes are 1 or -1, or 1 or 0 in the whole file"
        )
    return names, np.where(attributes == 1, 1, -1).astype(np.int32)


def read_table(path: Path, header: tuple[str, ...] | None = None) -> tuple[list[str], np.ndarray]:
    """The file names, and one row of whole numbers for each, of a label file. Empty rows are left out.

    Args:
        path: rows of a file name and its numbers. A .csv has a header.
        header: the columns. In a .txt, line 1 is the number of rows and line 2 names the columns. None:
            one column, and a .txt has no such lines.

    Returns:
        N names, int32 (N, columns).

    Raises:
        ValueError: one line that says which line of the file is wrong.
    """
    is_csv = path.suffix == ".csv"
    rows = csv_rows(path) if is_csv else _txt_rows(path)
    width = 1 if header is None else len(header)
    count: list[str] = []
    if header is not None and not is_csv:
        _, count = next(rows, (1, []))
    if header is not None or is_csv:
        line, columns = next(rows, (2, []))
        columns = columns[1:] if is_csv else columns
        if len(columns) != width:
            raise ValueError(f"{path} line {line} names {len(columns)} columns; CelebA has {width}")
        for number, (name, expected) in enumerate(zip(columns, header or columns, strict=True), 1):
            if name != expected:
                where = f"{path} line {line}: column {number}"
                raise ValueError(f"{where} is {name}; CelebA has {expected}")
    names, numbers = [], array("i")
    for line, (name, *values) in rows:
        if len(values) != width:
            raise ValueError(f"{path} line {line} has {len(values)} values; expected {width}")
        if "/" in name or "\\" in name:
            raise ValueError(f"{path} line {line}: {name} is a path; give a bare file name")
        try:
            numbers.extend(map(int, values))
        except (ValueError, OverflowError):
            raise ValueError(f"{path} line {line}: {' '.join(values)[:60]!r} is not numeric") from None
        names.append(name)
    if count and count != [str(len(names))]:
        raise ValueError(
            f"{path} line 1 says {' '.join(count)[:40]!r} but {len(names)} rows follow; "
            f"correct the count or fetch the file again"
        )
    return names, np.array(numbers, dtype=np.int32).reshape(-1, width)


def _txt_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of each line that has any."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield number, line.split()


def match_rows(
    path: Path, names: list[str], folder: Path, pictures: list[Picture]
) -> tuple[list[Picture], list[int]]:
    """The pictures that a label file's rows name, in the rows' order, and the numbers of those rows.

    Names may differ in their suffix: CelebA's lists say .jpg of its .png files, too.

    Raises:
        ValueError: where a picture has no row, no row has a picture, or one is named twice.
    """
    by_name = {picture.name: picture for picture in pictures}
    wanted = names
    if not any(name in by_name for name in names):
        by_name = {_stem(picture.name): picture for picture in pictures}
        wanted = [_stem(name) for name in names]
    rows = [row for row, name in enumerate(wanted) if name in by_name]
    spare = sorted(by_name.keys() - set(wanted))
    if spare:
        lacking = sorted(set(wanted) - by_name.keys())
        raise ValueError(
            f"{path} has {len(names)} rows and {folder.name}/ {len(pictures)} pictures: "
            f"{len(lacking)} rows without a picture{_first(lacking)}, {len(spare)} pictures without "
            f"a row{_first(spare)}; remove or restore them"
        )
    if len({*wanted}) < len(wanted):
        twice = names[wanted.index(Counter(wanted).most_common(1)[0][0])]
        raise ValueError(f"{path} lists {twice} twice; every picture has one row")
    if len(by_name) < len(pictures):
        raise ValueError(f"{folder} has two pictures of one name, with other suffixes; keep one of them")
    return [by_name[wanted[row]] for row in rows], rows


def _stem(name: str) -> str:
    """A file name without its suffix."""
    return os.path.splitext(name)[0]


def _first(names: list[str]) -> str:
    """The first names in brackets, for a message. Empty for no names."""
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


class CelebADataset(CachedDataset):
    """One split of a CelebA-layout folder as uint8 pictures and +-1 attributes, decoded only once.

    Args:
        root: the folder that holds img_align_celeba/ and the label files, or its parent, as torchvision
            leaves it.
        split: train, val or test.
        data_fraction: in (0, 1], a fixed random part, inside every larger one. Only its pictures are
            decoded and cached, so that a trial on 1 % costs 1 %.
        image_size, crop, cache_dir, num_workers: see `CachedDataset`.

    Raises:
        FileNotFoundError, ValueError: one line, for a layout or argument that is wrong.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str = "train",
        image_size: int = 64,
        crop: int = 178,
        data_fraction: float = 1.0,
        cache_dir: str | os.PathLike = "data/cache",
        num_workers: int | None = None,
    ) -> None:
        check_geometry(image_size, crop)
        source = read_celeba(root).part(split)
        super().__init__(source, image_size, crop, data_fraction, cache_dir, num_workers)


def download_celeba(root: str | os.PathLike) -> Path:
    """Fetch CelebA (for non-commercial research only) through torchvision. Returns its folder, checked.

    Raises:
        ValueError: one line that says how to get the files by hand, when anything fails.
    """
    folder = Path(root).expanduser() / "celeba"
    try:
        return read_celeba(root).root  # it is there already
    except (ValueError, FileNotFoundError):
        pass
    try:
        from torchvision.datasets import CelebA  # here, since it takes as long to import as torch

        CelebA(str(folder.parent), download=True)
        return read_celeba(root).root
    except Exception as error:  # quota, network, checksum, disk: the way out is the same
        reason = textwrap.shorten(str(error), 160) or type(error).__name__
        raise ValueError(
            f"could not download CelebA ({reason}); fetch {IMAGE_FOLDER}.zip, {ATTRIBUTE_FILES[0]} and "
            f"{PARTITION_FILES[0]} from {CELEBA_HOME}, put them in {folder} and unpack the zip there"
        ) from None
