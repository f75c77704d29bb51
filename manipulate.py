"""Generate, interpolate and edit faces by named attributes with a trained checkpoint.

Writes labelled grids, single images, an interpolation strip and GIF, an edit row, and manifest.json
with everything needed to make them again. Attribute names and the model's shape come from the
checkpoint; --data_root serves to find a photograph where --source_image is not given. What a request
does not name is drawn as it goes with what is named in the training set.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import cli
from model_config import EDIT_METHODS, SAMPLERS, EditConfig, SamplingConfig

MODES = ("generate", "interpolate", "edit", "counterfactual", "all")
GUIDANCE = ("free", "classifier", "both")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", default="./checkpoints/best_model.pth")
    add("--mode", default="all", choices=MODES)
    add("--output_dir", default="./outputs")
    add("--data_root", help="folder of labelled images: its first test image is edited by default")
    add("--source_image", help="photograph to edit")
    add("--target_image", help="photograph to interpolate to, from --source_image")
    points = "x y of left eye, right eye, nose, left and right mouth corner of --source_image, in pixels"
    add("--landmarks", type=float, nargs=10, metavar="N", help=f"{points}: aligns it as CelebA's are")
    add("--paste_back", action="store_true", help="also write edits in the whole --source_image")
    add("--edit_method", default=EditConfig.method, choices=EDIT_METHODS, help="inversion, or other way")
    add("--attributes", nargs="+", default=[], metavar="NAME=VALUE", help="1 there, 0 not, 0.5 open")
    add("--open", action="store_true", help="leave what is not named to the network: often mush")
    add("--unconditional", action="store_true", help="new faces without any request")
    add("--from", dest="start", nargs="+", default=[], metavar="NAME=VALUE", help="interpolation start")
    add("--to", dest="end", nargs="+", default=[], metavar="NAME=VALUE", help="interpolation end")
    add("--num_samples", type=cli.positive_int, default=8, help="of each class, where there are classes")
    scales = f"1 no guidance; None: {SamplingConfig.cfg_scale:g}, "
    scales += f"{EditConfig.cfg_scale:g} for edits"
    add("--cfg_scale", type=cli.non_negative, help=scales)
    free = "classifier-free by --cfg_scale, by --classifier, or by both"
    add("--guidance", default="free", choices=GUIDANCE, help=free)
    add("--classifier", help="of train.py --stage classifier: guides, and reads what photographs show")
    add("--guidance_scale", type=cli.non_negative, default=3.0, help="of the classifier")
    add("--manipulation_strength", type=cli.fraction, default=0.8, help="0 the source, 1 the full edit")
    add("--interpolation_steps", type=cli.number(int, 2), default=10)
    steps = f"network evaluations; None: {SamplingConfig.num_inference_steps}, "
    steps += f"{EditConfig.num_inference_steps} for edits"
    add("--num_inference_steps", type=cli.positive_int, help=steps)
    add(
        "--sampler",
        default=SamplingConfig.sampler,
        choices=SAMPLERS,
        help="of new faces",
    )
    cli.add_sampling_flags(parser)
    cli.add_edit_flags(parser)
    add("--seed", type=cli.count, default=0)
    cli.add_device_flags(parser)
    args = parser.parse_args(argv)
    if bool(args.start) != bool(args.end):
        parser.error("--from and --to go together: name the attributes at both ends")
    if args.target_image and args.mode not in ("interpolate", "all"):
        parser.error(f"--target_image is for --mode interpolate, and this is --mode {args.mode}")
    if args.landmarks and not args.source_image:
        parser.error("--landmarks are those of --source_image: give it, too")
    if args.mode == "counterfactual" and not args.attributes:
        parser.error("--mode counterfactual needs --attributes: what is to flip, such as Smiling=0")
    if args.cfg_scale == 0:
        parser.error("--cfg_scale 0 ignores every request: use --unconditional; no guidance is 1")
    if args.unconditional:
        refuse_requests(parser, args)
        args.mode = "generate"
    if args.guidance in ("classifier", "both") or args.mode == "counterfactual":
        args.classifier = args.classifier or "./checkpoints/classifier_best.pth"
    return args


def refuse_requests(parser: cli.Parser, args: argparse.Namespace) -> None:
    """What --unconditional leaves no room for is an error of the parser."""
    if args.mode not in ("generate", "all"):
        parser.error(f"--unconditional draws new faces, and this is --mode {args.mode}")
    for flag, given in (("attributes", args.attributes), ("from", args.start), ("open", args.open)):
        if given:
            parser.error(f"--unconditional draws without any request: leave --{flag} out")
    if args.guidance != "free" or args.cfg_scale is not None:
        parser.error("--unconditional guides towards nothing: leave --guidance and --cfg_scale out")


def find_source(args: argparse.Namespace) -> Path | None:
    """The photograph to edit or to interpolate from: --source_image, or the first test image of
    --data_root; None where none is needed.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if one is needed and there is none.
    """
    if args.mode == "generate" or (args.mode == "interpolate" and not args.target_image):
        return None
    source = Path(args.source_image) if args.source_image else None
    if args.data_root and source is None:
        from labelled_images import first_image

        source = first_image(args.data_root, "test")
    if source is None and args.mode == "all" and not args.target_image:
        return None
    if source is None:
        raise ValueError(
            f"--mode {args.mode} needs a photograph: give --source_image, or a --data_root of files"
        )
    if not source.is_file():
        raise FileNotFoundError(f"no source image at {source}: check --source_image")
    return source


def manipulate(args: argparse.Namespace) -> None:
    """Run the modes asked for and write the manifest."""
    args.source_image = find_source(args)  # before torch takes its seconds

    from checkpoint import file_hash
    from manipulation import Manipulation, parse_request

    requests = [parse_request(items) for items in (args.attributes, args.start, args.end)]
    work = Manipulation(args)
    for request in requests:
        work.model.request_row(request)  # unknown names are refused before anything is drawn
    source = work.photograph(args.source_image, args.landmarks) if args.source_image else None
    target = work.photograph(args.target_image) if args.target_image else None
    with work.autocast:
        if args.mode in ("generate", "all"):
            work.generate()
        if args.mode in ("interpolate", "all"):
            work.interpolate()
            if source and target:
                work.interpolate_photographs(source, target)
        if args.mode == "counterfactual" and source and work.classifier:
            work.counterfactual(source, work.classifier)
        if args.mode in ("edit", "all") and source:
            work.edit(source)
    manifest = {
        "arguments": vars(args),
        "checkpoint": file_hash(args.checkpoint),
        "classifier": file_hash(args.classifier) if work.classifier else None,
        "sampling": asdict(work.sampling),
        "editing": asdict(work.editing),
        "precision": cli.choose_precision(args.mixed_precision, work.model.device.type),
        "model": work.model.config.to_dict(),
        "made": work.made,
    }
    path = work.out / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2, default=str) + "\n")
    for mode, made in work.made.items():
        print(f"{mode}: {made.get('grid') or made.get('strip') or made.get('row')}")
    if args.mode == "all" and not source:
        print("edit: skipped, as there is no --source_image")
    print(f"manifest: {path}")


if __name__ == "__main__":
    cli.run(lambda: manipulate(parse_args()))
