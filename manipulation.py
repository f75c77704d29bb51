"""What a model does with requests and photographs: generate, interpolate, edit; as pictures."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cli
from checkpoint import load_guide, load_model
from classifier_model import GuidanceClassifier
from evaluation import draw
from model_config import EditConfig, SamplingConfig, configure
from photograph import Photograph
from pictures import heat_map, save_gif, save_grid, save_image
from samplers import sample_generators

Request = dict[str, float]  # attribute names, and 0 ... 1 as a user says it

# What is shown where no attributes are named, as far as the model knows them.
SHOWN_REQUESTS: tuple[Request, ...] = (
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
SHOWN_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MARGIN = 1.0  # of log odds, by which a counterfactual passes the classifier's threshold
TRIED_STRENGTHS = 20
SHOWN_INTERPOLATION: tuple[Request, Request] = ({"Male": 1, "Smiling": 0}, {"Male": 0, "Smiling": 1})


def parse_request(items: list[str]) -> Request:
    """['Smiling=1', 'Male=0'] -> {'Smiling': 1.0, 'Male': 0.0}.

    Raises:
        ValueError: for an item that is not NAME=NUMBER, or a name given twice.
    """
    request: Request = {}
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


def caption(request: Request) -> str:
    """'Smiling, not Male, Young 0.5': what was asked, as written on a picture."""
    words = {1.0: "{}", 0.0: "not {}"}
    parts = [words.get(value, "{} {:g}").format(name, value) for name, value in request.items()]
    return ", ".join(parts) or "anything"


class Manipulation:
    """A model, where to write, and what was written."""

    def __init__(self, args: argparse.Namespace):
        device = cli.choose_device(args.device)
        self.autocast = cli.autocast(args.mixed_precision, device)
        self.args, self.out, self.classifier = args, Path(args.output_dir), None
        self.model = load_model(args.checkpoint, device)
        if args.guidance == "classifier" and not self.model.config.guidable:
            raise ValueError(
                "--guidance classifier starts from no condition, which this model, of --cfg_dropout 0, "
                "never saw: use --guidance both"
            )
        guided = args.guidance in ("classifier", "both")
        photographs = args.target_image or args.mode in ("edit", "counterfactual", "all")
        if args.classifier and (guided or photographs):
            self.classifier = load_guide(args.classifier, device)
            self.model.check_classifier(self.classifier)
        given = {name: getattr(args, name) for name in ("cfg_scale", "num_inference_steps")}
        if args.guidance == "classifier" or args.unconditional:
            given["cfg_scale"] = 0.0
        given["classifier_scale"] = args.guidance_scale if guided else 0.0
        flags = {name: value for name, value in (vars(args) | given).items() if value is not None}
        draws = args.mode in ("generate", "interpolate", "all")
        asked = given["cfg_scale"] if draws else None
        scale = self.model.config.sampling_scale(asked, SamplingConfig.cfg_scale)
        self.sampling = configure(SamplingConfig, argparse.Namespace(**flags), cfg_scale=scale)
        self.editing = configure(EditConfig, argparse.Namespace(**flags), method=args.edit_method)
        self.names = {name: i for i, name in enumerate(self.model.config.attribute_names)}
        if draws and not (args.open or args.unconditional or self.model.config.prior_rows):
            print(f"{args.checkpoint} has no attribute rows: what is not named is left to the network")
        self.made: dict[str, dict] = {}

    def photograph(self, path: Path, landmarks: list[float] | None = None) -> Photograph:
        """A picture file as this model sees it."""
        config = self.model.config
        return Photograph(path, config.image_size, config.crop, landmarks)

    def rows(self, requests: list[Request]):
        """The attribute rows (N, A) of requests to generate, each completed by a draw of its own."""
        rows = torch.cat([self.model.request_row(request) for request in requests])
        if self.args.open or self.args.unconditional:
            return rows
        generators = sample_generators(self.args.seed + 1, range(len(rows)))  # not those of the noise
        return self.model.complete_rows(rows, len(rows), generators).cpu()

    def known(self, request: Request) -> Request:
        """The part of a built-in request that this model has attributes for."""
        return {name: value for name, value in request.items() if name in self.names}

    def generator(self):
        return torch.Generator().manual_seed(self.args.seed)

    def guidance(self, config: SamplingConfig | EditConfig) -> str:
        """By what faces are guided, for a title."""
        if self.args.unconditional:
            return "unconditional"
        scale = config.classifier_scale
        by = f", classifier {scale:g}" if scale else ""
        return f"cfg_scale {config.cfg_scale:g}{by}"

    def save_each(self, images, folder: str) -> list[Path]:
        """Every image (N, H, W, 3) in a file of its own."""
        return [save_image(image, self.out / folder / f"{i:03d}.png") for i, image in enumerate(images)]

    def generate(self) -> None:
        """A labelled grid, and every image on its own."""
        args, columns = self.args, 8
        if args.attributes or args.unconditional:
            requests = [parse_request(args.attributes)] * args.num_samples
        elif self.model.config.one_hot:  # a row of the grid for each class
            columns = args.num_samples
            requests = [{name: 1.0} for name in self.names for _ in range(columns)]
        else:
            shown = [*filter(None, map(self.known, SHOWN_REQUESTS))] or [{n: 1.0} for n in self.names]
            requests = [shown[i % len(shown)] for i in range(args.num_samples)]
        rows = self.rows(requests)
        options = {"classifier": self.classifier, "complete": False}
        images = draw(self.model, rows, self.sampling, nullcontext(), args.seed, **options).numpy()
        single = self.save_each(images, "samples")
        title = f"generated, {self.guidance(self.sampling)}, seed {args.seed}"
        labels = [""] * len(images) if args.unconditional else [*map(caption, requests)]
        grid = save_grid(self.out / "samples.png", images, labels, columns, title=title)
        asked = {"attributes": requests, "rows": rows.tolist()}
        self.made["generate"] = {"grid": grid, "images": single, **asked}

    def interpolate(self) -> None:
        """A labelled strip and a GIF between two requests, from one noise."""
        args = self.args
        if args.start:
            start, end = parse_request(args.start), parse_request(args.end)
        else:
            start, end = map(self.known, SHOWN_INTERPOLATION)
            if not start:
                first, *others = self.names
                start, end = {first: 1.0}, ({others[0]: 1.0} if others else {first: 0.0})
        rows = self.model.request_row(start), self.model.request_row(end)
        if not args.open:
            rows = self.model.complete_ends(*rows, self.generator())
        images = self.model.interpolate_between_attributes(
            *rows,
            args.interpolation_steps,
            sampling=self.sampling,
            generator=self.generator(),
            progress=True,
            classifier=self.classifier,
            complete=False,
        )
        files = self.save_strip("interpolation", images, f"from {caption(start)} to {caption(end)}")
        asked = {"from": start, "to": end, "rows": torch.cat(rows).tolist()}
        self.made["interpolate"] = files | asked

    def save_strip(self, name: str, images, title: str) -> dict:
        """A labelled strip and a GIF of frames uint8 (N, H, W, 3)."""
        images = images.cpu().numpy()
        labels = [f"{i / (len(images) - 1):.2f}" for i in range(len(images))]
        strip = save_grid(self.out / f"{name}.png", images, labels, len(images), title=title)
        return {"strip": strip, "gif": save_gif(self.out / f"{name}.gif", images)}

    def interpolate_photographs(self, source: Photograph, target: Photograph) -> None:
        """A strip and a GIF from one photograph to another."""
        both = torch.from_numpy(np.stack([source.square, target.square]))
        steps = self.editing.num_inference_steps
        images = self.model.interpolate_between_images(
            both, self.args.interpolation_steps, steps, self.reads(both), progress=True
        )
        files = self.save_strip("photographs", images, "from one photograph to another")
        files |= {"from": self.args.source_image, "to": self.args.target_image}
        self.made["interpolate photographs"] = files

    def reads(self, images):
        """What attributes images have: by the classifier where there is one, else by the VAE."""
        return self.model.predict_attributes(images, self.classifier)

    def strip(self, image, targets, strengths, has, editing: EditConfig | None = None):
        """``edit_strip`` by this run's flags."""
        return self.model.edit_strip(
            image,
            targets,
            strengths,
            editing or self.editing,
            source_attributes=has,
            classifier=self.classifier,
            generator=self.generator(),
            progress=True,
        )

    def edit(self, source: Photograph) -> None:
        """A row: the source, and one edit per attribute, or all named at once; the same over strength;
        and of two named attributes, every combination."""
        args, image = self.args, torch.from_numpy(source.square)[None]
        has = self.reads(image)
        if args.attributes:
            request = parse_request(args.attributes)
            edits = [{name: value} for name, value in request.items()]
            edits += [request] if len(request) > 1 else []
        else:  # turn every shown attribute into what the source is not
            edits = self.usual_edits(has[0])
        targets = torch.cat([self.model.request_row(edit) for edit in edits])
        strengths = sorted({*SHOWN_STRENGTHS, args.manipulation_strength})
        over = [part.cpu().numpy() for part in self.strip(image, targets, strengths, has)]
        edited = over[strengths.index(args.manipulation_strength)]

        labels = ["source", *map(caption, edits)]
        how = f"{self.editing.method}, {self.guidance(self.editing)}"
        title = f"edited, strength {args.manipulation_strength:g}, {how}"
        shown = np.concatenate([image.numpy(), edited])
        row = save_grid(self.out / "edit.png", shown, labels, len(shown), title=title)
        shown = np.stack(over, 1).reshape(-1, *edited.shape[1:])  # edit by edit
        labels = [f"{caption(edit)} {s:g}" for edit in edits for s in strengths]
        save_grid(self.out / "edit_strength.png", shown, labels, len(strengths), title=how)
        made = {"row": row, "images": self.save_each(edited, "edits"), "attributes": edits}
        if args.attributes and len(edits) == 3:
            made["pairs"] = self.pairs(image, has, targets[:2], edits[:2])
        if args.paste_back:
            whole = [self.out / "edits" / f"{i:03d}_whole.png" for i in range(len(edited))]
            for path, each in zip(whole, edited, strict=True):
                source.paste(each).save(path)
            made["whole"] = whole
        self.made["edit"] = made | {"source": args.source_image}

    def usual_edits(self, has) -> list[Request]:
        """Requests that turn each of some attributes (A,) into what it is not, a class into others."""
        if self.model.config.one_hot:
            others = [name for name, i in self.names.items() if i != int(has.argmax())]
            return [{name: 1.0} for name in others[: len(SHOWN_REQUESTS)]]
        shown = [name for name in SHOWN_EDITS if name in self.names] or list(self.names)[:6]
        return [{name: float(has[self.names[name]] < 0)} for name in shown]

    def pairs(self, image, has, targets, edits: list[dict]) -> Path:
        """Two edits at once, each over strength: a square of pictures."""
        has = has.cpu().clone()
        grid = torch.tensor([(a, b) for a in SHOWN_STRENGTHS for b in SHOWN_STRENGTHS])
        rows = torch.zeros(len(grid), targets.shape[1])
        for edit, target, strength in zip(edits, targets, grid.T, strict=True):
            column = self.names[next(iter(edit))]
            has[:, column] = -target[column]
            row = torch.lerp(has[:, column], target[column], strength)
            rows[:, column] = row.where(row.abs() > 1e-3, 1e-3)  # 0 would leave it unnamed
        (images,) = self.strip(image, rows, [1.0], has, replace(self.editing, oppose=False))
        first, second = map(caption, edits)
        labels = [f"{a:g}, {b:g}" for a in SHOWN_STRENGTHS for b in SHOWN_STRENGTHS]
        title = f"down: {first}; to the right: {second}"
        columns = len(SHOWN_STRENGTHS)
        return save_grid(self.out / "edit_pairs.png", images.cpu().numpy(), labels, columns, title=title)

    def counterfactual(self, source: Photograph, guide: GuidanceClassifier) -> None:
        """The smallest change of a photograph with which the classifier sees what was asked for: edits
        of growing strength after one inversion, up to the first that passes its threshold by MARGIN."""
        args, image = self.args, torch.from_numpy(source.square)[None]
        request = parse_request(args.attributes)
        target = self.model.request_row(request)
        names = list(guide.config.attribute_names)
        for name, value in request.items():
            if name not in names:
                raise ValueError(f"{args.classifier} does not read {name}: name one of {names}")
            if value == 0.5:
                raise ValueError(f"a counterfactual of {name}=0.5 flips nothing: ask for 0 or 1")
        columns = [names.index(name) for name in request]
        wanted = torch.tensor([target[0, self.names[name]] for name in request]).sign()

        def margin(picture) -> float:
            """By how much the least certain of the attributes passes its threshold."""
            seen = 2 * torch.atanh(guide.predict_attributes(picture).clamp(-0.9999, 0.9999))
            return float(((seen - guide.prior)[0, columns].cpu() * wanted).min())

        strengths = np.linspace(0, 1, TRIED_STRENGTHS + 1)
        strip = self.strip(image, target, strengths, self.reads(image))
        for strength, edited in zip(strengths, strip, strict=False):
            facts: dict[str, Any] = {"strength": float(strength), "margin": margin(edited)}
            if facts["margin"] >= MARGIN:
                break
        edited, flipped = edited.cpu().numpy()[0], facts["margin"] >= MARGIN
        shown = np.stack([source.square, edited, heat_map(source.square, edited)])
        labels = ["source", caption(request), "difference"]
        at = f"flips at strength {facts['strength']:.2f}" if facts["strength"] else "is so already"
        how = at if flipped else "does not flip at full strength"
        title = f"counterfactual: {how}"
        row = save_grid(self.out / "counterfactual.png", shown, labels, 3, title=title)
        facts |= {"flipped": flipped, "margin_before": margin(image), "attributes": request}
        if args.paste_back:
            facts["whole"] = self.out / "counterfactual_whole.png"
            source.paste(edited).save(facts["whole"])
        self.made["counterfactual"] = {"row": row, "source": args.source_image, **facts}
