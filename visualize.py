"""Draw figures that explain a dataset, a checkpoint or a run: python visualize.py WHAT.

WHAT is a figure of figures/figures.py, or all: as many as the flags given allow.
"""

from __future__ import annotations

from collections.abc import Sequence

import flags
from config import VisualizeConfig


def parse_args(argv: Sequence[str] | None = None) -> VisualizeConfig:
    return flags.parse(VisualizeConfig, __doc__, argv)


def visualize(config: VisualizeConfig) -> None:
    """Draw the figure asked for, or all that the flags allow, and print its files.

    Raises:
        ValueError: if a flag is missing that the figure needs, or the checkpoint has no such figure.
    """
    from attributes import request_rows
    from figures.figures import FIGURES, Sources

    if config.what == "all":
        wanted = [name for name, figure in FIGURES.items() if not figure.lacks(config)]
        if not wanted:
            raise ValueError("all needs something to draw from: --checkpoint, --data_root or --log_dir")
    else:
        wanted = [config.what]
        lacking = FIGURES[config.what].lacks(config)
        if lacking:
            raise ValueError(f"{config.what} needs {' and '.join(f'--{flag}' for flag in lacking)}")
    flags.check_writable(config.output_dir)
    sources = Sources(config)
    suited = [name for name in wanted if FIGURES[name].suits(sources)]
    if not suited:
        alone = [name for name, figure in FIGURES.items() if figure.of_first_stage]
        raise ValueError(
            f"{config.checkpoint} is a first stage, not a model: with --data_root, it has the figures "
            f"{' and '.join(alone)}"
        )
    if sources.requests and any("checkpoint" in FIGURES[name].needs for name in suited):
        request_rows(sources.opened.config.attribute_names, sources.requests)  # refuses unknown names
    for name in suited:
        for path in FIGURES[name].draw(sources):
            print(f"{name}: {path}")


if __name__ == "__main__":
    flags.run(lambda: visualize(parse_args()))
