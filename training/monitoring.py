"""What is watched while a run trains: validation losses, training curves, pictures; and what tells one
run from another."""

from __future__ import annotations

import json
import math
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from itertools import count
from pathlib import Path

import numpy as np
import torch

from checkpoint import replace_file
from figures.grids import save_film, save_grid
from flags import flags_of, write_yaml
from layers import widest
from training.batches import seed_everything
from training.run import CheckpointFiles, TrainingRun

PROJECT = "attribute-face-diffusion"  # the runs' name where a tracker keeps those of several projects


@torch.no_grad()
def validate(run: TrainingRun, number: int | None = None) -> dict[str, float]:
    """Every loss term over the validation split, or ``number`` images of it, and what the stage measures
    beside: EMA weights, fixed noise and timesteps, attributes never dropped."""
    accelerator, model = run.accelerator, run.ema.model
    model.progress = run.progress
    total = number or run.num_validation_images
    loss_config, timesteps = run.stage.validation(run.loss_config, total, model)
    batch_size, sums = run.config.batch_size, {}
    stride = batch_size * accelerator.num_processes
    first = accelerator.process_index * batch_size
    for start in range(first, max(total, first + 1), stride):  # once at least: all must take part
        rows = range(start, min(start + batch_size, total))
        indices = list(rows) or [0]
        images, attributes = run.validation_images(indices)
        seed_everything(0, start)
        with accelerator.autocast():
            t = None if timesteps is None else timesteps[indices].to(images.device)
            terms, _, _ = model(images, attributes, loss_config, t)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.to(widest(value.device)) * len(rows)
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums)
    losses = {name: float(value) / total for name, value in sums.items()}
    return losses | run.stage.further(run)


def dry_run(run: TrainingRun, training_step: Callable[[TrainingRun, Iterator], dict]) -> None:
    """Two training steps, the second timed, and a validation batch; no checkpoint, no log."""
    with closing(run.batches()) as batches:
        training_step(run, batches)  # the first step allocates
        started = time.perf_counter()
        metrics = training_step(run, batches)
        seconds = time.perf_counter() - started
    losses = validate(run, min(run.config.batch_size, run.num_validation_images))
    if not run.accelerator.is_main_process:
        return
    parameters = sum(p.numel() for p in run.raw_model.parameters()) / 1e6
    rate = run.images_per_step / seconds
    print(run.first_line())
    print(f"{parameters:.1f} M parameters on {run.accelerator.device}")
    print(f"training loss {float(metrics['terms']['total']):.4f}, validation loss {losses['total']:.4f}")
    print(f"{rate:.1f} images/s, {len(run.train_set) / rate / 60:.1f} minutes an epoch")
    if run.accelerator.device.type == "cuda":
        print(f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of GPU memory at most")
    print("dry run: no checkpoint and no log was written")


def last_words(run: TrainingRun, files: CheckpointFiles) -> str:
    """The end of a run: its files, and the commands that one would type next."""
    config, best = run.config, files.folder / run.stage.best
    log = Path(config.log_dir) / Path(run.log).name
    use = "for the other scripts"
    if config.stage == "diffusion" and run.raw_model.guide:
        use += ", with its guide: it steers edits"
    elif config.stage == "diffusion":
        use += ", without a guide: the VAE's head ends edits"
    written = {best: use, files.last: "for --resume", log: "what was logged"}
    lines = [f"done: {run.step} steps, {run.seconds / 60:.1f} minutes"]
    lines += [f"  {path}: {use}" for path, use in written.items() if path.exists()]
    lines += ["next:"]
    if best.exists():
        lines += [f"  {run.stage.next_command(config, best)}"]
    if any(log.rglob("events.out.tfevents*")):
        lines += [f"  tensorboard --logdir {shlex.quote(config.log_dir)}"]
    return "\n".join(lines)


def git_revision() -> str:
    """The commit of the program's folder, with + where its files were changed; empty without git."""
    root = str(Path(__file__).resolve().parents[1])
    describe = ["git", "-C", root, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def record_start(run: TrainingRun, folder: Path) -> None:
    """Add this start, or resume, to the list in environment.json: what a run's numbers may depend on
    besides its flags."""
    device, path = run.accelerator.device, folder / "environment.json"
    starts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    start = {
        "step": run.step,
        "command": sys.argv,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "accelerate", "numpy")},
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "processes": run.accelerator.num_processes,
        "precision": str(run.accelerator.mixed_precision),
        "images_per_step": run.images_per_step,
    }
    text = json.dumps([*starts, start], indent=1) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def run_directory(run: TrainingRun, log_dir: Path) -> Path:
    """The run's own folder in ``log_dir``: a new number with config.yaml, as --config takes it; or, of a
    resumed run, the old one, its metrics.jsonl cut at the checkpoint."""
    folder, log_dir = Path(run.log), log_dir.resolve()
    if folder.parent == log_dir and folder.name.isdecimal() and folder.is_dir():
        metrics = folder / "metrics.jsonl"
        text = metrics.read_text(encoding="utf-8") if metrics.is_file() else ""
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= run.step]
        replace_file(metrics, lambda file: file.write("".join(kept).encode()))
        return folder
    log_dir.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = log_dir / f"{number:04d}"
        with suppress(FileExistsError):
            folder.mkdir()
            break
    run.log = str(folder)
    flags = {k: v for k, v in flags_of(run.config).items() if k not in ("resume", "dry_run")}
    write_yaml(folder / "config.yaml", flags)
    return folder


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Name the folder in an OSError of the system, which names none where a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            f"cannot write the log in {folder} ({error.strerror}): free some space, or choose another "
            "--log_dir"
        ) from error


