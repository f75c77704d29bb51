"""The figures of visualize.py: each is a function of ``Sources`` that writes files and returns them.

``FIGURES``, at the end, is the only list of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor, nn
from tqdm import tqdm

import devices
from attributes import parse_request
from checkpoint import build, load_checkpoint, load_first_stage, refusing
from config import SPLITS, ModelConfig, SamplingConfig, in_file_name
from diffusion_model import ConditionalDiffusion
from figures.grids import caption, readable, save_film, save_grid
from figures.plots import save_bars, save_curves, save_matrix, save_scatter
from figures.unet_drawing import save_unet_drawing
from image_data.cached import ImageDataset
from image_data.datasets import find_dataset
from image_data.labelled import LabelledImages
from samplers import resolve, sample_generators
from studio import draw

if TYPE_CHECKING:
    from visualize import VisualizeConfig

TO_VARY = ("Smiling", "Male", "Eyeglasses", "Blond_Hair", "Young", "Wearing_Hat")
FRAMES = 10  # of a strip
POINTS = 1000  # of the latent space
MOST_STEPS = 100  # of a reverse chain that are kept: as many as a film of twelve seconds shows
OF_ATTRIBUTES = "validation_cleanest_quartile"  # too many for curves: bars of the last values
CURVES = {  # group of metrics.jsonl -> what its plot shows
    "loss": "What training minimises: the total, and each of its terms",
    "diffusion_by_timestep": "The error of the prediction, from the least noise to the most",
    "validation": "The same losses on images that training never sees",
    "balanced_accuracy": "How well the guide reads unseen images, from the least noise to the most",
    OF_ATTRIBUTES: "How well the guide reads unseen images, in the least noise",
    "optimisation": "The learning rate, and the length of the gradient",
    "speed": "How many images training sees in a second",
}


@dataclass(frozen=True)
class FirstStageAlone:
    """A first stage of train.py, where a model is expected. Its configuration is that of a model, as far
    as a first stage knows it: the attributes, the image size and the crop."""

    config: ModelConfig
    first_stage: nn.Module

    def encode_latent(self, images: Tensor) -> Tensor:
        """The latents of images uint8 (B, S, S, 3), as rows (B, C h w)."""
        return self.first_stage.encode(images.to(self.first_stage.mean.device)).flatten(1)


class Sources:
    """What figures are drawn from. The model and the data are loaded when a figure first asks for them.

    Attributes:
        config: the flags of visualize.py.
        out: the folder that figures are written to.
        origin: the checkpoint's name, for titles.
        requests: each of --attributes as a request of its own: NAME stands for NAME=1.
    """

    def __init__(self, config: VisualizeConfig):
        self.config, self.out = config, Path(config.output_dir)
        self.origin = Path(str(config.checkpoint)).name
        self.device = devices.choose_device(config.device)
        items = (item if "=" in item else f"{item}=1" for item in config.attributes)
        self.requests = [parse_request([item]) for item in items]

    def save(
        self, name: str, title: str, images: np.ndarray, labels: Sequence[str], columns: int
    ) -> list[Path]:
        """Write a labelled grid, whose title names the checkpoint."""
        title = f"{title} ({self.origin})"
        return [save_grid(self.out / f"{name}.png", images, labels, columns, title=title)]

    @cached_property
    def opened(self) -> ConditionalDiffusion | FirstStageAlone:
        """What --checkpoint holds."""
        path = str(self.config.checkpoint)
        state = load_checkpoint(path)
        if "autoencoder" not in state:
            model = build(ConditionalDiffusion, "model", state, path)
            return model.to(self.device, memory_format=torch.channels_last)
        stored = load_first_stage(path)
        with refusing(path, "first stage"):
            trained_on = state["trained_on"]
            data = {name: trained_on[name] for name in ("attribute_names", "image_size", "crop")}
            config = ModelConfig(**data, first_stage=stored.kind)
        return FirstStageAlone(config, stored.module.to(self.device))

    @property
    def model(self) -> ConditionalDiffusion:
        """The model, for figures that are of a model."""
        assert isinstance(self.opened, ConditionalDiffusion)  # visualize.py asks for no others
        return self.opened

    @cached_property
    def data(self) -> LabelledImages:
        """What --data_root holds. Prints a line on it."""
        config = self.config
        data = find_dataset(str(config.data_root), config.dataset, config.unspecified)
        print(data)
        return data

    @cached_property
    def held_out(self) -> ImageDataset:
        """The test split, as the model sees it."""
        return self.data.open_for(self.opened.config, "test", self.config.cache_dir)

    @property
    def to_vary(self) -> list[str]:
        """The attributes to vary: those of --attributes, else those of TO_VARY that the model has, else
        its first ones."""
        if self.requests:
            return list(dict.fromkeys(name for request in self.requests for name in request))
        names = self.opened.config.attribute_names
        usual = [name for name in TO_VARY if name in names]
        return usual or list(names[: 10 if self.opened.config.one_hot else 6])

    @property
    def autocast(self) -> AbstractContextManager:
        return devices.autocast(self.config.mixed_precision, self.device)

    @property
    def sampling(self) -> SamplingConfig:
        """How faces are drawn: by the flags, as far as the model allows."""
        sampling = self.config.sampling
        if self.config.unconditional:
            sampling = replace(sampling, cfg_scale=0.0)
        return resolve(sampling, self.model.schedule, self.model.config.guidable)

    def generators(self, number: int) -> list[torch.Generator]:
        """A generator for each of so many images."""
        return sample_generators(self.config.seed, range(number))

    def without_and_with(self, name: str, number: int) -> tuple[Tensor, Tensor]:
        """Two sets of rows (number, A): without an attribute and with it. Row i of both is alike in all
        else. Where attributes are classes, the first set has the class before this one."""
        without: dict[str, float] = {name: 0}
        if self.model.config.one_hot:
            names = self.model.config.attribute_names
            without = {names[names.index(name) - 1]: 1}
        start = self.model.complete_rows([without] * number, generator=self.generators(number))
        named = self.model.attribute_rows({name: 1}, number)
        return start, torch.where(named == 0, start, named)

    @property
    def chain_requests(self) -> list[dict[str, float]]:
        """The requests of the reverse chain: those of --attributes, else one for each attribute to vary.
        A model of one attribute has two: without it and with it. If unconditional, one that is empty."""
        if self.config.unconditional:
            return [{}]
        if not self.requests and self.model.config.one_of_two:
            return [{self.to_vary[0]: value} for value in (0.0, 1.0)]
        return self.requests or [{name: 1.0} for name in self.to_vary]

    @property
    def captions(self) -> list[str]:
        """What stands under each picture of the reverse chain."""
        return ["unconditional"] if self.config.unconditional else [*map(caption, self.chain_requests)]

    @cached_property
    def chain(self) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """``sample_frames`` under ``chain_requests``, MOST_STEPS of them."""
        model, complete = self.model, not self.config.unconditional
        rows = model.attribute_rows(self.chain_requests)
        generators = self.generators(len(rows))
        x_T = model.initial_noise(len(rows), generator=generators)
        with self.autocast:
            noisy, clean, times = model.sample_frames(
                x_T, rows, self.sampling, generators, MOST_STEPS, progress=True, complete=complete
            )
        return noisy.cpu().numpy(), clean.cpu().numpy(), times


# -------------------------------------------------------------------- the figures


def attributes(sources: Sources) -> list[Path]:
    """How often each attribute is present in each split, and how attributes go together."""
    rows = {split: sources.data.attribute_rows(split) for split in SPLITS}
    order = np.argsort(rows["train"].mean(0))
    names = [readable(sources.data.names[i]) for i in order]
    shares = {
        f"{split}, {len(each)} images": (each[:, order] > 0).mean(0) for split, each in rows.items()
    }
    train = rows["train"][:, order]
    with np.errstate(invalid="ignore"):
        correlation = np.atleast_2d(np.corrcoef(train.T))
    constant = train.std(0) == 0
    correlation[constant] = correlation[:, constant] = 0  # not defined for what never varies
    root, out = sources.data.root.name, sources.out
    title = f"How often each attribute is present ({root})"
    balance = save_bars(out / "attribute_balance.png", shares, names, "share of images", title)
    title = f"How attributes go together ({root})"
    return [balance, save_matrix(out / "attribute_correlation.png", correlation, names, title)]


def samples(sources: Sources) -> list[Path]:
    """Held-out images with their labels. Then, for each attribute, faces with and without it, from the
    same noise."""
    model, held_out = sources.model, sources.held_out
    number, names = sources.config.num_samples, model.config.attribute_names
    images, rows = held_out.images[:number], held_out.attributes[:number]
    number = len(images)  # the split may have fewer
    labels = [", ".join(readable(n) for n, v in zip(names, row, strict=True) if v > 0) for row in rows]
    real = save_grid(sources.out / "real.png", images, labels, 8, title="Test images and what they show")
    drawn, titles = [], []
    unlabelled = len(names) == 1 and not model.config.one_of_two  # no picture lacks its attribute
    values = (1,) if model.config.one_hot or unlabelled else (1, 0)  # each class has a row of its own
    for name in sources.to_vary:
        ends = sources.without_and_with(name, number)
        for value in values:
            with sources.autocast:
                drawn.append(draw(model, ends[value], sources.sampling, sources.config.seed, True))
            titles += [caption({name: value})] * number
    title = "Faces with and without an attribute, from the same noise"
    return [real, *sources.save("samples", title, torch.cat(drawn).numpy(), titles, number)]


def reconstructions(sources: Sources) -> list[Path]:
    """Held-out images, what the first stage keeps of them, and what the semantic latent keeps. Of a
    first stage alone there is no semantic latent."""
    opened, stage = sources.opened, sources.opened.first_stage
    images = torch.from_numpy(sources.held_out.images[: sources.config.num_samples].copy())
    parts = {"image": images}
    with sources.autocast, torch.no_grad():
        if isinstance(opened, ConditionalDiffusion):
            parts["semantic latent"] = opened.reconstruct(images.to(sources.device))
        if opened.config.first_stage != "pixels":
            parts["first stage"] = stage.decode(stage.encode(images.to(sources.device)))
    grid = torch.cat([part.cpu() for part in parts.values()]).numpy()
    labels = [label for label in parts for _ in images]
    title = "Test images and what is left of them"
    return sources.save("reconstructions", title, grid, labels, len(images))


def latent_space(sources: Sources) -> list[Path]:
    """PCA and t-SNE of the semantic latents of held-out images, coloured by each attribute. Of a first
    stage alone it takes its whole latents."""
    seed, names = sources.config.seed, sources.opened.config.attribute_names
    semantic = isinstance(sources.opened, ConditionalDiffusion)
    kind = "Semantic latents" if semantic else "Latents of the first stage"
    images = torch.from_numpy(sources.held_out.images[:POINTS].copy())
    batches = tqdm(images.split(100), "latents", leave=False, unit="batch")
    with sources.autocast, torch.no_grad():
        latents = torch.cat([sources.opened.encode_latent(batch) for batch in batches]).float().cpu()
    pca = PCA(2, random_state=seed)
    flat = pca.fit_transform(latents.numpy())
    share = pca.explained_variance_ratio_
    axes = [f"component {i + 1} ({100 * part:.0f} %)" for i, part in enumerate(share)]
    perplexity = min(30, (len(latents) - 1) / 3)  # scikit-learn's default, if there are enough images
    tsne = TSNE(2, perplexity=perplexity, random_state=seed, init="pca")
    points = {("PCA", *axes): flat, ("t-SNE", "", ""): tsne.fit_transform(latents.numpy())}
    files = []
    for name in sources.to_vary:
        has = sources.held_out.attributes[: len(images), names.index(name)].numpy() > 0
        title = f"{kind} of {len(images)} test images ({sources.origin})"
        path = sources.out / f"latent_space_{in_file_name(name)}.png"
        files.append(save_scatter(path, points, has, readable(name), title))
    return files


def denoising(sources: Sources) -> list[Path]:
    """Strips of x_t and of x0_hat along the reverse chain, two rows for each request. What was asked for
    stands under the first picture of both."""
    noisy, clean, times = sources.chain
    frames = np.linspace(0, len(times) - 1, min(FRAMES, len(times))).round().astype(int)
    images, labels = [], []
    for i, name in enumerate(sources.captions):
        for row in (noisy, clean):
            images += [row[step, i] for step in frames]
            labels += [f"t = {times[step]}" if times[step] >= 0 else "end" for step in frames]
            labels[-len(frames)] = name
    title = "From noise to an image; below, what the network predicts"
    return sources.save("denoising", title, np.stack(images), labels, len(frames))


def animation(sources: Sources) -> list[Path]:
    """The reverse chain as a film: x_t above, x0_hat below, a captioned column for each request."""
    noisy, clean, _ = sources.chain
    labels = [*[""] * noisy.shape[1], *sources.captions]
    frames = np.concatenate([noisy, clean], axis=1)
    return [save_film(sources.out / "animation.gif", frames, labels, noisy.shape[1])]


def interpolation(sources: Sources) -> list[Path]:
    """For each attribute a strip from faces without it to faces with it, all from one noise."""
    strips, labels = [], []
    for name in sources.to_vary:
        with sources.autocast:
            strip = sources.model.interpolate_between_attributes(
                *sources.without_and_with(name, 1),
                FRAMES,
                sources.sampling,
                sources.generators(1)[0],
                progress=True,
            )
        strips.append(strip.cpu())
        labels += [f"{readable(name)} {i / (FRAMES - 1):.2f}" for i in range(FRAMES)]
    title = "Each attribute from absent to present, from the same noise"
    return sources.save("interpolation", title, torch.cat(strips).numpy(), labels, FRAMES)


def curves(sources: Sources) -> list[Path]:
    """Losses, loss by timestep, and speed of a training run: of the last one in the folder.

    Raises:
        FileNotFoundError: if the folder holds no run.
    """
    folder = Path(str(sources.config.log_dir))
    runs = [folder / "metrics.jsonl", *sorted(folder.glob("*/metrics.jsonl"))]
    runs = [path for path in runs if path.is_file()]
    if not runs:
        raise FileNotFoundError(f"no metrics.jsonl in {folder}: give the --log_dir of a training run")
    run = "/".join(runs[-1].resolve().parts[-3:-1])
    groups: dict[str, dict[str, list]] = {}  # group -> name -> points (step, value)
    for line in runs[-1].read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        for tag, value in values.items():
            *above, name = tag.split("/")
            group = "_".join(above)
            if name.startswith("balanced_accuracy_"):  # no loss
                group, name = "balanced_accuracy", name.removeprefix("balanced_accuracy_")
            if group and value is not None:  # None was not finite; step and seconds have no group
                points = groups.setdefault(group, {}).setdefault(name.replace("_", " "), [])
                points.append((values["step"], value))
    files = []
    for group, named in groups.items():
        words = group.replace("_", " ")
        title = f"{CURVES.get(group, words.capitalize())} ({run})"
        path = sources.out / f"curves_{group}.png"
        if group == OF_ATTRIBUTES:
            last = np.array([points[-1][1] for points in named.values()])
            files.append(save_bars(path, {"last": last}, [*named], "balanced accuracy", title))
        else:
            files.append(save_curves(path, named, "step", [words], title))
    return files


def architecture(sources: Sources) -> list[Path]:
    """The UNet as it is built: every block with its shape, parameters and attention."""
    model = sources.model
    side = model.config.image_size // model.first_stage.factor
    return save_unet_drawing(sources.out / "architecture", model.unet, side, sources.origin)


FIGURES: dict[str, Callable[[Sources], list[Path]]] = {  # visualize.py says which flags each needs
    "attributes": attributes,
    "samples": samples,
    "reconstructions": reconstructions,
    "latent-space": latent_space,
    "denoising": denoising,
    "animation": animation,
    "interpolation": interpolation,
    "curves": curves,
    "architecture": architecture,
}
