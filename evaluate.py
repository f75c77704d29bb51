"""Measure a checkpoint: one command, one table, one JSON.

Samples are drawn under whole attribute rows of a held-out split, under three attributes of each, and
without any request. They are compared with a reference split. The report has

- Frechet and kernel distance, precision, recall, density and coverage, in features of the judge, and of
  Inception where its weights are given;
- how well requests are met, and how often what nobody asked for appears;
- diversity, the nearest training image of each sample, and how well the autoencoders keep an image.

The judge is a classifier that --train_judge makes. With --edit it judges edits of held-out faces.
With --counterfactual edits explain the guide, measured as in the papers on explanations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import devices
import flags
from config import (
    CACHE_HELP,
    DATASET_HELP,
    DATASETS,
    DEFAULT_MODEL,
    FEWEST_SAMPLES,
    NAME,
    REQUESTS,
    SAMPLERS,
    SPLITS,
    EditConfig,
    ModelConfig,
    SamplingConfig,
    count,
    flag,
    nested,
    share,
    weight,
)
from devices import DeviceConfig


@dataclass(frozen=True)
class EvaluateConfig(DeviceConfig):
    """Flags of evaluate.py."""

    checkpoint: str = flag("./checkpoints/best_model.pth", "model of train.py")
    data_root: str = flag("", "folder of labelled images", required=True)
    dataset: str | None = flag(None, DATASET_HELP, choices=DATASETS)
    judge: str = flag("./checkpoints/judge.pth", "the classifier that measures")
    train_judge: bool = flag(False, "train the judge and write it there")
    judge_epochs: int = count(12, "passes over the training images")
    inception_weights: str | None = flag(None, "torch-fidelity's file, or 'download': its features, too")
    num_samples: int | None = count(
        None,
        "images for each setting and kind of request; none given: 1000, or what the split has",
        low=FEWEST_SAMPLES,
    )
    requests: tuple[str, ...] = flag(REQUESTS, "what is asked for", choices=REQUESTS)
    open: bool = flag(False, "leave what is not named to the network: often shapeless")
    cfg_scale: tuple[float, ...] | None = weight(
        None, "scales to compare; none given: 1, 1.5, 2 and 3 as far as it was trained for"
    )
    sampler: tuple[str, ...] = flag(("dpm_solver",), "solvers to compare", choices=SAMPLERS)
    num_inference_steps: tuple[int, ...] | None = count(
        None, "numbers to compare; none given: 20, all T with ddpm; 25 for edits"
    )
    guide: str | None = flag(
        None, "classifier of train.py --stage guide: it steers, reads sources of edits, is explained"
    )
    guide_scale: tuple[float, ...] = weight((0.0,), "weights of the guide's gradient to compare")
    attribute_split: str = flag(
        "val", "whose attribute rows are asked for; whose photographs are explained", choices=SPLITS
    )
    reference_split: str = flag("test", "whose images are compared with", choices=SPLITS)
    batch_size: int = count(50, "images drawn at once")
    output_dir: str = flag("./outputs/evaluation", "folder to write to")
    cache_dir: str = flag("data/cache", CACHE_HELP)
    seed: int = count(0, "another seed, other samples", low=0)
    edit: bool = flag(False, "judge edits instead of new faces")
    edit_attributes: tuple[str, ...] = flag(
        (), "what to edit; none given: every attribute", metavar=NAME
    )
    edit_cfg_scale: tuple[float, ...] = weight((), "strengths of guidance of edits to compare")
    edit_sources: int = count(32, "faces for each attribute and direction", low=2)
    strengths: tuple[float, ...] = share((0.5, 1.0), "strengths of each edit; the last is judged")
    counterfactual: tuple[str, ...] = flag(
        (), "edit each photograph against what --guide reads, as papers on explanations do", metavar=NAME
    )
    face_network: str | None = flag(
        None,
        "TorchScript file, RGB (B, 3, S, S) in [-1, 1] -> embeddings (B, D): its features, and FVA, FS",
    )
    sampling: SamplingConfig = nested(SamplingConfig, only=("spacing", "eta"))
    editing: EditConfig = nested(
        EditConfig, only=("t_start", "guide_scale", "hold", "margin", "localise")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        edits = "--counterfactual" if self.counterfactual else "--edit" if self.edit else None
        if edits and len(self.num_inference_steps or ()) > 1:
            raise ValueError(f"{edits} takes one number of steps, got {self.num_inference_steps}")
        if edits and self.cfg_scale:
            raise ValueError(f"--cfg_scale is of new faces: with {edits} use --edit_cfg_scale")
        if self.counterfactual and not self.guide:
            raise ValueError(
                "--counterfactual needs --guide, the classifier that is explained, such as "
                f"{DEFAULT_MODEL}_guide"
            )
        if any(self.guide_scale) and not self.guide:
            raise ValueError("--guide_scale needs --guide, the classifier that steers")
        if edits and any(self.guide_scale):
            raise ValueError(f"--guide_scale is of new faces: with {edits} use --edit_guide_scale")
        if self.attribute_split == self.reference_split:
            split = self.reference_split
            raise ValueError(f"--attribute_split and --reference_split are both {split}: they differ")


def parse_args(argv: list[str] | None = None) -> EvaluateConfig:
    return flags.parse(EvaluateConfig, __doc__, argv)


def evaluate(config: EvaluateConfig) -> None:
    """Measure every setting, every way of editing, or the counterfactuals; write the report."""
    from accelerate import PartialState

    from classifiers.guide import load_guide
    from classifiers.judge import load_judge
    from diffusion_model import load_model
    from evaluation.counterfactuals import CounterfactualEvaluation, check_explained
    from evaluation.edits import EditEvaluation
    from evaluation.reading import say
    from evaluation.samples import SampleEvaluation, make_judge, sampling_settings
    from image_data.datasets import find_dataset

    flags.check_writable(config.output_dir)
    if config.train_judge:
        flags.check_writable(Path(config.judge).parent, "--judge")
    device = devices.choose_device(config.device)
    processes = PartialState(cpu=device == "cpu")  # gives each process a GPU of its own
    if processes.num_processes > 1:
        if config.train_judge:
            raise ValueError("--train_judge is for one process: train it first, then launch several")
        say(f"{processes.num_processes} processes")
    found = find_dataset(config.data_root, config.dataset)
    say(str(found))
    if config.train_judge and not Path(config.checkpoint).is_file():
        make_judge(config, found, ModelConfig(found.names), device)
        print(f"written: {config.judge}; no checkpoint at {config.checkpoint} to measure")
        return
    model = load_model(config.checkpoint, device)
    guide = load_guide(config.guide, device) if config.guide else None
    if guide is not None:
        model.check_guide(guide)
        check_explained(config, guide)
    edits = config.edit or config.counterfactual
    settings = [] if edits else sampling_settings(config, model)
    if config.train_judge:
        make_judge(config, found, model.config, device)
    judge, facts = load_judge(config.judge, model.config.attribute_names, model.config.crop, device)
    accuracy = f"balanced accuracy {facts['test_balanced_accuracy']:.4f} on the test split"
    say(f"judge {facts['hash']}: {accuracy}")
    if facts["hash"] in model.config.first_stage_judge:
        say(
            "The first stage was trained to look right to this judge, so distances in its features are "
            "too small. Measure with another: --train_judge --seed 1"
        )
    work = SampleEvaluation(config, found, model, guide, judge, facts)
    if config.counterfactual and guide is not None:
        say(CounterfactualEvaluation(work, guide).run())
        say(f"written: {config.output_dir}/counterfactuals.json, counterfactuals.md and pictures")
    elif config.edit:
        say(EditEvaluation(work).run())
        say(f"written: {config.output_dir}/edits.json, edits.md and pictures")
    else:
        say(work.run(settings))
        say(f"written: {config.output_dir}/report.json, report.md and pictures")
    processes.wait_for_everyone()
    processes.destroy_process_group()


if __name__ == "__main__":
    flags.run(lambda: evaluate(parse_args()))
