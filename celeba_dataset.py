"""CelebA for training and from Python: ``CelebADataset``, one picture, the download.

`image_data/celeba.py` reads its lists, and `image_data/datasets.py` recognises other folders, too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attributes import CELEBA_ATTRIBUTES, attr_dict, create_attribute_vector  # noqa: F401, known from here
from image_data.cached import ImageDataset
from image_data.celeba import ATTRIBUTE_FILES, CELEBA_HOME, IMAGE_FOLDER, PARTITION_FILES, read_celeba
from image_data.picture import check_geometry, decode_image, shortened


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


class CelebADataset(ImageDataset):
    """One split of a CelebA-layout folder as uint8 pictures and +-1 attributes, decoded only once.

    Args:
        root: the folder that holds img_align_celeba/ and the label files, or its parent, as torchvision
            leaves it.
        split, ...: as of `LabelledImages.open`.

    Raises:
        FileNotFoundError, ValueError: one line, for a layout or argument that is wrong.
    """

    def __init__(
        self, root: str | os.PathLike, split: str = "train", *args: Any, **options: Any
    ) -> None:
        data = read_celeba(root).open(split, *args, **options)
        rows = data.attributes.numpy()
        super().__init__(data.images, rows, data.attribute_names, data.filenames, data.flips)


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
        reason = shortened(error)
        raise ValueError(
            f"could not download CelebA ({reason}); fetch {IMAGE_FOLDER}.zip, {ATTRIBUTE_FILES[0]} and "
            f"{PARTITION_FILES[0]} from {CELEBA_HOME}, put them in {folder} and unpack the zip there"
        ) from None
