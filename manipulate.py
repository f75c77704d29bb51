"""Generate, interpolate and edit faces by named attributes with a trained checkpoint.

Writes labelled grids, single images, an interpolation strip and GIF, an edit row, and manifest.json
with everything needed to make them again. Attribute names and the model's shape come from the
checkpoint; --data_root only serves to find a photograph where --source_image is not given.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

import cli
from model_config import SAMPLERS, SamplingConfig, configure

# What is shown where no attributes are named, as far as the model knows them.
SHOWN_REQUESTS = (
    {"Male": 0, "Smiling": 1, "Young": 1, "Blond_Hair": 1},
    {"Male": 1, "Smiling": 0, "Black_Hair": 1, "No_Beard": 1},
    {"Male": 0, "Eyeglasses": 1, "Brown_Hair": 1, "Smiling": 1},
    {"Male": 1, "Goatee": 1, "No_Beard": 0, "Smiling": 1},
    {"Male": 0, "Wearing_Hat": 1, "Smiling": 1},
    {"Male": 1, "Young": 0, "Gray_Hair": 1, "Eyeglasses": 1},
    {"Male": 0, "Bangs": 1, "Black_Hair": 1, "Wearing_Lipstick": 1},
    {"Male": 1, "Bald": 1, "Young": 0, "Smiling": 1},
)
SHOWN_EDITS = ("Smiling", "Eyeglasses", "Male", "Young", "Blond_Hair", "Bangs", "Wearing_Hat")
EDIT_STEPS = 50  # inversion needs more steps than sampling
SHOWN_INTERPOLATION = ({"Male": 1, "Smiling": 0}, {"Male": 0, "Smiling": 1})


def parse_request(items: list[str]) -> dict[str, float]:
    """['Smiling=1', 'Male=0'] -> {'Smiling': 1.0, 'Male': 0.0}.

    Raises:
        ValueError: for an item that is not NAME=NUMBER, or a name given twice.
    """
    request: dict[str, float] = {}
    for item in items:
        name, _, text = item.partition("=")
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"expected NAME=VALUE such as Smiling=1, got {item!r}") from None
        if name in request:
            raise ValueError(f"{name} is given twice: {request[name]:g} and {value:g}")
        request[name] = value
    return request


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", default="./checkpoints/best_model.pth")
    add("--mode", default="all", choices=("generate", "interpolate", "edit", "all"))
    add("--output_dir", default="./outputs")
    add("--data_root", help="folder in CelebA's layout: its first test image is edited by default")
    add("--source_image", help="photograph to edit")
    add(
        "--complete",
        action="store_true",
        help="draw the attributes a request leaves open from the test rows of --data_root that agree",
    )
    add("--attributes", nargs="+", default=[], metavar="NAME=VALUE", help="1 there, 0 not, 0.5 open")
    add("--from", dest="start", nargs="+", default=[], metavar="NAME=VALUE", help="interpolation start")
    add("--to", dest="end", nargs="+", default=[], metavar="NAME=VALUE", help="interpolation end")
    add("--num_samples", type=cli.positive_int, default=8)
    add("--cfg_scale", type=cli.non_negative, default=2.0, help="0 unconditional, 1 no guidance")
    add("--manipulation_strength", type=cli.fraction, default=0.8, help="0 the source, 1 the full edit")
    add("--interpolation_steps", type=cli.number(int, 2), default=10)
    steps = f"network evaluations; None: {SamplingConfig.num_inference_steps}, {EDIT_STEPS} for edits"
    add("--num_inference_steps", type=cli.positive_int, help=steps)
    add(
        "--sampler",
        default=SamplingConfig.sampler,
        choices=SAMPLERS,
        help="of new faces; edits use DDIM",
    )
    cli.add_sampling_flags(parser)
    add("--seed", type=cli.count, default=0)
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--mixed_precision", default="auto", choices=("auto", "no", "bf16", "fp16"))
    args = parser.parse_args(argv)
    if args.complete and not args.data_root:
        parser.error("--complete takes its rows from --data_root: give the folder")
    if bool(args.start) != bool(args.end):
        parser.error("--from and --to go together: name the attributes at both ends")
    return args


def caption(request: dict[str, float]) -> str:
    """'Smiling, not Male, Young 0.5': what was asked, as written on a picture."""
    words = {1.0: "{}", 0.0: "not {}"}
    parts = [words.get(value, "{} {:g}").format(name, value) for name, value in request.items()]
    return ", ".join(parts) or "anything"


class Manipulation:
    """A model, where to write, and what was written."""

    def __init__(self, args: argparse.Namespace):
        from checkpoint import load_model

        device = cli.choose_device(args.device)
        self.autocast = cli.autocast(args.mixed_precision, device)
        steps = args.num_inference_steps or SamplingConfig.num_inference_steps
        self.sampling = configure(SamplingConfig, args, num_inference_steps=steps)
        self.args, self.out = args, Path(args.output_dir)
        self.model = load_model(args.checkpoint, device)
        self.names = {name: i for i, name in enumerate(self.model.config.attribute_names)}
        self.made: dict[str, dict] = {}

    def vector(self, request: dict[str, float]):
        """The attribute row (1, A) of a request."""
        from celeba_dataset import create_attribute_vector

        return create_attribute_vector(self.names, **request).unsqueeze(0)

    def rows(self, requests: list[dict[str, float]]):
        """The attribute rows (N, A) of requests to generate, completed if asked for."""
        import torch

        rows = torch.cat([self.vector(request) for request in requests])
        if self.args.complete:
            from celeba_dataset import attribute_rows, complete_rows

            rows = complete_rows(rows, attribute_rows(self.args.data_root), self.generator())
        return rows

    def known(self, request: dict[str, float]) -> dict[str, float]:
        """The part of a built-in request that this model has attributes for."""
        return {name: value for name, value in request.items() if name in self.names}

    def generator(self):
        import torch

        return torch.Generator().manual_seed(self.args.seed)

    def save_each(self, images, folder: str) -> list[Path]:
        """Every image (N, H, W, 3) in a file of its own."""
        from pictures import save_image

        return [save_image(image, self.out / folder / f"{i:03d}.png") for i, image in enumerate(images)]

    def generate(self) -> None:
        """A labelled grid, and every image on its own."""
        from evaluation import draw
        from pictures import save_grid

        args = self.args
        if args.attributes:
            requests = [parse_request(args.attributes)] * args.num_samples
        else:
            shown = [self.known(request) for request in SHOWN_REQUESTS]
            requests = [shown[i % len(shown)] for i in range(args.num_samples)]
        rows = self.rows(requests)
        images = draw(self.model, rows, self.sampling, nullcontext(), args.seed).numpy()
        single = self.save_each(images, "samples")
        title = f"generated, cfg_scale {args.cfg_scale:g}, seed {args.seed}"
        grid = save_grid(self.out / "samples.png", images, [*map(caption, requests)], 8, title=title)
        asked = {"attributes": requests, "rows": rows.tolist()}
        self.made["generate"] = {"grid": grid, "images": single, **asked}

    def interpolate(self) -> None:
        """A labelled strip and a GIF between two requests, from one noise."""
        from pictures import save_gif, save_grid

        args = self.args
        if args.start:
            start, end = parse_request(args.start), parse_request(args.end)
        else:
            start, end = map(self.known, SHOWN_INTERPOLATION)
        whole, changed = self.rows([start]), self.vector(end)
        if self.args.complete:  # both ends of one row
            changed = changed.where(changed != 0, whole)
        images = self.model.interpolate_between_attributes(
            whole,
            changed,
            args.interpolation_steps,
            sampling=self.sampling,
            generator=self.generator(),
            progress=True,
        )
        images = images.cpu().numpy()
        labels = [f"{i / (len(images) - 1):.2f}" for i in range(len(images))]
        title = f"from {caption(start)} to {caption(end)}"
        strip = save_grid(self.out / "interpolation.png", images, labels, len(images), title=title)
        gif = save_gif(self.out / "interpolation.gif", images)
        asked = {"from": start, "to": end, "rows": [whole.tolist(), changed.tolist()]}
        self.made["interpolate"] = {"strip": strip, "gif": gif, **asked}

    def edit(self, source: Path, image) -> None:
        """A row: the source, its reconstruction, and one edit per attribute, or all named at once."""
        import torch

        from pictures import save_grid

        args = self.args
        has = self.model.predict_attributes(image)
        if args.attributes:
            request = parse_request(args.attributes)
            edits = [{name: value} for name, value in request.items()]
            edits += [request] if len(request) > 1 else []
        else:  # turn every shown attribute into what the source is not
            shown = [name for name in SHOWN_EDITS if name in self.names]
            edits = [{name: float(has[0, self.names[name]] < 0)} for name in shown]
        reconstruction, edited = self.model.edit_strip(
            image,
            torch.cat([self.vector(edit) for edit in edits]),
            [0.0, args.manipulation_strength],
            args.num_inference_steps or EDIT_STEPS,
            args.cfg_scale,
            source_attributes=has,
            progress=True,
        )
        images = torch.cat([image, reconstruction[:1].cpu(), edited.cpu()]).numpy()
        labels = ["source", "reconstruction", *map(caption, edits)]
        title = f"edited, strength {args.manipulation_strength:g}, cfg_scale {args.cfg_scale:g}"
        row = save_grid(self.out / "edit.png", images, labels, len(images), title=title)
        single = self.save_each(images[2:], "edits")
        self.made["edit"] = {"row": row, "images": single, "attributes": edits, "source": source}


def find_source(args: argparse.Namespace) -> Path | None:
    """The photograph to edit: --source_image, or the first test image of --data_root.

    Raises:
        FileNotFoundError: if it is not there.
    """
    if args.source_image:
        source = Path(args.source_image)
    elif args.data_root:
        from celeba_dataset import first_image

        source = first_image(args.data_root, "test")
    else:
        return None
    if not source.is_file():
        raise FileNotFoundError(f"no source image at {source}: check --source_image")
    return source


def manipulate(args: argparse.Namespace) -> None:
    """Run the modes asked for and write the manifest."""
    from checkpoint import file_hash

    source = find_source(args) if args.mode in ("edit", "all") else None
    if args.mode == "edit" and source is None:
        raise ValueError("--mode edit needs a photograph: give --source_image, or --data_root")
    requests = [parse_request(items) for items in (args.attributes, args.start, args.end)]
    work = Manipulation(args)
    for request in requests:
        work.vector(request)  # unknown names are refused before anything is drawn
    if source:
        from celeba_dataset import load_and_preprocess_image

        config = work.model.config
        image = load_and_preprocess_image(source, config.image_size, config.crop)
    with work.autocast:
        if args.mode in ("generate", "all"):
            work.generate()
        if args.mode in ("interpolate", "all"):
            work.interpolate()
        if source:
            work.edit(source, image)
    manifest = {
        "arguments": vars(args),
        "checkpoint": file_hash(args.checkpoint),
        "precision": cli.choose_precision(args.mixed_precision, work.model.device.type),
        "model": work.model.config.to_dict(),
        "made": work.made,
    }
    path = work.out / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2, default=str) + "\n")
    for mode, made in work.made.items():
        print(f"{mode}: {made.get('grid') or made.get('strip') or made.get('row')}")
    if args.mode == "all" and source is None:
        print("edit: skipped, as there is no --source_image")
    print(f"manifest: {path}")


if __name__ == "__main__":
    cli.run(lambda: manipulate(parse_args()))
