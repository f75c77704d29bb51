"""The demo: synthetic faces -> a small model -> pictures -> how well they follow their attributes.

    make demo

Runs the project's own commands, each printed before it starts, and then judges fresh samples with the
probe of synthetic_probe.py, which never saw a generated picture. Results go to outputs/demo/; the last
line is one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("outputs/demo")
FACES = Path("data/demo_faces")
CHECKPOINT = OUT / "checkpoints" / "best_model.pth"


def command(script: str, *flags: object) -> None:
    """Run one of the project's scripts as a user would, and stop here if it fails."""
    argv = [script, *map(str, flags)]
    print("\n$ python", " ".join(argv), flush=True)
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def judge(num_samples: int, num_probe_images: int) -> dict:
    """Draw faces under held-out attribute rows, and let the probe say which attributes it sees."""
    import torch
    from synthetic_probe import predict, train_probe
    from tqdm import tqdm

    from celeba_dataset import CelebADataset
    from checkpoint import load_model
    from evaluation import balanced_accuracy, draw
    from model_config import SamplingConfig
    from pictures import save_grid

    probe = train_probe(num_images=num_probe_images)
    held_out = CelebADataset(FACES, "test", 64, cache_dir="data/cache")
    attributes = held_out.attributes[:num_samples]
    sampling = SamplingConfig(cfg_scale=2.0, num_inference_steps=10)
    with tqdm(total=num_samples, desc="faces to judge", unit="img") as bar:
        model, autocast = load_model(CHECKPOINT), cli.autocast("auto", "cpu")
        samples = draw(model, attributes, sampling, autocast, bar=bar)
    accuracy = balanced_accuracy(predict(probe, samples), attributes)
    names = held_out.attribute_names
    for value, name in sorted(zip(accuracy.tolist(), names, strict=True)):
        print(f"{name:<22}{value:6.3f}")
    title = f"samples under held-out rows, cfg_scale {sampling.cfg_scale:g}"
    save_grid(OUT / "judged.png", samples[:64].numpy(), [""] * len(samples[:64]), 16, title=title)
    real = balanced_accuracy(
        predict(probe, torch.from_numpy(held_out.images[:].copy())), held_out.attributes
    )
    return {
        "attribute_balanced_accuracy": round(float(accuracy.nanmean()), 4),
        "worst_attribute": names[int(accuracy.nan_to_num(1).argmin())],
        "on_held_out_faces": round(float(real.nanmean()), 4),
        "samples": len(attributes),
    }


def main() -> None:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--minutes", type=cli.positive, default=4.5, help="training time")
    add("--num_images", type=cli.positive_int, default=6000, help="synthetic faces to draw")
    add("--num_samples", type=cli.positive_int, default=192, help="faces to draw for the probe")
    add("--num_probe_images", type=cli.positive_int, default=8000, help="faces to train the probe on")
    args = parser.parse_args()
    started = float(os.environ.get("DEMO_STARTED", time.time()))
    os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)
    command(
        *("synthetic_faces.py", "--out", FACES, "--num_images", args.num_images),
        *("--image_size", 64, "--seed", 0, "--floor", 0.1),  # rare attributes need longer training
    )
    command(
        *("train.py", "--data_root", FACES, "--max_minutes", args.minutes, "--batch_size", 16),
        *("--patch_size", 2, "--channels", 48, 96, 192, "--blocks_per_level", 1),
        *("--self_attention_levels", "--cross_attention_levels"),  # both at the bottleneck only
        *("--latent_dim", 128, "--attr_dropout", 0.1, "--latent_dropout", 0.85),
        *("--prediction", "x0", "--lr", 1.5e-3, "--warmup_steps", 50, "--ema_decay", 0.998),
        *("--val_images", 128, "--save_dir", OUT / "checkpoints", "--log_dir", OUT / "logs"),
    )
    command(
        *("manipulate.py", "--checkpoint", CHECKPOINT, "--data_root", FACES, "--output_dir", OUT),
        *("--num_samples", 16, "--num_inference_steps", 30, "--manipulation_strength", 1),
        *("--cfg_scale", 1.5, "--from", "Blond_Hair=1", "Smiling=0"),
        *("--to", "Blond_Hair=0", "Black_Hair=1", "Smiling=1"),
    )
    print("\njudging samples with a probe trained on rendered faces", flush=True)
    result = judge(args.num_samples, args.num_probe_images)
    print(f"pictures: {OUT}/samples.png, interpolation.png, interpolation.gif, edit.png, judged.png")
    print(json.dumps(result | {"seconds": round(time.time() - started, 1)}))


if __name__ == "__main__":
    cli.run(main)
