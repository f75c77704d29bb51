"""Equal minutes, equal cores, equal faces: what ours and its peers draw after training from scratch.

    python benchmarks/time_to_quality.py --data_root /path/to/celeba --minutes 15

Peers: diffusers' UNet2DModel with its DDPM recipe, and denoising-diffusion-pytorch's Unet and
GaussianDiffusion, at widths a CPU can train; each once as it ships (float32) and once tuned (bfloat16,
channels-last, our GFLOP per image to within a seventh, our learning rate and its annealing, our EMA,
fused AdamW, our allocator's setting). They are unconditional; ours draws under the attribute rows of
the validation split, guided and not, and unconditionally. Every model is judged by the same evaluation
classifier, against the test split. Prints the table, saves a grid of each; the last line is one JSON
object. What was measured is kept: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
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
BATCH = 16
TUNED_LR, TUNED_EMA = 1e-3, 0.998  # ours


def annealed(step: int, done: float) -> float:
    """Linear warm-up over 100 steps, then a cosine to zero over the time."""
    return min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))


class Diffusers:
    """UNet2DModel, eps prediction, AdamW at 1e-4 with warm-up and cosine annealing, as in diffusers'
    training tutorial (its 500 steps of warm-up, more than there are here, cut to 100)."""

    optimizer, lr, betas, anneals, ema_decay = "AdamW", 1e-4, (0.9, 0.999), True, 0.999

    def __init__(self, channels: list[int]):
        from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

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
    """Unet and GaussianDiffusion with the README's settings of denoising-diffusion-pytorch: a constant
    8e-5; its average, which it updates every tenth step, here at every step."""

    optimizer, lr, betas, anneals, ema_decay = "Adam", 8e-5, (0.9, 0.99), False, 0.995

    def __init__(self, dim: int):
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet

        self.network = Unet(dim=dim, dim_mults=(1, 2, 4, 8), flash_attn=False)
        self.build = lambda network, steps: GaussianDiffusion(
            network, image_size=64, timesteps=1000, sampling_timesteps=steps
        )
        self.trainer = self.build(self.network, None)

    def loss(self, network, x0):
        """GaussianDiffusion's own; it takes images in [0, 1]."""
        return self.trainer((x0 + 1) / 2)

    def sample(self, network, number: int, num_steps: int):
        """Images in [-1, 1] by DDIM."""
        return self.build(network, num_steps).sample(batch_size=number) * 2 - 1


PEERS = {  # the class, its size, and whether it is tuned; those last, as the allocator's setting stays
    "diffusers as shipped": (Diffusers, [32, 64, 128, 256], False),
    "ddpm-pytorch as shipped": (DDPMPytorch, 32, False),
    "diffusers tuned": (Diffusers, [16, 48, 96, 160], True),
    "ddpm-pytorch tuned": (DDPMPytorch, 24, True),
}
SCALES = (0.0, 1.0, 2.0)  # of our guidance; 0 asks for nothing, as the peers are; the last one counts


def train_peer(peer, images, minutes: float, tuned: bool, label: str):
    """Train for that long on uint8 images; the averaged network and how many images it saw."""
    import torch
    from tqdm import tqdm

    from autoencoder_model import PixelFirstStage
    from celeba_dataset import random_flip
    from checkpoint import EMA

    torch.manual_seed(0)
    network, step = peer.network, 0
    if tuned:
        network.to(memory_format=torch.channels_last)
    ema = EMA(network, TUNED_EMA if tuned else peer.ema_decay)
    if tuned:
        lr, anneals = TUNED_LR, True
        optimizer = torch.optim.AdamW(network.parameters(), lr=lr, fused=True)
    else:
        lr, anneals = peer.lr, peer.anneals
        optimizer = getattr(torch.optim, peer.optimizer)(network.parameters(), lr=lr, betas=peer.betas)
    started = time.perf_counter()
    with tqdm(desc=label, unit="image") as bar:
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
    """uint8 (N, 64, 64, 3)."""
    import torch

    from autoencoder_model import PixelFirstStage

    torch.manual_seed(1)
    parts = []
    for start in range(0, number, 50):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            x0 = peer.sample(network, min(50, number - start), num_steps)
        parts.append(PixelFirstStage().decode(x0))
    return torch.cat(parts)


def train_ours(args, root: Path, folder: Path):
    """The model that train.py gives, and how many images it saw."""
    from demo import command

    from checkpoint import load_checkpoint, load_model

    flags = ("--data_root", root, "--cache_dir", args.cache_dir, "--max_minutes", args.minutes)
    where = ("--save_dir", folder, "--log_dir", folder / "logs")
    command("train.py", *flags, "--batch_size", BATCH, *RECIPE, *where)
    return load_model(folder / "best_model.pth"), BATCH * load_checkpoint(folder / "last.pth")["step"]


