"""Figures that explain a dataset, a checkpoint or a run: python visualize.py WHAT --out FOLDER.

WHAT is one of: attributes, samples, reconstructions, latent-space, denoising, animation, interpolation,
curves, architecture; or all, for as many as the flags given allow.
"""

from __future__ import annotations

import argparse
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
    add("--data_root", help="folder in CelebA's layout")
    add("--log_dir", help="of a run's TensorBoard files")
    add("--out", default="./outputs/figures", help="folder to write to")
    add("--attributes", nargs="+", default=list(SHOWN), help="names that are varied or coloured by")
    add("--num_samples", type=cli.positive_int, default=8, help="images in a row")
    add("--num_points", type=cli.number(int, 50), default=1000, help="of the latent space")
    add("--cfg_scale", type=cli.non_negative, default=2.0)
    add("--sampler", default=SamplingConfig.sampler, choices=SAMPLERS)
    add("--num_inference_steps", type=cli.positive_int, default=SamplingConfig.num_inference_steps)
    cli.add_sampling_flags(parser)
    add("--cache_dir", default="data/cache")
    add("--seed", type=cli.count, default=0)
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--mixed_precision", default="auto", choices=("auto", "no", "bf16", "fp16"))
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
        from celeba_dataset import CelebADataset

        config = self.model.config
        return CelebADataset(
            self.args.data_root,
            "test",
            config.image_size,
            crop=config.crop,
            cache_dir=self.args.cache_dir,
        )

    @property
    def autocast(self):
        return cli.autocast(self.args.mixed_precision, self.device)

    @property
    def sampling(self) -> SamplingConfig:
        return configure(SamplingConfig, self.args)

    def row(self, **request: float):
        """The attribute row (1, A) of a request."""
        from celeba_dataset import create_attribute_vector

        names = {name: i for i, name in enumerate(self.model.config.attribute_names)}
        return create_attribute_vector(names, **request).unsqueeze(0)

    def base_rows(self, number: int):
        """Whole attribute rows: of the held-out images where they are at hand, else unspecified."""
        import torch

        if self.args.data_root:
            return self.held_out.attributes[:number]
        return torch.zeros(number, len(self.model.config.attribute_names))

    def generators(self, number: int):
        from samplers import sample_generators

        return sample_generators(self.args.seed, range(number))

    # ------------------------------------------------------------ the figures

    def attributes(self) -> list[Path]:
        """How often each attribute is present in each split, and how attributes go together."""
        import numpy as np

        from celeba_dataset import CELEBA_ATTRIBUTES, SPLITS, attribute_rows
        from pictures import save_bars, save_matrix

        rows = {split: attribute_rows(self.args.data_root, split).numpy() for split in SPLITS}
        order = np.argsort(rows["train"].mean(0))
        shares = {
            f"{split}, {len(values)} images": (values[:, order] > 0).mean(0)
            for split, values in rows.items()
        }
        names = [CELEBA_ATTRIBUTES[i] for i in order]
        constant = rows["train"].std(0) == 0
        with np.errstate(invalid="ignore"):
            correlation = np.corrcoef(rows["train"].T)
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
        labels = [", ".join(n for n, v in zip(names, row, strict=True) if v > 0) for row in rows]
        files = [
            save_grid(self.out / "real.png", images, labels, 8, title="test images, labels present")
        ]
        drawn, titles = [], []
        for name in self.args.attributes:
            for value in (1, 0):
                request = self.row(**{name: value})
                asked = torch.where(request == 0, self.base_rows(number), request)
                drawn.append(draw(self.model, asked, self.sampling, self.autocast, self.args.seed))
                titles += [name if value else f"not {name}"] * number
        title = f"each attribute with and without, from the same noise; {self.source}"
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

        from evaluation import in_batches
        from pictures import save_scatter

        images = self.held_out.images[: self.args.num_points]
        with self.autocast:
            batches = in_batches(images, 100, "latents")
            latents = torch.cat(
                [self.model.encode_latent(b.to(self.device)).float().cpu() for b in batches]
            )
        pca = PCA(2, random_state=self.args.seed)
        flat = pca.fit_transform(latents.numpy())
        share = pca.explained_variance_ratio_
        axes = [f"component {i + 1} ({100 * part:.0f} %)" for i, part in enumerate(share)]
        perplexity = min(30, (len(latents) - 1) / 3)  # scikit-learn's default, where there are enough
        tsne = TSNE(2, perplexity=perplexity, random_state=self.args.seed, init="pca")
        points = {("PCA", *axes): flat, ("t-SNE", "", ""): tsne.fit_transform(latents.numpy())}
        files, names = [], self.model.config.attribute_names
        for name in self.args.attributes:
            has = self.held_out.attributes[: len(images), names.index(name)].numpy() > 0
            title = f"semantic latents of {len(images)} test images by {name}; {self.source}"
            files.append(save_scatter(self.out / f"latent_space_{name}.png", points, has, name, title))
        return files

    @cached_property
    def chain(self):
        """The reverse chain under one request each: x_t and x0_hat after every step, uint8 pictures
        (steps, requests, H, W, 3), the timesteps, and the requests' names."""
        import torch

        model = self.model
        rows = [self.row(**{name: 1}) for name in self.args.attributes]
        rows = torch.where(torch.cat(rows) == 0, self.base_rows(1), torch.cat(rows))
        x_T = model.initial_noise(len(rows), generator=self.generators(len(rows)))
        decode = model.first_stage.decode
        noisy, clean, times = [decode(x_T)], [], [self.model.schedule.num_timesteps - 1]
        with self.autocast:
            steps = model.sample_steps(
                x_T, rows, self.sampling, self.generators(len(rows)), progress=True
            )
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
        for i, name in enumerate(self.args.attributes):
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
        for name in self.args.attributes:
            ends = [
                torch.where(request == 0, self.base_rows(1), request)
                for request in (self.row(**{name: 0}), self.row(**{name: 1}))
            ]
            with self.autocast:
                strip = self.model.interpolate_between_attributes(
                    *ends, FRAMES, self.sampling, self.generators(1)[0], progress=True
                )
            strips.append(strip.cpu())
            labels += [f"{name} {i / (FRAMES - 1):.2f}" for i in range(FRAMES)]
        title = f"attributes from absent to present; {self.source}"
        path = self.out / "interpolation.png"
        return [save_grid(path, torch.cat(strips).numpy(), labels, FRAMES, title=title)]

    def curves(self) -> list[Path]:
        """Training and validation losses, loss by timestep, and speed, from the TensorBoard logs."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        from pictures import save_curves

        folder = Path(self.args.log_dir)
        title = "/".join(folder.resolve().parts[-2:])
        if not any(folder.glob("events.out.tfevents.*")):
            raise FileNotFoundError(
                f"no TensorBoard logs in {folder}: give the --log_dir of a training run"
            )
        logs = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        curves: dict[str, dict[str, list]] = {}
        for tag in logs.Tags()["scalars"]:
            group, name = tag.split("/", 1)
            curves.setdefault(group, {})[name] = [(e.step, e.value) for e in logs.Scalars(tag)]
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
        for name in args.attributes:
            figures.row(**{name: 1})  # unknown names are refused before anything is drawn
    for what in wanted:
        for path in getattr(figures, what.replace("-", "_"))():
            print(f"{what}: {path}")


if __name__ == "__main__":
    cli.run(lambda: visualize(parse_args()))
