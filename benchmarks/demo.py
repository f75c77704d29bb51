"""The demo: pictures by the pretrained models, then the main job in small: drawn faces -> a model ->
pictures -> how well they follow their attributes.

    make demo

Runs the project's own commands and prints each before it starts. The recipe of the model that is trained
here is configs/demo.yaml. The probe of probe.py, which never saw a generated picture, judges
fresh samples. All is shown on outputs/demo/index.html. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_page import Section, write_page

import devices
import flags
from config import Config, count, flag

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("outputs/demo")
FACES = Path("data/demo_faces")
CHECKPOINT = OUT / "checkpoints" / "best_model.pth"


@dataclass(frozen=True)
class DemoConfig(Config):
    """Flags of the demo."""

    minutes: float | None = flag(None, "training time; none given: that of the recipe", above=0)
    num_images: int = count(6000, "synthetic faces to draw")
    num_samples: int = count(128, "faces of each model to draw for the probe")
    num_probe_images: int = count(8000, "faces to train the probe on")


def command(*arguments: object) -> str:
    """Run one of the project's scripts as a user would. If it fails, the demo ends. Returns the command
    line."""
    argv = list(map(str, arguments))
    print("\n$ python", " ".join(argv), flush=True)
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return " ".join(["python", *argv])


def show(name: str, text: str, commands: list[str], *folders: Path) -> Section:
    """A section of the page for the folders that manipulate.py wrote to."""
    captions = {
        "samples.png": "New faces. What was asked for stands under each.",
        "interpolation.gif": "From one request to another, as a film.",
        "interpolation.png": "The same, frame by frame: one noise, attributes in between.",
        "edit.png": "A face, each attribute changed alone, and all together.",
        "edit_strength.png": "The same edits over their strength.",
    }
    pictures = [(folder / file, caption) for folder in folders for file, caption in captions.items()]
    return Section(name, text, commands, pictures)


def clear_face() -> Path:
    """The first held-out drawn face that is not blurry."""
    from attributes import attr_dict
    from celeba_dataset import read_celeba

    source = read_celeba(FACES).part("test")
    clear = source.attributes[:, attr_dict["Blurry"]] < 0
    return Path(source.pictures[int(clear.argmax())].path).relative_to(ROOT)


def manipulate_drawn(checkpoint: Path | str, folder: Path) -> str:
    """Generate, interpolate and edit drawn faces. Returns the command."""
    return command(
        *("manipulate.py", "--checkpoint", checkpoint, "--output_dir", folder, "--num_samples", 16),
        *("--source_image", clear_face(), "--attributes", "Eyeglasses=1", "Smiling=1", "Bangs=1"),
        *("--edit_guide_scale", 0, "--t_start", 0.9),  # nearest to the truth
    )


def pretrained_drawn() -> Section:
    """Pictures by the pretrained model of drawn faces."""
    folder = OUT / "drawn64"
    made = manipulate_drawn("drawn64", folder)
    text = "Each was asked for by three attributes. The edits start from a face that a program drew."
    return show("Drawn faces, by the pretrained model", text, [made], folder)


def pretrained_celeba() -> Section:
    """Pictures by the pretrained model of CelebA's faces. It edits a face that it drew itself. Each
    command has a folder of its own, with the manifest that makes its pictures again."""
    folder, edits = OUT / "celeba64", OUT / "celeba64_edits"
    made = [
        command("manipulate.py", "--output_dir", folder, "--num_samples", 2),
        command(
            *("manipulate.py", "--mode", "edit", "--output_dir", edits),
            *("--source_image", folder / "samples" / "000.png"),
            *("--attributes", "Smiling=0", "Eyeglasses=1", "Black_Hair=1"),
        ),
    ]
    text = "Nobody in these pictures exists: the model edits a face that it drew itself."
    return show("CelebA's faces, by the pretrained model", text, made, folder, edits)


def trained_here(faces: str, minutes: float | None) -> tuple[Section, float]:
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
    section = show("Drawn faces, by the model trained here", text, [faces, train, draw, curves], folder)
    plots = [(path, "The losses of the training.") for path in sorted(folder.glob("curves*.png"))]
    return Section(section.title, text, section.commands, [*section.pictures, *plots]), took


def judge(checkpoints: dict[str, Path | str], config: DemoConfig) -> dict[str, dict[str, float]]:
    """How well the probe sees attributes in samples of several models, drawn under held-out attribute
    rows, and in the held-out faces themselves: balanced accuracies."""
    import torch
    from probe import draw_labelled, predict, train_probe
    from tqdm import tqdm

    from celeba_dataset import CelebADataset
    from config import SamplingConfig
    from diffusion_model import load_model
    from evaluation.metrics import balanced_accuracy
    from studio import draw

    probe = train_probe(*draw_labelled(config.num_probe_images, 64, seed=0))
    held_out = CelebADataset(FACES, "test", 64, cache_dir="data/cache")
    attributes = held_out.attributes[: config.num_samples]
    sampling = SamplingConfig(num_inference_steps=10)
    found = {}
    for name, path in checkpoints.items():
        with tqdm(total=len(attributes), desc=f"faces to judge: {name}", unit="img") as bar:
            model, autocast = load_model(path), devices.autocast("auto", "cpu")
            samples = draw(model, attributes, sampling, autocast, bar=bar)
        found[name] = balanced_accuracy(predict(probe, samples), attributes)
    faces = torch.from_numpy(held_out.images[:].copy())
    found["held-out faces"] = balanced_accuracy(predict(probe, faces), held_out.attributes)
    tables = {}
    for name, values in found.items():
        named = sorted(zip(held_out.attribute_names, values.tolist(), strict=True))
        tables[name] = {each: value for each, value in named if value == value}  # nan: never asked for
    return tables


def main() -> None:
    config = flags.parse(DemoConfig, __doc__)
    started = float(os.environ.get("DEMO_STARTED", time.time()))
    os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)
    faces = command(
        *("-m", "synthetic_faces", "--out", FACES, "--num_images", config.num_images),
        *("--image_size", 64, "--seed", 0, "--floor", 0.1),  # rare attributes need longer training
    )
    sections = [pretrained_drawn(), pretrained_celeba()]
    print(f"\nfirst pictures: {OUT}/drawn64/samples.png, {OUT}/celeba64/samples.png", flush=True)
    here, minutes = trained_here(faces, config.minutes)
    print("\njudging samples with a probe trained on rendered faces", flush=True)
    accuracies = judge({"pretrained": "drawn64", "trained here": CHECKPOINT}, config)
    mean = {name: sum(values.values()) / len(values) for name, values in accuracies.items()}
    seconds = round(time.time() - started, 1)
    write_page(
        OUT / "index.html",
        "Attribute-conditioned face diffusion",
        f"Made on this machine in {seconds / 60:.0f} minutes, installation included.",
        [*sections, here],
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
