"""Figures that explain a dataset, a checkpoint or a run: python visualize.py WHAT --out FOLDER.

WHAT is one of: attributes, samples, reconstructions, latent-space, denoising, animation, interpolation,
curves, architecture; or all, for as many as the flags given allow.
"""

from __future__ import annotations

import argparse
import json
from functools import cached_property
from pathlib import Path

import cli
from model_config import SAMPLERS, SamplingConfig, configure

NEEDS = {  # which flags each figure cannot do without
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
SHOWN = ("Smiling", "Male", "Eyeglasses", "Blond_Hair", "Young", "Wearing_Hat")
FRAMES = 10  # of a strip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("what", choices=(*NEEDS, "all"), metavar="WHAT", help=", ".join((*NEEDS, "all")))
    add("--checkpoint", help="of train.py")
    add("--data_root", help="folder of labelled images")
    add("--log_dir", help="of train.py: its last run, or the folder of one")
    add("--out", default="./outputs/figures", help="folder to write to")
    add("--attributes", nargs="+", help="names that are varied or coloured by")
    add("--num_samples", type=cli.positive_int, default=8, help="images in a row")
    add("--num_points", type=cli.number(int, 50), default=1000, help="of the latent space")
    add("--cfg_scale", type=cli.non_negative, help=f"None: {SamplingConfig.cfg_scale:g}")
    add("--sampler", default=SamplingConfig.sampler, choices=SAMPLERS)
    add("--num_inference_steps", type=cli.positive_int, default=SamplingConfig.num_inference_steps)
    cli.add_sampling_flags(parser)
    add("--cache_dir", default="data/cache")
    add("--seed", type=cli.count, default=0)
    cli.add_device_flags(parser)
    args = parser.parse_args(argv)
    lacking = [flag for flag in NEEDS.get(args.what, ()) if getattr(args, flag) is None]
    if lacking:
        parser.error(f"{args.what} needs {' and '.join('--' + flag for flag in lacking)}")
    return args


class Figures:
    """What the figures share: the model, the data, and where they are written. Every method named after
    a figure writes it and returns its files."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out = args, Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------ what they are made from

    @cached_property
    def device(self) -> str:
        return cli.choose_device(self.args.device)

    @cached_property
    def model(self):
        from checkpoint import load_model

        return load_model(self.args.checkpoint, self.device)

    @cached_property
    def source(self) -> str:
        """What a figure's title says it came from."""
        from checkpoint import file_hash

        return f"{Path(self.args.checkpoint).name} {file_hash(self.args.checkpoint)}"

    @cached_property
    def held_out(self):
        from labelled_images import open_for

        return open_for(self.model.config, self.args.data_root, "test", self.args.cache_dir)

    @cached_property
    def shown(self) -> list[str]:
        """The attributes that are varied: --attributes, or SHOWN as far as the model knows them."""
        names = self.model.config.attribute_names
        known = [name for name in SHOWN if name in names]
        return self.args.attributes or known or list(names[: 10 if self.model.config.one_hot else 6])

    def without_and_with(self, name: str, number: int):
        """Rows (number, A) without an attribute and with it, alike in all else; of a class: of the one
        before, and its."""
        import torch

        requests = [{name: 0}, {name: 1}]
        if self.model.config.one_hot:
            names = self.model.config.attribute_names
            requests[0] = {names[names.index(name) - 1]: 1}
        rows = [self.model.request_row(request) for request in requests]
        pairs = [self.model.complete_ends(*rows, each) for each in self.generators(number)]
        return [torch.cat(part) for part in zip(*pairs, strict=True)]

    @property
    def autocast(self):
        return cli.autocast(self.args.mixed_precision, self.device)

    @property
    def sampling(self) -> SamplingConfig:
        scale = self.model.config.sampling_scale(self.args.cfg_scale, SamplingConfig.cfg_scale)
        return configure(SamplingConfig, self.args, cfg_scale=scale)

    def generators(self, number: int):
        from samplers import sample_generators

        return sample_generators(self.args.seed, range(number))

    # ------------------------------------------------------------ the figures

    def attributes(self) -> list[Path]:
        """How often each attribute is present in each split, and how attributes go together."""
        import numpy as np

        from image_dataset import SPLITS
        from labelled_images import attribute_rows
        from pictures import save_bars, save_matrix

        read = {split: attribute_rows(self.args.data_root, split) for split in SPLITS}
        rows, names = {split: found[0] for split, found in read.items()}, read["train"][1]
        order = np.argsort(rows["train"].mean(0))
        shares = {
            f"{split}, {len(values)} images": (values[:, order] > 0).mean(0)
            for split, values in rows.items()
        }
        names = [names[i] for i in order]
        constant = rows["train"].std(0) == 0
        with np.errstate(invalid="ignore"):
            correlation = np.atleast_2d(np.corrcoef(rows["train"].T))
        correlation[constant] = correlation[:, constant] = 0  # undefined: what never varies
        correlation = correlation[np.ix_(order, order)]
        root = Path(self.args.data_root).name
        return [
            save_bars(
                self.out / "attribute_balance.png", shares, names, "share present", f"{root}: balance"
            ),
            save_matrix(
                self.out / "attribute_correlation.png",
                correlation,
                names,
                f"{root}: correlation, train split",
            ),
        ]

    def samples(self) -> list[Path]:
        """Held-out images with their labels; and for each attribute, faces with and without it from the
        same noise."""
        import torch

        from evaluation import draw
        from pictures import save_grid

        number, names = self.args.num_samples, self.model.config.attribute_names
        images, rows = self.held_out.images[:number], self.held_out.attributes[:number]
        number = len(images)  # the split may have fewer
        labels = [", ".join(n for n, v in zip(names, row, strict=True) if v > 0) for row in rows]
        files = [
            save_grid(self.out / "real.png", images, labels, 8, title="test images, labels present")
        ]
        drawn, titles = [], []
        for name in self.shown:
            without, having = self.without_and_with(name, number)
            for asked, label in ((having, name), (without, f"not {name}")):
                if asked is without and self.model.config.one_hot:
                    continue  # each class has a row of its own
                drawn.append(draw(self.model, asked, self.sampling, self.autocast, self.args.seed))
                titles += [label] * number
        title = f"each from the same noise; {self.source}"
        images = torch.cat(drawn).numpy()
        return [*files, save_grid(self.out / "samples.png", images, titles, number, title=title)]

    def reconstructions(self) -> list[Path]:
        """Held-out images, what the first stage keeps of them, and what the semantic latent keeps."""
        import torch

        from pictures import save_grid

        images = torch.from_numpy(self.held_out.images[: self.args.num_samples].copy())
        stage = self.model.first_stage
        with self.autocast, torch.no_grad():
            parts = {"image": images, "semantic latent": self.model.reconstruct(images.to(self.device))}
            if self.model.config.first_stage != "pixels":
                parts["first stage"] = stage.decode(stage.encode(images.to(self.device)))
        grid = torch.cat([part.cpu() for part in parts.values()]).numpy()
        labels = [label for label in parts for _ in images]
        title = f"reconstructions of test images; {self.source}"
        return [save_grid(self.out / "reconstructions.png", grid, labels, len(images), title=title)]

    def latent_space(self) -> list[Path]:
        """PCA and t-SNE of the semantic latents of held-out images, coloured by each attribute."""
        import torch
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE

        from evaluation_classifier import in_batches
        from pictures import save_scatter

        images = self.held_out.images[: self.args.num_points]
        with self.autocast:
            latents = torch.cat(in_batches(self.model.encode_latent, images, 100, "latents"))
        latents = latents.float().cpu()
        pca = PCA(2, random_state=self.args.seed)
        flat = pca.fit_transform(latents.numpy())
        share = pca.explained_variance_ratio_
        axes = [f"component {i + 1} ({100 * part:.0f} %)" for i, part in enumerate(share)]
        perplexity = min(30, (len(latents) - 1) / 3)  # scikit-learn's default, where there are enough
        tsne = TSNE(2, perplexity=perplexity, random_state=self.args.seed, init="pca")
        points = {("PCA", *axes): flat, ("t-SNE", "", ""): tsne.fit_transform(latents.numpy())}
        files, names = [], self.model.config.attribute_names
        for name in self.shown:
            has = self.held_out.attributes[: len(images), names.index(name)].numpy() > 0
            title = f"semantic latents of {len(images)} test images by {name}; {self.source}"
            files.append(save_scatter(self.out / f"latent_space_{name}.png", points, has, name, title))
        return files

    @cached_property
    def chain(self):
        """The reverse chain under one request each: x_t and x0_hat after every step, uint8 pictures
        (steps, requests, H, W, 3), and the timesteps."""
        import torch

        model = self.model
        rows = torch.cat([model.request_row({name: 1}) for name in self.shown])
        generators = self.generators(len(rows))
        x_T = model.initial_noise(len(rows), generator=generators)
        decode = model.first_stage.decode
        noisy, clean, times = [decode(x_T)], [], [self.model.schedule.num_timesteps - 1]
        with self.autocast:
            steps = model.sample_steps(x_T, rows, self.sampling, generators, progress=True)
            for _, t, x_t, x0_hat in steps:
                noisy.append(decode(x_t))
                clean.append(decode(x0_hat))
                times.append(t)
        clean = [clean[0], *clean]  # the prediction that leads away from x_t stands beside it
        return torch.stack(noisy).cpu().numpy(), torch.stack(clean).cpu().numpy(), times

    def denoising(self) -> list[Path]:
        """Strips of x_t and of x0_hat along the reverse chain, two rows for each request."""
        import numpy as np

        from pictures import save_grid

        noisy, clean, times = self.chain
        shown = np.linspace(0, len(times) - 1, min(FRAMES, len(times))).round().astype(int)
        images, labels = [], []
        for i, name in enumerate(self.shown):
            for row, what in ((noisy, "x_t"), (clean, "x0_hat")):
                images += [row[step, i] for step in shown]
                labels += [f"{what}, t = {times[step]}" if step else f"{what}, {name}" for step in shown]
        title = f"reverse chain, {self.sampling.sampler}; {self.source}"
        path = self.out / "denoising.png"
        return [save_grid(path, np.stack(images), labels, len(shown), title=title)]

    def animation(self) -> list[Path]:
        """The chain as a film: x_t above, x0_hat below, a column for each request."""
        import numpy as np

        from pictures import save_gif

        noisy, clean, _ = self.chain
        frames = [
            np.concatenate([np.concatenate([*upper], axis=1), np.concatenate([*lower], axis=1)])
            for upper, lower in zip(noisy, clean, strict=True)
        ]
        scale = max(1, round(128 / noisy.shape[2]))
        return [save_gif(self.out / "animation.gif", np.stack(frames), scale=scale, back=False)]

    def interpolation(self) -> list[Path]:
        """From without to with, for each attribute, all from one noise."""
        import torch

        from pictures import save_grid

        strips, labels = [], []
        for name in self.shown:
            with self.autocast:
                strip = self.model.interpolate_between_attributes(
                    *self.without_and_with(name, 1),
                    FRAMES,
                    self.sampling,
                    self.generators(1)[0],
                    progress=True,
                )
            strips.append(strip.cpu())
            labels += [f"{name} {i / (FRAMES - 1):.2f}" for i in range(FRAMES)]
        title = f"attributes from absent to present; {self.source}"
        path = self.out / "interpolation.png"
        return [save_grid(path, torch.cat(strips).numpy(), labels, FRAMES, title=title)]

    def curves(self) -> list[Path]:
        """Losses, loss by timestep, and speed, of a run: the last in the folder."""
        from pictures import save_curves

        folder = Path(self.args.log_dir)
        found = [folder / "metrics.jsonl", *sorted(folder.glob("*/metrics.jsonl"))]
        found = [path for path in found if path.is_file()]
        if not found:
            raise FileNotFoundError(
                f"no metrics.jsonl in {folder}: give the --log_dir of a training run"
            )
        title = "/".join(found[-1].resolve().parts[-3:-1])
        curves: dict[str, dict[str, list]] = {}
        for line in found[-1].read_text().splitlines():
            values = json.loads(line)
            for tag in values.keys() - {"step", "seconds"}:
                group, _, name = tag.partition("/")
                if values[tag] is not None:  # was not finite
                    point = values["step"], values[tag]
                    curves.setdefault(group, {}).setdefault(name, []).append(point)
        return [
            save_curves(
                self.out / f"curves_{group}.png", named, "step", [group.replace("_", " ")], title
            )
            for group, named in curves.items()
        ]

    def architecture(self) -> list[Path]:
        """The UNet as it is built: every block with its shape, parameters and attention."""
        from pictures import save_unet_drawing

        config = self.model.config
        side = config.image_size // self.model.first_stage.factor
        return save_unet_drawing(self.out / "architecture", self.model.unet, side, self.source)


def visualize(args: argparse.Namespace) -> None:
    """Draw the figure asked for, or all that the flags allow."""
    figures = Figures(args)
    wanted = [args.what]
    if args.what == "all":
        wanted = [what for what, flags in NEEDS.items() if all(getattr(args, f) for f in flags)]
        if not wanted:
            raise ValueError("all: give --checkpoint, --data_root or --log_dir, from which to draw")
    if args.checkpoint and set(wanted) - {"curves", "attributes"}:
        for name in args.attributes or ():
            figures.model.request_row({name: 1})  # unknown names are refused before anything is drawn
    for what in wanted:
        for path in getattr(figures, what.replace("-", "_"))():
            print(f"{what}: {path}")


if __name__ == "__main__":
    cli.run(lambda: visualize(parse_args()))
