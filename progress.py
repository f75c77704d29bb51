"""The progress bar of every long computation."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """A tqdm bar. In a log, which is no terminal, it writes a line about every ten seconds."""
    return tqdm(*args, mininterval=0.1 if sys.stderr.isatty() else 10, **options)
