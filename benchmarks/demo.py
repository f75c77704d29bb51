"""The demo: pictures by the pretrained models, then the main job in small: drawn faces -> a model ->
pictures -> how well they follow their attributes.

    make demo

Runs the project's own commands and prints each before it starts. The recipe of the model that is trained
here is configs/demo.yaml. `drawn64_probe`, which never saw a generated picture, judges fresh samples.
All is shown on outputs/demo/index.html. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import devices
import flags
from config import Config, count, flag
from figures.figures import CURVES

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("outputs/demo")
FACES = Path("data/demo_faces")
CHECKPOINT = OUT / "checkpoints" / "best_model.pth"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; }
img { max-width: max(100%, 40rem); height: auto; display: block; }
figure { margin: 1.5rem 0; overflow-x: auto; } figcaption { color: #444; margin-top: .3rem; }
code { display: block; white-space: pre-wrap; overflow-wrap: anywhere; background: #f3f3f3;
       padding: .5rem .8rem; font-size: .85rem; }
.numbers { columns: 16rem; column-gap: 3rem; }
.numbers div { display: flex; justify-content: space-between; gap: 1rem; }
"""
CAPTIONS = {  # of the pictures that manipulate.py and visualize.py write
    "samples.png": "New faces. What was requested stands under each.",
    "interpolation.gif": "From one request to another, as a film.",
    "interpolation.png": "The same, frame by frame: one noise, attributes in between.",
    "edit.png": "A face, each attribute changed on its own, and all together.",
    "edit_strength.png": "The same edits over their strength.",
    **{f"curves_{group}.png": text for group, text in CURVES.items()},
}


@dataclass(frozen=True)
class DemoConfig(Config):
    """Flags of the demo."""

    minutes: float | None = flag(None, "training time; none given: that of the recipe", above=0)
    num_images: int = count(6000, "synthetic faces to draw")
    num_samples: int = count(128, "faces of each model to draw for the probe")


def command(*arguments: object) -> str:
    """Run one of the project's scripts as a user would. If it fails, the demo ends. Returns the command
    line."""
    argv = list(map(str, arguments))
    print("\n$ python", " ".join(argv), flush=True)
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return " ".join(["python", *argv])


def section(title: str, text: str, commands: Sequence[str], folders: Sequence[Path]) -> str:
    """HTML of a part of the page: those pictures of CAPTIONS that the folders hold, and the commands
    that made them."""
    parts = [f"<h2>{escape(title)}</h2><p>{escape(text)}</p>"]
    for file in (folder / name for folder in folders for name in CAPTIONS):
        if file.is_file():
            link, caption = escape(file.relative_to(OUT).as_posix()), escape(CAPTIONS[file.name])
            picture = f'<a href="{link}"><img src="{link}" alt="{caption}"></a>'
            parts.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    return "\n".join([*parts, *(f"<code>{escape(command)}</code>" for command in commands)])


def write_page(text: str, sections: Sequence[str], numbers: dict[str, dict[str, float]]) -> None:
    """Write index.html: an introduction, sections, and tables (title -> name -> value)."""
    title = "Attribute-conditioned face diffusion"
    parts = [f"<h1>{title}</h1><p>{escape(text)}</p>", *sections]
    for name, values in numbers.items():
        rows = (f"<div><span>{escape(k)}</span><span>{v:.3f}</span></div>" for k, v in values.items())
        parts.append(f'<h2>{escape(name)}</h2><div class="numbers">{"".join(rows)}</div>')
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(parts)
    html = f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
    (OUT / "index.html").write_text(html, encoding="utf-8")


def clear_face() -> Path:
    """The first held-out drawn face that is not blurry."""
    from attributes import attr_dict
    from celeba_dataset import read_celeba

    faces = read_celeba(FACES)
    clear = next(row for row in faces.rows("test") if faces.attributes[row, attr_dict["Blurry"]] < 0)
    return Path(faces.pictures[clear].path).relative_to(ROOT)


def manipulate_drawn(checkpoint: Path | str, folder: Path) -> str:
    """Generate, interpolate and edit drawn faces. Returns the command."""
    return command(
        *("manipulate.py", "--checkpoint", checkpoint, "--output_dir", folder, "--num_samples", 16),
        *("--source_image", clear_face(), "--attributes", "Eyeglasses=1", "Smiling=1", "Bangs=1"),
        *("--edit_guide_scale", 0, "--t_start", 0.9),  # nearest to the truth
        *("--tries", 1),  # after minutes of training, most faces lie far from the training pictures
    )


def pretrained_drawn() -> str:
    """Pictures by the pretrained model of drawn faces."""
    folder = OUT / "drawn64"
    made = manipulate_drawn("drawn64", folder)
    text = "Each was requested by three attributes. The edits start from a face that a program drew."
    return section("Drawn faces, by the pretrained model", text, [made], [folder])


