"""Measure a checkpoint: evaluate.py samples, evaluate.py edits; first evaluate.py judge.

- ``judge`` trains the judge, a classifier that measures and never steers.
- ``samples``, also without a subcommand, draws new faces under whole attribute rows of a held-out split,
  under three attributes of each, and without any request. It compares them with a reference split: by
  Frechet and kernel distance, precision, recall, density and coverage; by how well requests are met, and
  how often what nobody asked for appears; by diversity, and by the nearest training image.
- ``edits`` edits held-out faces, and measures what came as requested, and what changed beside it.

``samples`` and ``edits`` write their figures as JSON and as a table, with pictures, to --output_dir;
``judge`` writes --judge.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import devices
import flags
from config import (
    CROP_HELP,
    CROPS,
    FEWEST_SAMPLES,
    NAME,
    REQUESTS,
    SAMPLERS,
    SEED,
    SPLITS,
    DataConfig,
    EditConfig,
    SamplingConfig,
    count,
    flag,
    nested,
    share,
    weight,
)

# -------------------------------------------------------------------- settings


@dataclass(frozen=True)
class EvaluateConfig(DataConfig):
    """Settings of every subcommand: the data, and the judge that measures."""

    data_root: str = flag("", "folder of labelled images", required=True)
    judge: str = flag("./checkpoints/judge.pth", "file of the classifier that measures")


@dataclass(frozen=True)
class JudgeConfig(EvaluateConfig):
    """Settings of ``evaluate.py judge``."""

    judge: str = flag("./checkpoints/judge.pth", "file to write the judge to")
    judge_epochs: int = count(12, "passes over the training images")
    image_size: int = count(64, "side of the square images, as of the model to measure", high=4096)
    crop: int = flag(178, CROP_HELP, choices=CROPS)
    seed: int = count(0, "another seed, another judge", **SEED)


@dataclass(frozen=True)
class MeasureConfig(EvaluateConfig):
    """Settings that samples and edits share."""

    checkpoint: str = flag("./checkpoints/best_model.pth", "model of train.py")
    guide: str | None = flag(None, "classifier of train.py --stage guide: steers, reads photographs")
    reference_split: str = flag("test", "images to compare with; faces to edit", choices=SPLITS)
    batch_size: int = count(50, "images drawn at once")
    output_dir: str = flag("./outputs/evaluation", "folder to write to")
    seed: int = count(0, "another seed, other samples", **SEED)

    @property
    def needs_guide(self) -> str:
        """The flag that needs a guide; "" for none."""
        return ""


@dataclass(frozen=True)
class SamplesConfig(MeasureConfig):
    """Settings of ``evaluate.py samples``. Where a flag takes several values, each is measured."""

    num_samples: int | None = count(
        None,
        "images for each setting and kind of request; none given: 1000, or what the split has",
        low=FEWEST_SAMPLES,
    )
    requests: tuple[str, ...] = flag(REQUESTS, "kinds of requests", choices=REQUESTS)
    attribute_split: str = flag("val", "attribute rows to draw under", choices=SPLITS)
    open: bool = flag(False, "leave what is not named to the network: often shapeless")
    cfg_scale: tuple[float, ...] | None = weight(
        None, "scales to compare; none given: 1, 1.5, 2 and 3 as far as it was trained for"
    )
    guide_scale: tuple[float, ...] = weight((0.0,), "weights of the guide's gradient to compare")
    sampler: tuple[str, ...] = flag(("dpm_solver",), "solvers to compare", choices=SAMPLERS)
    num_inference_steps: tuple[int, ...] | None = count(
        None, "numbers to compare; none given: 20, all T with ddpm"
    )
    inception_weights: str | None = flag(None, "torch-fidelity's file, or 'download': its features, too")
    sampling: SamplingConfig = nested(SamplingConfig, only=("spacing", "eta", "perturb", "tries"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attribute_split == self.reference_split:
            split = self.reference_split
            raise ValueError(f"--attribute_split and --reference_split are both {split}: they differ")

    @property
    def needs_guide(self) -> str:
        return "--guide_scale" if any(self.guide_scale) else ""


@dataclass(frozen=True)
class EditsConfig(MeasureConfig):
    """Settings of ``evaluate.py edits``."""

    edit_attributes: tuple[str, ...] = flag((), "what to edit; none given: all", metavar=NAME)
    edit_sources: int = count(32, "faces for each attribute and direction", low=2)
    edit_cfg_scale: tuple[float, ...] = weight((), "guidance scales of edits to compare")
    strengths: tuple[float, ...] = share((0.5, 1.0), "strengths of each edit; the tables show the last")
    second_judge: str | None = flag(
        None,
        "another classifier, or a probe: an attribute changed only if both see more than their noise",
    )
    identity: bool = flag(False, "also ask a recogniser of faces whether it is the same person")
    repeat: bool = flag(
        False,
        "also edit back, by another seed, and where the request is met already: takes 4 times as long",
    )
    smallest: bool = flag(False, "measure the smallest strength, too, with which the guide sees a flip")
    editing: EditConfig = nested(
        EditConfig,
        only=("num_inference_steps", "t_start", "guide_scale", "hold", "margin", "localise"),
    )

    @property
    def needs_guide(self) -> str:
        return "--smallest" if self.smallest else ""


COMMANDS = {"judge": JudgeConfig, "samples": SamplesConfig, "edits": EditsConfig}


def parse_args(argv: Sequence[str] | None = None) -> JudgeConfig | SamplesConfig | EditsConfig:
    """The settings of a subcommand. Without a subcommand, those of samples."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv.pop(0) if argv and not argv[0].startswith("-") else "samples"
    if command not in COMMANDS:
        parser = flags.Parser(prog="evaluate.py")
        parser.error(f"no subcommand {command!r}: use one of {', '.join(COMMANDS)}")
    return flags.parse(COMMANDS[command], __doc__, argv)


# -------------------------------------------------------------------- the script


def evaluate(config: JudgeConfig | SamplesConfig | EditsConfig) -> None:
    """Train the judge, or measure samples or edits; write the judge or the report."""
    from accelerate import PartialState

    from evaluation.base import make_judge, say
    from evaluation.edits import EditEvaluation
    from evaluation.samples import SampleEvaluation
    from image_data.datasets import find_dataset
    from synthetic_faces.dataset import counterfactuals

    if isinstance(config, JudgeConfig):
        flags.check_writable(Path(config.judge).parent, "--judge")
    else:
        flags.check_writable(config.output_dir)
    device = devices.choose_device(config.device)
    processes = PartialState(cpu=device == "cpu")  # gives each process a GPU of its own
    if processes.num_processes > 1:
        if isinstance(config, JudgeConfig):
            raise ValueError("evaluate.py judge is for one process: train the judge first")
        say(f"{processes.num_processes} processes")
    data = find_dataset(config.data_root, config.dataset, config.unspecified)
    say(str(data))
    if isinstance(config, JudgeConfig):
        accuracy = make_judge(config, data, device)
        say(f"written: {config.judge}, balanced accuracy {accuracy:.4f} on the test split")
    elif isinstance(config, SamplesConfig):
        say(SampleEvaluation(config, data, device).run())
        say(f"written: {config.output_dir}/report.json, report.md and pictures")
    else:
        # Passed in: evaluation/ must not import synthetic_faces/, which imports it.
        say(EditEvaluation(config, data, device, counterfactuals).run())
        say(f"written: {config.output_dir}/edits.json, edits.md and pictures")
    processes.wait_for_everyone()
    processes.destroy_process_group()


if __name__ == "__main__":
    flags.run(lambda: evaluate(parse_args()))
