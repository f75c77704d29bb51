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

from pathlib import Path

import devices
import flags
from config import EvaluateConfig, ModelConfig


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
