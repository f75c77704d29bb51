"""Draw figures that explain a dataset, a checkpoint or a run: python visualize.py WHAT.

WHAT is a figure of figures/figures.py, or all: as many as the flags given allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import flags
from config import (
    CACHE_HELP,
    DATASET_HELP,
    DATASETS,
    REQUEST,
    DeviceConfig,
    SamplingConfig,
    count,
    flag,
    nested,
    refuse_ignored_requests,
)

# Those of figures/figures.py.
FIGURES = (
    "attributes",
    "samples",
    "reconstructions",
    "latent-space",
    "denoising",
    "animation",
    "interpolation",
    "curves",
    "architecture",
)


@dataclass(frozen=True)
class VisualizeConfig(DeviceConfig):
    """Flags of visualize.py."""

    what: str = flag(
        "all", "the figure, or all that the flags allow", choices=(*FIGURES, "all"), positional=True
    )
    checkpoint: str | None = flag(None, "model of train.py")
    data_root: str | None = flag(None, "folder of labelled images")
    dataset: str | None = flag(None, DATASET_HELP, choices=DATASETS)
    log_dir: str | None = flag(
        None, "logs of train.py: of the last run in this folder, or of the run whose folder it is"
    )
    output_dir: str = flag("./outputs/figures", "folder to write to")
    attributes: tuple[str, ...] = flag(
        (), "what is varied, coloured by or asked for, each alone: NAME or NAME=VALUE", metavar=REQUEST
    )
    unconditional: bool = flag(False, "denoising and animation without any request")
    num_samples: int = count(8, "images in a row")
    num_points: int = count(1000, "points of the latent space", low=50)
    cache_dir: str = flag("data/cache", CACHE_HELP)
    seed: int = count(0, "another seed, other samples", low=0)
    sampling: SamplingConfig = nested(SamplingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unconditional and self.what not in ("denoising", "animation"):
            raise ValueError(f"--unconditional is for denoising and animation, and this is {self.what}")
        refuse_ignored_requests(self.sampling, self.unconditional, {"attributes": self.attributes})


def parse_args(argv: Sequence[str] | None = None) -> VisualizeConfig:
    return flags.parse(VisualizeConfig, __doc__, argv)


def visualize(config: VisualizeConfig) -> None:
    """Draw one figure, or all that the flags allow, and print its files.

    Raises:
        ValueError: if a flag is missing that the figure needs, or the checkpoint has no such figure.
    """
    from attributes import request_rows
    from figures.figures import FIGURES, Sources

    if config.what == "all":
        names = [name for name, figure in FIGURES.items() if not figure.lacks(config)]
        if not names:
            raise ValueError("all needs something to draw from: --checkpoint, --data_root or --log_dir")
    else:
        names = [config.what]
        missing = FIGURES[config.what].lacks(config)
        if missing:
            raise ValueError(f"{config.what} needs {' and '.join(f'--{flag}' for flag in missing)}")
    flags.check_writable(config.output_dir)
    sources = Sources(config)
    possible = [name for name in names if FIGURES[name].suits(sources)]
    if not possible:
        of_first_stage = [name for name, figure in FIGURES.items() if figure.of_first_stage]
        raise ValueError(
            f"{config.checkpoint} is a first stage, not a model: with --data_root, it has the figures "
            f"{' and '.join(of_first_stage)}"
        )
    if sources.requests and any("checkpoint" in FIGURES[name].needs for name in possible):
        request_rows(sources.opened.config.attribute_names, sources.requests)  # refuses unknown names
    for name in possible:
        for path in FIGURES[name].draw(sources):
            print(f"{name}: {path}")


if __name__ == "__main__":
    flags.run(lambda: visualize(parse_args()))