def start_tracker(run: TrainingRun, folder: Path) -> None:
    """Start the tracker of --report_to, for the run in this folder."""
    project, settings = folder.name, None
    if run.config.report_to == "wandb":
        project, settings = PROJECT, flags_of(run.config)
    options = {
        # What a run that broke off wrote after its last checkpoint is replaced.
        "tensorboard": {"purge_step": run.step + 1 if run.step else None},
        # A resumed run is a new one of the same group: wandb takes no step twice.
        "wandb": {"name": folder.name, "group": "/".join(folder.parts[-3:]), "dir": str(folder)},
    }
    run.accelerator.init_trackers(project, settings, options)


class Logger:
    """metrics.jsonl and accelerate's tracker: averages of the metrics between two writes, and pictures.
    Silent off rank 0."""

    def __init__(self, run: TrainingRun, log_dir: str):
        self.run, self.folder = run, Path(log_dir)
        self.is_main = run.accelerator.is_main_process
        if self.is_main:
            with writing_to(self.folder):
                self.folder = run_directory(run, self.folder)
                record_start(run, self.folder)
                start_tracker(run, self.folder)
        self.steps: list[dict] = []
        self.seconds = 0.0
        self.totals: list[torch.Tensor] = []  # the loss of each step of an epoch

    def close(self) -> None:
        """End the trackers' threads. All is written by then, or was refused by the disk."""
        trackers = self.run.accelerator.trackers  # off rank 0 there are none
        while trackers:
            with suppress(OSError):
                trackers.pop().finish()

    def add(self, metrics: dict, seconds: float) -> None:
        """Take in one step's metrics, as tensors: reading them now would make a GPU wait."""
        self.steps.append(metrics)
        self.seconds += seconds
        self.totals.append(metrics["terms"]["total"])

    def training_loss(self) -> float:
        """The mean loss of the steps since the last call, over all processes: of an epoch, or of its
        part since a resume. Steps whose loss was not finite do not count."""
        totals = torch.stack(self.totals)
        totals = totals.to(widest(totals.device))
        self.totals = []
        counted = totals[totals.isfinite()]
        sums = torch.stack([counted.sum(), torch.ones_like(counted).sum()])
        if self.run.accelerator.num_processes > 1:
            sums = self.run.accelerator.reduce(sums)
        return float(sums[0] / sums[1])

    def flush(self) -> dict[str, float]:
        """Write the averages since the last flush, and return them."""
        steps, seconds = self.steps, self.seconds
        self.steps, self.seconds = [], 0.0
        if not steps:
            return {}
        terms = {
            name: torch.stack([step["terms"][name] for step in steps]).mean()
            for name in steps[0]["terms"]
        }
        if self.run.accelerator.num_processes > 1:
            terms = self.run.accelerator.reduce(terms, "mean")
        means = {f"loss/{name}": float(value) for name, value in terms.items()}
        for name in ("grad_norm", "lr"):
            means[f"optimisation/{name}"] = sum(step[name] for step in steps) / len(steps)
        if steps[0]["t"] is not None:
            means |= self.by_timestep(steps)
        means["speed/images_per_second"] = len(steps) * self.run.images_per_step / seconds
        self.scalars(means)
        return means

    def by_timestep(self, steps: list[dict]) -> dict[str, float]:
        """The diffusion loss by quartile of t."""
        per_sample = torch.cat([step["per_sample"] for step in steps]).cpu()
        quartile = torch.cat([step["t"] for step in steps]).cpu() * 4
        quartile //= self.run.raw_model.schedule.num_timesteps
        return {
            f"diffusion_by_timestep/quartile_{q + 1}": float(per_sample[quartile == q].mean())
            for q in range(4)
            if (quartile == q).any()
        }

    def scalars(self, values: dict[str, float]) -> None:
        """Write values under their names at the current step."""
        if not self.is_main:
            return
        numbers = {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = {"step": self.run.step, "seconds": round(self.run.seconds, 2), **numbers}
        with writing_to(self.folder):
            self.run.accelerator.log(values, self.run.step)
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def pictures(self) -> None:
        """What the stage shows of eight validation images: as files in the run's folder, and to the
        trackers. ``scalars`` flushes them."""
        run = self.run
        if not self.is_main:
            return
        indices = range(min(8, len(run.val_set)))
        images, attributes = run.validation_images(indices)
        with run.accelerator.autocast():
            pictures = run.stage.pictures(run, images, attributes)
        arrays = {title: each.cpu().numpy() for title, each in pictures.items()}
        grids = {title: each for title, each in arrays.items() if each.ndim == 4}
        with writing_to(self.folder):
            for title, each in arrays.items():
                name = f"{title.replace('/', '_')}_{run.step:08d}"
                path = self.folder / "pictures" / name
                if each.ndim == 4:
                    save_grid(path.with_suffix(".png"), each, [""] * len(each), len(indices))
                else:
                    save_frames(path, each)
            for tracker in run.accelerator.trackers:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(grids, run.step, **layout)


def save_frames(path: Path, frames: np.ndarray) -> None:
    """Frames (F, N, H, W, 3) as a film of all pictures, and as a strip of the first four of them."""
    number, total = frames.shape[:2]
    strip = frames[:, :4].swapaxes(0, 1).reshape(-1, *frames.shape[2:])
    save_grid(path.with_suffix(".png"), strip, [""] * len(strip), number)
    save_film(path.with_suffix(".gif"), frames, [""] * total, total)
