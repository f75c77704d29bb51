"""Draw synthetic faces into a folder in CelebA's layout.

python -m synthetic_faces --out data/synthetic_faces
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

import flags
from config import SEED, Config, count, flag
from synthetic_faces.dataset import write_dataset


@dataclass(frozen=True)
class SyntheticFacesConfig(Config):
    """Flags of ``python -m synthetic_faces``."""

    out: str = flag("data/synthetic_faces", "folder to create")
    num_images: int = count(6000, "faces to draw", high=999_999)
    image_size: int = count(64, "side of the square images", low=16)
    seed: int = count(0, "another seed, other faces", **SEED)
    balanced: bool = flag(False, "every attribute about half the time, not as in CelebA")
    floor: float = flag(0.0, "raise the frequency of rare attributes to about this", low=0, high=0.5)
    num_workers: int | None = count(None, "processes; none given: one for each processor")


def main() -> None:
    write_dataset(**asdict(flags.parse(SyntheticFacesConfig, __doc__)))


if __name__ == "__main__":
    sys.argv[0] = "synthetic_faces"  # the name in messages, otherwise __main__.py
    flags.run(main)
