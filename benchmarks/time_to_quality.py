"""Equal minutes, equal cores, equal faces: what ours and its peers draw after training from scratch.

    python benchmarks/time_to_quality.py --data_root /path/to/celeba --minutes 15

The peers are diffusers' UNet2DModel with its DDPM recipe, and denoising-diffusion-pytorch's Unet and
GaussianDiffusion, at widths a CPU can train. Each runs once as it ships (float32) and once tuned:
bfloat16, channels-last, our GFLOP per image to within a tenth, a learning rate of 1e-3, our annealing,
EMA and allocator's setting, fused AdamW. Ours is configs/small.yaml.

The peers are unconditional. Ours draws under the attribute rows of the validation split, guided and not,
and unconditionally. One judge measures all models against the test split.

Prints the table and saves a grid of each; the last line is one JSON object.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo import command

import devices
import flags
from attributes import CELEBA_ATTRIBUTES
from autoencoder_model import PixelFirstStage
from celeba_dataset import CelebADataset
from checkpoint import EMA, load_checkpoint
from classifiers.judge import load_judge
from config import CFG_SCALE, FEWEST_SAMPLES, Config, SamplingConfig, count, flag
from diffusion_model import load_model
from evaluation.base import read
from evaluation.metrics import balanced_accuracy, distances
from evaluation.tables import table
from figures.grids import save_grid
from image_data.cached import random_flip
from studio import draw
from synthetic_faces.dataset import write_dataset
from training.process import keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
BATCH = 16  # of the peers
TUNED_LR, TUNED_EMA = 1e-3, 0.998


@dataclass(frozen=True)
class Options(Config):
    """Flags of this benchmark."""

    data_root: str | None = flag(None, "folder in CelebA's layout; none given: draws synthetic faces")
    minutes: float = flag(15.0, "training time of each", above=0)
    num_samples: int = count(250, "behind each figure", low=FEWEST_SAMPLES)
    num_inference_steps: int = count(50, "of the peers' DDIM")
    judge: str | None = flag(None, "of evaluate.py judge; none given: trains one in --output_dir")
    judge_epochs: int = count(8, "passes over the training images")
    cache_dir: str = flag(str(ROOT / "data" / "cache"), "where decoded images are kept")
    output_dir: str = flag("./outputs/time_to_quality", "folder to write to")


def annealed(step: int, done: float) -> float:
    """Linear warm-up over 100 steps, then a cosine to zero over the time."""
    return min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))


class Diffusers:
    """UNet2DModel, eps prediction, AdamW at 1e-4 with warm-up and cosine annealing, as in diffusers'
    training tutorial. Its 500 steps of warm-up, more than there are here, are cut to 100."""

    optimizer, lr, betas, anneals, ema_decay = "AdamW", 1e-4, (0.9, 0.999), True, 0.999

    def __init__(self, channels: list[int]):
        plain = len(channels) - 1
        self.network = UNet2DModel(
            sample_size=64,
            block_out_channels=channels,
            norm_num_groups=math.gcd(32, *channels),
            down_block_types=(*["DownBlock2D"] * plain, "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * plain),
        )
        self.noising, self.sampler = DDPMScheduler(1000), DDIMScheduler(1000)

    def loss(self, network, x0):
        """Mean squared error of the noise."""
        eps, t = torch.randn_like(x0), torch.randint(1000, (len(x0),))
        output = network(self.noising.add_noise(x0, eps, t), t).sample
        return (output.float() - eps).pow(2).mean()

    def sample(self, network, number: int, num_steps: int):
        """Images in [-1, 1] by DDIM."""
        self.sampler.set_timesteps(num_steps)
        x = torch.randn(number, 3, 64, 64)
        for t in self.sampler.timesteps:
            x = self.sampler.step(network(x, t).sample.float(), t, x).prev_sample
        return x


class DDPMPytorch:
    """Unet and GaussianDiffusion with the settings in denoising-diffusion-pytorch's README: a constant
    learning rate of 8e-5. Its averaged weights, updated there every tenth step, are updated at every
    step."""

    optimizer, lr, betas, anneals, ema_decay = "Adam", 8e-5, (0.9, 0.99), False, 0.995

    def __init__(self, dim: int):
        self.network = Unet(dim=dim, dim_mults=(1, 2, 4, 8), flash_attn=False)
        self.build = lambda network, steps: GaussianDiffusion(
            network, image_size=64, timesteps=1000, sampling_timesteps=steps
        )
        self.trainer = self.build(self.network, None)

    def loss(self, network, x0):
        """GaussianDiffusion's own loss. It takes images in [0, 1]."""
        return self.trainer((x0 + 1) / 2)

    def sample(self, network, number: int, num_steps: int):
        """Images in [-1, 1] by DDIM."""
        return self.build(network, num_steps).sample(batch_size=number) * 2 - 1


PEERS = {  # the class, its size, and whether it is tuned
    "diffusers tuned": (Diffusers, [16, 56, 96, 168], True),
    "ddpm-pytorch tuned": (DDPMPytorch, 28, True),
    "diffusers as shipped": (Diffusers, [32, 64, 128, 256], False),
    "ddpm-pytorch as shipped": (DDPMPytorch, 32, False),
}
SCALES = (0.0, 1.0, CFG_SCALE)  # of our guidance: 0 asks for nothing, as the peers do


