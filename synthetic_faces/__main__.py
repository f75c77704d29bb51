"""Draw synthetic faces into a folder in CelebA's layout.

python -m synthetic_faces --out data/synthetic_faces
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import flags
from config import SyntheticFacesConfig
from synthetic_faces.dataset import write_dataset


def main() -> None:
    write_dataset(**asdict(flags.parse(SyntheticFacesConfig, __doc__)))


if __name__ == "__main__":
    sys.argv[0] = "synthetic_faces"  # the name in messages, otherwise __main__.py
    flags.run(main)