def pretrained_celeba() -> str:
    """Pictures by the pretrained model of CelebA's faces. It edits a face that it drew itself. Each
    command has a folder of its own, with the manifest that makes its pictures again."""
    folder, edits = OUT / "celeba128", OUT / "celeba128_edits"
    made = [
        command("manipulate.py", "--output_dir", folder, "--num_samples", 2),
        command(
            *("manipulate.py", "--mode", "edit", "--output_dir", edits),
            *("--source_image", folder / "samples" / "000.png"),
            *("--attributes", "Smiling=0", "Eyeglasses=1", "Black_Hair=1"),
        ),
    ]
    text = "Nobody in these pictures exists: the model edits a face that it drew itself."
    return section("CelebA's faces, by the pretrained model", text, made, [folder, edits])


def trained_here(faces: str, minutes: float | None) -> tuple[str, float]:
    """Train a model on drawn faces, and draw with it. ``faces`` is the command that drew them. Returns
    the section and how many minutes the training took."""
    limit = [] if minutes is None else ["--max_minutes", minutes]
    started = time.time()
    train = command(
        *("train.py", "--config", "configs/demo.yaml", "--data_root", FACES, *limit),
        *("--save_dir", OUT / "checkpoints", "--log_dir", OUT / "logs"),
    )
    took = (time.time() - started) / 60
    folder = OUT / "trained"
    draw = manipulate_drawn(CHECKPOINT, folder)
    curves = command("visualize.py", "curves", "--log_dir", OUT / "logs", "--output_dir", folder)
    text = f"After {took:.1f} minutes of training on this machine, from nothing."
    commands = [faces, train, draw, curves]
    return section("Drawn faces, by the model trained here", text, commands, [folder]), took


def judge(checkpoints: dict[str, Path | str], config: DemoConfig) -> dict[str, dict[str, float]]:
    """How well the probe sees attributes in samples of several models, drawn under held-out attribute
    rows, and in the held-out faces themselves: balanced accuracies."""
    import torch
    from probe import predict

    from celeba_dataset import CelebADataset
    from classifiers.probe import PROBE, load_reader
    from config import SamplingConfig
    from diffusion_model import load_model
    from evaluation.metrics import balanced_accuracy
    from studio import draw
    from synthetic_faces.benchmark import WHOLE

    held_out = CelebADataset(FACES, "test", 64, cache_dir="data/cache")
    probe = load_reader(PROBE, held_out.attribute_names, WHOLE)
    attributes = held_out.attributes[: config.num_samples]
    sampling = SamplingConfig(num_inference_steps=10, tries=1)
    accuracies = {}
    for name, path in checkpoints.items():
        with devices.autocast("auto", "cpu"):
            samples = draw(load_model(path), attributes, sampling, progress=True)
        accuracies[name] = balanced_accuracy(predict(probe, samples), attributes)
    faces = torch.from_numpy(held_out.images[:].copy())
    accuracies["held-out faces"] = balanced_accuracy(predict(probe, faces), held_out.attributes)
    tables = {}
    for name, values in accuracies.items():
        named = sorted(zip(held_out.attribute_names, values.tolist(), strict=True))
        tables[name] = {each: value for each, value in named if value == value}  # NaN: never requested
    return tables


def main() -> None:
    config = flags.parse(DemoConfig, __doc__)
    started = float(os.environ.get("DEMO_STARTED", time.time()))
    os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)
    celeba = pretrained_celeba()
    print(f"\nfirst pictures: {OUT}/celeba128/samples.png", flush=True)
    faces = command(
        *("-m", "synthetic_faces", "--out", FACES, "--num_images", config.num_images),
        *("--image_size", 64, "--seed", 0, "--floor", 0.1),  # rare attributes need longer training
    )
    drawn = pretrained_drawn()
    here, minutes = trained_here(faces, config.minutes)
    print("\njudging samples with the probe of drawn faces", flush=True)
    accuracies = judge({"pretrained": "drawn64", "trained here": CHECKPOINT}, config)
    mean = {name: sum(values.values()) / len(values) for name, values in accuracies.items()}
    seconds = round(time.time() - started, 1)
    write_page(
        f"Made on this machine in {seconds / 60:.0f} minutes, installation included.",
        [celeba, drawn, here],
        {
            f"Attributes seen in {name}: balanced accuracy, {mean[name]:.3f} on average": values
            for name, values in accuracies.items()
        },
    )
    print(f"\nopen {OUT}/index.html in a browser")
    result = {
        "attribute_balanced_accuracy": round(mean["trained here"], 4),
        "pretrained_balanced_accuracy": round(mean["pretrained"], 4),
        "on_held_out_faces": round(mean["held-out faces"], 4),
        "training_minutes": round(minutes, 1),
        "seconds": seconds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    flags.run(main)