def train_peer(peer, images, minutes: float, tuned: bool, label: str):
    """Train for that long on uint8 images. Returns the averaged network and how many images it saw."""
    torch.manual_seed(0)
    network, step = peer.network, 0
    if tuned:
        network.to(memory_format=torch.channels_last)
    ema = EMA(network, TUNED_EMA if tuned else peer.ema_decay)
    if tuned:
        lr, optimizer = TUNED_LR, torch.optim.AdamW(network.parameters(), fused=True)
    else:
        lr, kind = peer.lr, getattr(torch.optim, peer.optimizer)
        optimizer = kind(network.parameters(), betas=peer.betas)
    anneals = tuned or peer.anneals
    started = time.perf_counter()
    with keep_freed_memory("cpu" if tuned else ""), tqdm(desc=label, unit="image") as bar:
        while (done := (time.perf_counter() - started) / (60 * minutes)) < 1:
            rows = torch.randint(len(images), (BATCH,))
            x0 = PixelFirstStage().encode(random_flip(torch.as_tensor(images[rows.numpy()])))
            x0 = x0 if tuned else x0.contiguous()
            for group in optimizer.param_groups:
                group["lr"] = lr * (annealed(step, done) if anneals else 1.0)
            with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
                loss = peer.loss(network, x0)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(network, step)
            step += 1
            bar.update(BATCH)
    return ema.model, BATCH * step


def draw_peer(peer, network, number: int, num_steps: int, tuned: bool):
    """Images uint8 (N, 64, 64, 3)."""
    torch.manual_seed(1)
    parts = []
    for start in range(0, number, 50):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            x0 = peer.sample(network, min(50, number - start), num_steps)
        parts.append(PixelFirstStage().decode(x0))
    return torch.cat(parts)


def train_ours(options: Options, root: Path, folder: Path):
    """The model that train.py gives, and how many images it saw."""
    data = ("--data_root", root, "--cache_dir", options.cache_dir, "--max_minutes", options.minutes)
    files = ("--save_dir", folder, "--log_dir", folder / "logs")
    command("train.py", "--config", "configs/small.yaml", "--device", "cpu", *data, *files)
    state = load_checkpoint(folder / "last.pth")
    return load_model(folder / "best_model.pth"), state["recipe"]["batch_size"] * state["step"]


def find_judge(options: Options, root: Path) -> Path:
    """The file of the judge, which is trained where there is none."""
    judge = Path(options.judge or Path(options.output_dir) / "judge.pth").resolve()
    if not judge.is_file():
        data = ("--data_root", root, "--cache_dir", options.cache_dir)
        command("evaluate.py", "judge", *data, "--judge", judge, "--judge_epochs", options.judge_epochs)
    return judge


class Contest:
    """What all are measured by, and the results so far: name -> figures."""

    def __init__(self, options: Options, root: Path):
        self.options, self.out = options, Path(options.output_dir).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.judge, facts = load_judge(find_judge(options, root), CELEBA_ATTRIBUTES, 178)
        splits = ("train", "val", "test")
        data = [CelebADataset(root, split, 64, cache_dir=options.cache_dir) for split in splits]
        self.train_set, val, test = data
        self.rows = val.attributes[: options.num_samples]
        self.reference = read(self.judge, test.images)[0]
        self.results: dict[str, dict] = {}
        self.protocol = {
            "minutes": options.minutes,
            "num_samples": len(self.rows),
            "reference": len(test),
            "judge": facts["hash"],
        }

    def measure(self, name: str, images, seen: int) -> None:
        """Measure one contender's images, and write a grid."""
        features, logits = read(self.judge, images)
        row = distances(features, self.reference) | {"images_seen": seen}
        if name.startswith("ours"):  # the peers take no request
            row["attribute_balanced_accuracy"] = float(balanced_accuracy(logits, self.rows).nanmean())
        self.results[name] = row
        print(f"{name}: Frechet {row['frechet']:.2f} after {seen} images", flush=True)
        path, first = self.out / f"{name.replace(' ', '_')}.png", images[:32].numpy()
        save_grid(path, first, [""] * len(first), 8, title=f"{name}, {self.options.minutes:g} minutes")

    def summary(self) -> dict:
        """Print the table. Returns the figures of the last line."""
        rows = [([name, str(row["images_seen"])], row) for name, row in self.results.items()]
        print(*table(["", "images seen"], rows), sep="\n")
        unconditional, ours = (self.results[f"ours, cfg_scale {SCALES[i]:g}"] for i in (0, -1))

        def over_best(row: dict, kind: str) -> float:
            peers = [peer["frechet"] for name, peer in self.results.items() if name.endswith(kind)]
            return round(row["frechet"] / min(peers), 4)

        return {
            "frechet_over_best_peer": over_best(ours, "as shipped"),
            "frechet_over_best_tuned_peer": over_best(ours, "tuned"),
            "unconditional_over_best_tuned_peer": over_best(unconditional, "tuned"),
            "attribute_balanced_accuracy": round(ours["attribute_balanced_accuracy"], 4),
        } | self.protocol


def main() -> None:
    options = flags.parse(Options, __doc__)
    synthetic = ROOT / "data" / "synthetic_faces_64"
    root = options.data_root or write_dataset(synthetic, num_images=6000, image_size=64, seed=0)
    root = Path(root).resolve()
    contest = Contest(options, root)
    model, seen = train_ours(options, root, contest.out / time.strftime("run_%Y%m%d_%H%M%S"))
    for scale in SCALES:
        sampling = SamplingConfig(cfg_scale=scale, tries=1)
        with devices.autocast("auto", "cpu"):
            images = draw(model, contest.rows, sampling, progress=True)
        contest.measure(f"ours, cfg_scale {scale:g}", images, seen)
    for name, (kind, size, tuned) in PEERS.items():
        peer = kind(size)
        network, seen = train_peer(peer, contest.train_set.images, options.minutes, tuned, name)
        drawn = draw_peer(peer, network, len(contest.rows), options.num_inference_steps, tuned)
        contest.measure(name, drawn, seen)
    print(json.dumps(contest.summary()))


if __name__ == "__main__":
    flags.run(main)