class Contest:
    """What all are measured by, and the results so far: kept in a file, so that a run that was stopped
    goes on with those that are missing."""

    def __init__(self, args, root: Path):
        from demo import command

        from celeba_dataset import CELEBA_ATTRIBUTES, CelebADataset
        from evaluation_classifier import load_classifier, read

        self.args, self.out = args, Path(args.output_dir).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        judge = Path(args.classifier or self.out / "evaluation_classifier.pth").resolve()
        if not judge.is_file():
            flags = ("--data_root", root, "--cache_dir", args.cache_dir, "--checkpoint", "none")
            epochs = ("--classifier_epochs", args.classifier_epochs)
            command("evaluate.py", "--train_classifier", *flags, *epochs, "--classifier", judge)
        self.classifier, facts = load_classifier(judge, CELEBA_ATTRIBUTES, 178)
        self.train_set, self.asked, real = (
            CelebADataset(root, split, 64, cache_dir=args.cache_dir)
            for split in ("train", "val", "test")
        )
        self.rows = self.asked.attributes[: args.num_samples]
        self.reference = read(self.classifier, real.images)[0]
        self.protocol = {
            "minutes": args.minutes,
            "num_samples": len(self.rows),
            "reference": len(real),
            "evaluation_classifier": facts["hash"],
        }
        self.file = self.out / "results.json"
        kept = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.results = kept.get("results", {}) if kept.get("protocol") == self.protocol else {}

    def lacks(self, name: str, how: dict) -> bool:
        """Whether this contender, made like this, is still to be measured."""
        kept = self.results.get(name, {}).get("how") == how
        if kept:
            print(f"{name}: measured before, kept in {self.file}")
        return not kept

    def judge(self, name: str, images, seen: int, how: dict) -> None:
        """Measure one contender's images and keep the result and a grid."""
        from evaluation import balanced_accuracy, distances
        from evaluation_classifier import read
        from pictures import save_grid

        features, logits = read(self.classifier, images)
        row = distances(features, self.reference) | {"images_seen": seen, "how": how}
        if name.startswith("ours"):  # the peers are asked for nothing
            row["attribute_balanced_accuracy"] = float(balanced_accuracy(logits, self.rows).nanmean())
        self.results[name] = row
        self.file.write_text(json.dumps({"protocol": self.protocol, "results": self.results}, indent=1))
        print(f"{name}: Frechet {row['frechet']:.2f} after {seen} images", flush=True)
        path = self.out / f"{name.replace(' ', '_')}.png"
        title = f"{name}, {self.args.minutes:g} minutes"
        save_grid(path, images[:32].numpy(), [""] * 32, 8, title=title)

    def summary(self) -> dict:
        """Print the table; the figures of the last line."""
        print(f"{'':<26}{'images seen':>12}{'Frechet':>18}{'coverage':>10}")
        for name, row in self.results.items():
            error = f"{row['frechet']:.2f} +- {row['frechet_error']:.2f}"
            print(f"{name:<26}{row['images_seen']:>12}{error:>18}{row['coverage']:>10.3f}")
        ours = self.results[f"ours, cfg_scale {SCALES[-1]:g}"]

        def over_best(kind: str) -> float:
            best = min(row["frechet"] for name, row in self.results.items() if name.endswith(kind))
            return round(ours["frechet"] / best, 4)

        return {
            "frechet_over_best_peer": over_best("as shipped"),
            "frechet_over_best_tuned_peer": over_best("tuned"),
            "attribute_balanced_accuracy": round(ours["attribute_balanced_accuracy"], 4),
        } | self.protocol


def main() -> None:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--data_root", help="folder in CelebA's layout; synthetic faces are drawn where not given")
    add("--minutes", type=cli.positive, default=15.0, help="training time of each")
    add("--num_samples", type=cli.number(int, 32), default=250, help="behind each figure")
    add("--num_inference_steps", type=cli.positive_int, default=50, help="of the peers' DDIM")
    add("--classifier", help="of evaluate.py; where not given, one is trained in --output_dir")
    add("--classifier_epochs", type=cli.positive_int, default=8)
    add("--cache_dir", default=str(ROOT / "data" / "cache"))
    add("--output_dir", default="./outputs/time_to_quality")
    args = parser.parse_args()

    from evaluation import draw
    from model_config import SamplingConfig
    from synthetic_faces import write_dataset

    synthetic = ROOT / "data" / "synthetic_faces_64"
    root = args.data_root or write_dataset(synthetic, num_images=6000, image_size=64, seed=0)
    root = Path(root).resolve()
    contest = Contest(args, root)
    how = {"recipe": RECIPE, "scales": SCALES}
    if contest.lacks(f"ours, cfg_scale {SCALES[-1]:g}", json.loads(json.dumps(how))):
        model, seen = train_ours(args, root, contest.out / time.strftime("run_%Y%m%d_%H%M%S"))
        for scale in SCALES:
            sampling = SamplingConfig(cfg_scale=scale)
            images = draw(model, contest.rows, sampling, cli.autocast("auto", "cpu"))
            contest.judge(f"ours, cfg_scale {scale:g}", images, seen, how)
    for name, (kind, size, tuned) in PEERS.items():
        how = {"size": size, "num_inference_steps": args.num_inference_steps}
        if contest.lacks(name, how):
            peer = kind(size)
            network, seen = train_peer(peer, contest.train_set.images, args.minutes, tuned, name)
            number, steps = len(contest.rows), args.num_inference_steps
            contest.judge(name, draw_peer(peer, network, number, steps, tuned), seen, how)
    print(json.dumps(contest.summary()))


if __name__ == "__main__":
    cli.run(main)
