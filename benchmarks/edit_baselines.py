"""Edits of the benchmark's sources by simple methods and by our own, and their scores.

    python -m synthetic_faces.benchmark make
    python benchmarks/edit_baselines.py
    python benchmarks/edit_baselines.py --methods ours --checkpoint checkpoints/best_model.pth

Each method writes a folder of edits, as anybody's would, which is scored as anybody's. Prints the scores
over all edits. The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import devices
import flags
from config import CFG_SCALE, SEED, DeviceConfig, ModelFiles, SamplingConfig, count, flag, weight
from diffusion_model import load_model
from editing import Editor
from evaluation.tables import table
from samplers import ddpm, last, randn_like, timestep_grid
from studio import load_guide_of
from synthetic_faces.attributes import COLUMNS
from synthetic_faces.benchmark import EDIT_BENCHMARK, FLOOR, read_benchmark, score_folder
from synthetic_faces.dataset import draw_parameters, render

# images uint8 (B, S, S, 3), the attribute, and whether it is to be there -> edits in the same form
Edit = Callable


def no_edit(config: EditBaselinesConfig) -> Edit:
    """The sources as they are."""
    return lambda images, name, value: images


def mean_difference(config: EditBaselinesConfig) -> Edit:
    """The source plus (to remove: minus) the mean of drawn faces with the attribute less the mean of
    those without. The faces are drawn as those that drawn64 was trained on."""
    size = read_benchmark(config.benchmark).facts["image_size"]
    sums, numbers = torch.zeros(2, len(COLUMNS), size * size * 3), torch.zeros(2, len(COLUMNS), 1)
    for index in tqdm(range(config.num_faces), "averaging faces", unit="img", leave=False):
        identity, attributes = draw_parameters(index, seed=0, floor=FLOOR)
        face = torch.from_numpy(render(identity, attributes, size)).float().flatten()
        rows = torch.from_numpy(attributes > 0).long(), torch.arange(len(COLUMNS))
        sums[rows] += face
        numbers[rows] += 1
    without, with_it = sums / numbers.clamp(min=1)
    difference = (with_it - without).view(-1, size, size, 3)

    def edit(images, name: str, value: int):
        shift = difference[COLUMNS[name]] * (1 if value else -1)
        return (images + shift).round().clamp(0, 255).to(torch.uint8)

    return edit


def sdedit(config: EditBaselinesConfig) -> Edit:
    """Noise up to a share of the timesteps, then denoising under the source's attributes with the named
    one turned around (Meng et al. 2021, arXiv:2108.01073)."""
    model = load(config)
    steps, schedule = config.num_inference_steps, model.schedule
    grid = timestep_grid(schedule, min(round(steps / config.sdedit_depth), schedule.num_timesteps))
    grid = grid[-1 - steps :]  # those up to the depth
    generator = torch.Generator().manual_seed(config.seed)

    def edit(images, name: str, value: int):
        x0 = model.encode_images(images)
        target = model.predict_attributes(images)
        target[:, model.config.attribute_names.index(name)] = 1 if value else -1
        x_t = schedule.q_sample(x0, grid[0], randn_like(x0, generator))
        denoise = model.guided_denoiser(target, SamplingConfig(cfg_scale=config.sdedit_scale))
        clip = model.first_stage.clip_x0
        return model.first_stage.decode(last(ddpm(denoise, schedule, x_t, grid, clip, generator)))

    return edit


def ours(config: EditBaselinesConfig, **editing: float) -> Edit:
    """What manipulate.py does by default: with the guide of a pretrained model, where it has one.
    ``editing`` replaces fields of its EditConfig."""
    model = load(config)
    guide = load_guide_of(ModelFiles(checkpoint=config.checkpoint), model)
    options = {"guide": guide, "generator": torch.Generator().manual_seed(config.seed), **editing}
    return lambda images, name, value: Editor(model).edit(images, {name: value}, **options)


def ours_mild(config: EditBaselinesConfig) -> Edit:
    """The same, but the guide only reads, and the scale is small: drawn64 does what each name says, and
    nothing must push it."""
    return ours(config, cfg_scale=1.3, guide_scale=0)


METHODS: dict[str, Callable[[EditBaselinesConfig], Edit]] = {
    "no_edit": no_edit,
    "mean_difference": mean_difference,
    "sdedit": sdedit,
    "ours": ours,
    "ours_mild": ours_mild,
}


@dataclass(frozen=True)
class EditBaselinesConfig(DeviceConfig):
    """Flags of this benchmark."""

    benchmark: str = flag(EDIT_BENCHMARK, "folder of python -m synthetic_faces.benchmark make")
    output_dir: str = flag("outputs/edit_baselines", "folder to write to, one in it for each method")
    methods: tuple[str, ...] = flag(tuple(METHODS), "which to run", choices=tuple(METHODS))
    checkpoint: str = flag("drawn64", "model of sdedit and ours")
    num_faces: int = count(4000, "drawn faces that mean_difference averages", low=2)
    sdedit_depth: float = flag(0.5, "share of the timesteps up to which it noises", above=0, high=1)
    sdedit_scale: float = weight(CFG_SCALE, "its classifier-free guidance")
    num_inference_steps: int = count(25, "of sdedit")
    seed: int = count(0, "of its noise", **SEED)


def load(config: EditBaselinesConfig):
    """The model, on the device. ValueError for one of another size or of fewer attributes."""
    model = load_model(config.checkpoint, devices.choose_device(config.device))
    of_model, size = model.config, read_benchmark(config.benchmark).facts["image_size"]
    shared = len({*COLUMNS} & {*of_model.attribute_names})
    if of_model.image_size != size or shared < len(COLUMNS):
        raise ValueError(
            f"{config.checkpoint} draws {of_model.image_size} pixels and knows {shared} of "
            f"{len(COLUMNS)} attributes; the benchmark has {size} pixels and all of them: give another "
            "--checkpoint"
        )
    return model


def main() -> None:
    config = flags.parse(EditBaselinesConfig, __doc__)
    flags.check_writable(config.output_dir)
    benchmark = read_benchmark(config.benchmark)
    autocast = devices.autocast(config.mixed_precision, devices.choose_device(config.device))
    rows = {}
    for method in config.methods:
        folder, edit = Path(config.output_dir) / method, METHODS[method](config)
        folder.mkdir(parents=True, exist_ok=True)
        with tqdm(total=len(benchmark.requests), desc=method, unit="edit", leave=False) as bar:
            pairs = zip(benchmark.requests, benchmark.sources, strict=True)
            for (name, value), group in groupby(pairs, lambda x: (x[0]["attribute"], x[0]["value"])):
                requests, images = zip(*group, strict=True)
                with torch.no_grad(), autocast:
                    edits = edit(torch.stack([*map(torch.from_numpy, images)]), name, value).cpu()
                for request, pixels in zip(requests, edits.numpy(), strict=True):
                    Image.fromarray(pixels).save(folder / f"{request['id']}.png")
                bar.update(len(requests))
        rows[method] = score_folder(folder, benchmark)["table"]["all"]
    print(*table(["edits"], [([name], row) for name, row in rows.items()]), sep="\n")
    print(json.dumps({"benchmark": benchmark.facts, "edits": rows}))


if __name__ == "__main__":
    flags.run(main)
