"""Whether two faces are of one person, by a recogniser that knows nothing of attributes."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from image_data.photograph import landmarks_in_square

# Below this distance two faces count as one person. It tells best apart 120 pairs of CelebA's faces that
# are and 120 that are not, at 64 and at 128 pixels: docs/log.md, "Who is who".
SAME_PERSON = 0.68
SIDE = 300  # to which squares are enlarged: the recogniser cuts 150 pixels out of it
INSTALL = "pip install dlib-bin face_recognition_models"


class Recogniser:
    """dlib's ResNet (King 2009; 99.4 % on LFW), for faces that lie in their square as CelebA's do.

    Args:
        crop: of the squares, in CelebA's frame.

    Raises:
        ValueError: where the library or its weights are not installed.
    """

    def __init__(self, crop: int):
        weights = find_spec("face_recognition_models")
        if weights is None or weights.origin is None or find_spec("dlib") is None:
            raise ValueError(f"--identity needs a recogniser of faces: {INSTALL}")
        dlib = import_module("dlib")
        models = Path(weights.origin).parent / "models"
        self.find_landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
        self.network = dlib.face_recognition_model_v1(
            str(models / "dlib_face_recognition_resnet_model_v1.dat")
        )
        left, right = landmarks_in_square(crop, SIDE)[:2]
        (x, y), width = (left + right) / 2, right[0] - left[0]
        edges = (x - 1.25 * width, y - 0.85 * width, x + 1.25 * width, y + 1.65 * width)
        self.face = dlib.rectangle(*map(round, edges))

    def describe(self, images: Tensor) -> Tensor:
        """Squares uint8 (N, S, S, 3) -> (N, 128), less than SAME_PERSON apart for one person."""
        large = F.interpolate(images.cpu().movedim(3, 1).float(), (SIDE, SIDE), mode="bicubic")
        descriptions = []
        for image in large.round().clamp(0, 255).byte().movedim(1, 3).numpy():
            image = np.ascontiguousarray(image)
            landmarks = self.find_landmarks(image, self.face)
            descriptions.append(np.array(self.network.compute_face_descriptor(image, landmarks)))
        return torch.from_numpy(np.stack(descriptions)).float()
