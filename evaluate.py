"""Measure a checkpoint: one command, one table, one JSON.

Samples are drawn under whole attribute rows of a held-out split, under three attributes of each, and
without any request, and compared with a reference split: Frechet and kernel distance, precision, recall,
density, coverage; how requests are met, and what nobody asked for; diversity; the nearest training image
of each sample; and the VAE. Features come from a classifier trained here with --train_classifier, and
from Inception where its weights are at hand.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import cli
import processes
from model_config import (
    EDIT_METHODS,
    FEWEST_SAMPLES,
    REQUESTS,
    SAMPLERS,
    EditConfig,
    ModelConfig,
    SamplingConfig,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", default="./checkpoints/best_model.pth")
    add("--data_root", required=True, help="folder of labelled images")
    add("--classifier", default="./checkpoints/evaluation_classifier.pth")
    add("--train_classifier", action="store_true", help="train the classifier and write it there")
    add("--classifier_epochs", type=cli.positive_int, default=12)
    add("--inception_weights", help="torch-fidelity's file, or 'download': its features, too")
    number = "for each setting and kind of request; None: 1000, or what the split has"
    add("--num_samples", type=cli.number(int, FEWEST_SAMPLES), help=number)
    add("--requests", choices=REQUESTS, nargs="+", default=REQUESTS, help="what is asked for")
    add("--open", action="store_true", help="leave what is not named to the network: often mush")
    scales = f"None: 1, 1.5, 2 and 3 as far as it was trained for; {EditConfig.cfg_scale:g} for edits"
    add("--cfg_scale", type=cli.non_negative, nargs="+", help=scales)
    add("--sampler", choices=SAMPLERS, nargs="+", default=[SamplingConfig.sampler])
    steps = f"None: {SamplingConfig.num_inference_steps}; {EditConfig.num_inference_steps} for edits"
    add("--num_inference_steps", type=cli.positive_int, nargs="+", help=steps)
    cli.add_sampling_flags(parser)
    add("--guide", help="of train.py --stage classifier: guides, and reads the sources of edits")
    add("--classifier_scale", type=cli.non_negative, nargs="+", default=[0.0], help="of the guide")
    splits = ("train", "val", "test")
    add("--attribute_split", default="val", choices=splits, help="whose attribute rows are asked for")
    add("--reference_split", default="test", choices=splits, help="whose images are compared with")
    add("--batch_size", type=cli.positive_int, default=50)
    add("--output_dir", default="./outputs/evaluation")
    add("--cache_dir", default="data/cache")
    add("--seed", type=cli.count, default=0)
    cli.add_device_flags(parser)
    edit = parser.add_argument_group("edits of held-out faces").add_argument
    edit("--edit", choices=EDIT_METHODS, nargs="+", default=[], help="judge these instead of new faces")
    edit("--edit_attributes", nargs="+", default=[], metavar="NAME", help="all where not given")
    edit("--edit_sources", type=cli.number(int, 2), default=32, help="for each attribute and direction")
    edit("--strengths", type=cli.fraction, nargs="+", default=[0.5, 1.0], help="the last is judged")
    cli.add_edit_flags(parser)
    args = parser.parse_args(argv)
    if args.edit and not args.cfg_scale:
        args.cfg_scale = [EditConfig.cfg_scale]
    steps = EditConfig.num_inference_steps if args.edit else SamplingConfig.num_inference_steps
    args.num_inference_steps = args.num_inference_steps or [steps]
    if args.edit and len(args.num_inference_steps) > 1:
        parser.error(f"--edit takes one number of steps, got {args.num_inference_steps}")
    if any(args.classifier_scale) and not args.guide:
        parser.error("--classifier_scale needs --guide, the classifier that guides")
    if args.attribute_split == args.reference_split:
        split = args.reference_split
        parser.error(f"--attribute_split and --reference_split are both {split}, and must differ")
    return args


def evaluate(args: argparse.Namespace) -> None:
    """Measure every setting and write the report."""
    from tqdm import tqdm

    from labelled_images import attribute_rows
    from sample_evaluation import Evaluation, make_classifier

    if args.train_classifier and processes.launched() > 1:
        raise ValueError("--train_classifier is for one process: train it first, then launch several")
    processes.join(cli.choose_device(args.device))
    if args.train_classifier and not Path(args.checkpoint).is_file():
        make_classifier(args, ModelConfig(attribute_rows(args.data_root)[1]))
        print(f"written: {args.classifier}; no checkpoint at {args.checkpoint} to measure")
        return
    from reports import evaluation_table, plot

    work = Evaluation(args)
    work.out.mkdir(parents=True, exist_ok=True)
    if args.edit:
        from edit_evaluation import EditEvaluation

        print(EditEvaluation(work).run())
        print(f"written: {work.out}/edits.json, edits.md and pictures")
        return
    real = work.real()  # before the long part: too few images are refused here
    report: dict[str, Any] = {"protocol": work.protocol, "real": real, **work.autoencoders()}
    report["settings"] = []
    wanted = [*product(work.settings, work.requests)]
    with tqdm(total=work.images_per_setting * len(wanted), desc="sampling", unit="image") as bar:
        for sampling, request in wanted:
            report["settings"].append(work.measure(sampling, request, bar))
            (work.out / "report.json").write_text(json.dumps(report, indent=1))
            (work.out / "report.md").write_text(evaluation_table(report))
    plot(report, work.out)
    print(evaluation_table(report))
    print(f"written: {work.out}/report.json, report.md and pictures")


if __name__ == "__main__":
    cli.run(lambda: evaluate(parse_args()))
    processes.leave()
