"""Draw figures that explain a dataset, a checkpoint or a run: python visualize.py WHAT.

WHAT is a figure of figures/figures.py, or all: as many as the flags given allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import flags
from config import (
    REQUEST,
    SEED,
    DataConfig,
    SamplingConfig,
    count,
    flag,
    nested,
    refuse_ignored_requests,
)

NEEDED_FLAGS = {  # of each figure in figures/figures.py
    "attributes": ("data_root",),
    "samples": ("checkpoint", "data_root"),
    "reconstructions": ("checkpoint", "data_root"),
    "latent-space": ("checkpoint", "data_root"),
    "denoising": ("checkpoint",),
    "animation": ("checkpoint",),
    "interpolation": ("checkpoint",),
    "curves": ("log_dir",),
    "architecture": ("checkpoint",),
}
OF_FIRST_STAGE = ("reconstructions", "latent-space")  # for which a first stage will do as a checkpoint


@dataclass(frozen=True)
class VisualizeConfig(DataConfig):
    """Flags of visualize.py."""

    what: str = flag(
        "all", "the figure, or all that the flags allow", choices=(*NEEDED_FLAGS, "all"), positional=True
    )
    checkpoint: str | None = flag(None, "model of train.py")
    log_dir: str | None = flag(
        None, "logs of train.py: of the last run in this folder, or of the run whose folder it is"
    )
    output_dir: str = flag("./outputs/figures", "folder to write to")
    attributes: tuple[str, ...] = flag(
        (), "what is varied, coloured by or asked for, each alone: NAME or NAME=VALUE", metavar=REQUEST
    )
    unconditional: bool = flag(False, "denoising and animation without any request")
    num_samples: int = count(8, "images in a row")
    seed: int = count(0, "another seed, other samples", **SEED)
    sampling: SamplingConfig = nested(SamplingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unconditional and self.what not in ("denoising", "animation"):
            raise ValueError(f"--unconditional is for denoising and animation, and this is {self.what}")
        refuse_ignored_requests(self.sampling, self.unconditional, {"attributes": self.attributes})


def parse_args(argv: Sequence[str] | None = None) -> VisualizeConfig:
    return flags.parse(VisualizeConfig, __doc__, argv)


def missing_flags(config: VisualizeConfig, name: str) -> list[str]:
    """The flags that a figure needs and that are not given."""
    return [f"--{flag}" for flag in NEEDED_FLAGS[name] if getattr(config, flag) is None]


def visualize(config: VisualizeConfig) -> None:
    """Draw one figure, or all that the flags allow, and print its files.

    Raises:
        ValueError: if a flag is missing that the figure needs, or the checkpoint has no such figure.
    """
    from attributes import request_rows
    from figures import figures

    names = [config.what]
    if config.what == "all":
        names = [name for name in NEEDED_FLAGS if not missing_flags(config, name)]
        if not names:
            raise ValueError("all needs something to draw from: --checkpoint, --data_root or --log_dir")
    elif missing_flags(config, config.what):
        raise ValueError(f"{config.what} needs {' and '.join(missing_flags(config, config.what))}")
    flags.check_writable(config.output_dir)
    sources = figures.Sources(config)
    if any("checkpoint" in NEEDED_FLAGS[name] for name in names):
        if isinstance(sources.opened, figures.FirstStageAlone):
            names = [n for n in names if n in OF_FIRST_STAGE or "checkpoint" not in NEEDED_FLAGS[n]]
            if not names:
                raise ValueError(
                    f"{config.checkpoint} is a first stage, not a model: with --data_root, it has the "
                    f"figures {' and '.join(OF_FIRST_STAGE)}"
                )
        if sources.requests:  # refuses unknown names before anything is drawn
            request_rows(sources.opened.config.attribute_names, sources.requests)
    for name in names:
        for path in figures.FIGURES[name](sources):
            print(f"{name}: {path}")


if __name__ == "__main__":
    flags.run(lambda: visualize(parse_args()))
