"""Equal minutes, equal cores, equal faces: what ours and its peers draw after training from scratch.

    python benchmarks/time_to_quality.py --data_root /path/to/celeba --minutes 15

Peers: diffusers' UNet2DModel with its DDPM recipe, and denoising-diffusion-pytorch's Unet and
GaussianDiffusion, at widths a CPU can train; each once as it ships (float32) and once tuned (bfloat16,
channels-last, a network of about our compute, our learning rate and its annealing). They are
unconditional; ours draws under the attribute rows of the validation split. Every model is then judged by
the same evaluation classifier, against the test split. Prints the table, saves a grid of each; the last
line is one JSON object.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

ROOT = Path(__file__).resolve().parents[1]
RECIPE = (
    *("--patch_size", "2", "--channels", "64", "128", "256", "--blocks_per_level", "1"),
    *("--self_attention_levels", "--cross_attention_levels", "--latent_dim", "128"),
    *("--prediction", "x0", "--lr", "1e-3", "--warmup_steps", "100", "--ema_decay", "0.998"),
    *("--attr_dropout", "0.15", "--latent_dropout", "0.8", "--val_images", "128", "--device", "cpu"),
)
TUNED_LR = 1e-3


class Diffusers:
    """UNet2DModel, eps prediction, AdamW 1e-4 with a warm-up, as in diffusers' training tutorial."""

    def __init__(self, channels: tuple[int, ...]):
        from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

        plain = len(channels) - 1
        self.network = UNet2DModel(
            sample_size=64,
            block_out_channels=channels,
            norm_num_groups=math.gcd(32, *channels),
            down_block_types=(*["DownBlock2D"] * plain, "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * plain),
        )
        self.noising, self.sampler, self.lr = DDPMScheduler(1000), DDIMScheduler(1000), 1e-4
        self.ema_decay = 0.999

    def loss(self, network, x0):
        """Mean squared error of the noise."""
        import torch

        eps, t = torch.randn_like(x0), torch.randint(1000, (len(x0),))
        output = network(self.noising.add_noise(x0, eps, t), t).sample
        return (output.float() - eps).pow(2).mean()

    def sample(self, network, number: int, num_steps: int):
        """Images in [-1, 1] by DDIM."""
        import torch

        self.sampler.set_timesteps(num_steps)
        x = torch.randn(number, 3, 64, 64)
        for t in self.sampler.timesteps:
            x = self.sampler.step(network(x, t).sample.float(), t, x).prev_sample
        return x


class DDPMPytorch:
    """Unet and GaussianDiffusion as in denoising-diffusion-pytorch's README, learning rate 8e-5."""

    def __init__(self, dim: int):
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet

        self.network = Unet(dim=dim, dim_mults=(1, 2, 4, 8), flash_attn=False)
        self.build = lambda network, steps: GaussianDiffusion(
            network, image_size=64, timesteps=1000, sampling_timesteps=steps
        )
        self.lr, self.ema_decay = 8e-5, 0.995
        self.trainer = self.build(self.network, None)

    def loss(self, network, x0):
        """GaussianDiffusion's own; it takes images in [0, 1]."""
        return self.trainer((x0 + 1) / 2)

    def sample(self, network, number: int, num_steps: int):
        """Images in [-1, 1] by DDIM."""
        return self.build(network, num_steps).sample(batch_size=number) * 2 - 1


def train_peer(peer, images, minutes: float, tuned: bool, label: str):
    """Train for that long on uint8 images; the averaged network and how many images it saw."""
    import copy

    import torch
    from tqdm import tqdm

    from celeba_dataset import random_flip

    torch.manual_seed(0)
    network, batch_size, seen = peer.network, 16, 0
    if tuned:
        network.to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=peer.lr)
    started = time.perf_counter()
    with tqdm(desc=label, unit="image") as bar:
        while time.perf_counter() - started < 60 * minutes:
            rows = torch.randint(len(images), (batch_size,))
            batch = random_flip(torch.as_tensor(images[rows.numpy()]))
            x0 = batch.permute(0, 3, 1, 2).float() / 127.5 - 1
            rate = peer.lr * min(1, (seen + 1) / (100 * batch_size))
            if tuned:
                done = (time.perf_counter() - started) / (60 * minutes)
                rate *= TUNED_LR / peer.lr * 0.5 * (1 + math.cos(math.pi * min(1, done)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
                loss = peer.loss(network, x0)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seen += batch_size
            step = seen // batch_size
            decay = min(peer.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
            bar.update(batch_size)
    return average, seen


def draw_peer(peer, network, number: int, num_steps: int, tuned: bool):
    """uint8 (N, 64, 64, 3)."""
    import torch

    torch.manual_seed(1)
    parts = []
    for start in range(0, number, 50):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            parts.append(peer.sample(network, min(50, number - start), num_steps).float())
    images = torch.cat(parts).clamp(-1, 1)
    return ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def train_ours(args, folder: Path):
    """train.py as a user runs it; the checkpoint's model and how many images it saw."""
    from checkpoint import load_checkpoint, load_model

    argv = [
        sys.executable,
        "train.py",
        "--data_root",
        str(Path(args.data_root).resolve()),
        "--cache_dir",
        args.cache_dir,
    ]
    argv += ["--max_minutes", str(args.minutes), "--batch_size", "16", *RECIPE]
    argv += ["--save_dir", str(folder), "--log_dir", str(folder / "logs")]
    if subprocess.run(argv, cwd=ROOT, check=False).returncode:
        raise ValueError("train.py failed, see above")
    return load_model(folder / "best_model.pth"), 16 * load_checkpoint(folder / "last.pth")["step"]


def main() -> None:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--data_root", required=True, help="folder in CelebA's layout")
    add("--minutes", type=cli.positive, default=15.0, help="training time of each")
    add("--num_samples", type=cli.number(int, 32), default=500, help="behind each figure")
    add("--num_inference_steps", type=cli.positive_int, default=50, help="of the peers' DDIM")
    add("--classifier", default="./checkpoints/evaluation_classifier.pth")
    add("--cfg_scale", type=cli.non_negative, default=1.5)
    add("--cache_dir", default=str(ROOT / "data" / "cache"))
    add("--output_dir", default="./outputs/time_to_quality")
    args = parser.parse_args()

    import torch

    from celeba_dataset import CELEBA_ATTRIBUTES, CelebADataset
    from evaluation import balanced_accuracy, distances, draw, load_classifier, read
    from model_config import SamplingConfig
    from visualize import save_grid

    out = Path(args.output_dir).resolve()
    classifier, facts = load_classifier(args.classifier, CELEBA_ATTRIBUTES, 178)
    train_set, asked, real = (
        CelebADataset(args.data_root, split, 64, cache_dir=args.cache_dir)
        for split in ("train", "val", "test")
    )
    reference = read(classifier, real.images)[0]
    rows = asked.attributes[torch.arange(args.num_samples) % len(asked)]
    peers = {
        "diffusers as shipped": (Diffusers((32, 64, 128, 256)), False),
        "diffusers tuned": (Diffusers((16, 32, 64, 128)), True),
        "ddpm-pytorch as shipped": (DDPMPytorch(32), False),
        "ddpm-pytorch tuned": (DDPMPytorch(16), True),
    }
    table: dict[str, dict] = {}

    def judge(name: str, images, seen: int) -> None:
        features, logits = read(classifier, images)
        table[name] = distances(features, reference) | {"images_seen": seen}
        print(f"{name}: Frechet {table[name]['frechet']:.2f} after {seen} images", flush=True)
        accuracy = float(balanced_accuracy(logits, rows).nanmean())
        table[name]["attribute_balanced_accuracy"] = accuracy
        path = out / f"{name.replace(' ', '_')}.png"
        save_grid(path, images[:32].numpy(), [""] * 32, 8, title=f"{name}, {args.minutes:g} minutes")

    model, seen = train_ours(args, out / time.strftime("run_%Y%m%d_%H%M%S"))
    sampling = SamplingConfig(cfg_scale=args.cfg_scale)
    judge("ours", draw(model, rows, sampling, cli.autocast("auto", "cpu")), seen)
    for name, (peer, tuned) in peers.items():
        network, seen = train_peer(peer, train_set.images, args.minutes, tuned, name)
        judge(name, draw_peer(peer, network, args.num_samples, args.num_inference_steps, tuned), seen)

    print(f"{'':<26}{'images seen':>12}{'Frechet':>10}{'coverage':>10}{'attributes':>12}")
    for name, row in table.items():
        accuracy = f"{row['attribute_balanced_accuracy']:.3f}" if name == "ours" else ""
        print(
            f"{name:<26}{row['images_seen']:>12}{row['frechet']:>10.2f}{row['coverage']:>10.3f}{accuracy:>12}"
        )

    def best(kind: str) -> float:
        return min(row["frechet"] for name, row in table.items() if name.endswith(kind))

    result = {
        "frechet_over_best_peer": round(table["ours"]["frechet"] / best("as shipped"), 4),
        "frechet_over_best_tuned_peer": round(table["ours"]["frechet"] / best("tuned"), 4),
        "attribute_balanced_accuracy": round(table["ours"]["attribute_balanced_accuracy"], 4),
        "minutes": args.minutes,
        "evaluation_classifier": facts["hash"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
