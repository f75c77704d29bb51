"""A training run: its state, saving it, resuming it. train.py holds the loop."""

from __future__ import annotations

import math
import os
import platform
import reprlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from filelock import FileLock, Timeout
from torch import Tensor, nn

import devices
import flags
from checkpoint import EMA, load_checkpoint, load_weights, refusing, save_atomically
from config import ADJUSTABLE, FREE, Flag
from image_data.cached import ImageDataset
from image_data.encoded import LatentDataset
from training.batches import load_batches, ready_batch, seed_everything
from training.optimizers import OPTIMIZERS
from training.stages import STAGES, Stage

if TYPE_CHECKING:
    from train import TrainConfig

# What people set, where the recipe has another name for it.
RECIPE_NAMES = {
    "batches_per_step": "grad_accum x processes",
    "guide_channels": "guide_channels (none with --no-train_guide)",
}
FOLLOWS = ("guidable", "prior_rows")  # from other settings: a difference is not told twice


class CheckpointFiles:
    """The checkpoints in a run's folder."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.folder, self.prefix = Path(config.save_dir), STAGES[config.stage].prefix
        self.last = self.folder / f"{self.prefix}last.pth"  # --resume continues from this file

    def to_resume(self) -> Path:
        """The checkpoint that --resume means: the file given, or last.pth of the folder given or of this
        folder. Raises FileNotFoundError if there is none."""
        resume = Path(self.config.resume or self.folder)
        if str(resume) in ("latest", "last") and not resume.exists():
            resume = self.folder
        path = resume / self.last.name if resume.is_dir() else resume
        if not path.is_file():
            raise FileNotFoundError(
                f"no checkpoint at {path} to resume from: leave --resume out to start afresh"
            )
        return path

    @contextmanager
    def held(self, is_main: bool) -> Iterator[None]:
        """Within this context the checkpoints are this run's alone, and ``check`` has passed. A run that
        wrote nothing leaves nothing behind.

        Args:
            is_main: whether this is the main process, which writes.

        Raises:
            ValueError: if another run holds them, with its host, process and start.
        """
        writes = is_main and not self.config.dry_run
        if not writes:
            self.check(writes)
            yield
            return
        flags.check_writable(self.config.save_dir, "--save_dir")
        new = [each for each in (self.folder, *self.folder.parents) if not each.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f".{self.last.name}.lock", timeout=0)
        holder = Path(lock.lock_file).with_suffix(".holder")
        try:
            lock.acquire()
        except Timeout:
            run = holder.read_text(encoding="utf-8") if holder.is_file() else "that has just begun"
            raise ValueError(
                f"{self.folder} is in use by a run {run}: wait for its end, or choose another --save_dir"
            ) from None
        except (NotImplementedError, OSError):  # a file system without locks
            pass
        try:
            start = time.strftime("%Y-%m-%d %H:%M:%S")
            text = f"on {platform.node()}, process {os.getpid()}, since {start}"
            holder.write_text(text, encoding="utf-8")
            self.check(writes)
            yield
        finally:
            for file in (holder, Path(lock.lock_file)):
                with suppress(OSError):
                    file.unlink()
            lock.release()
            for folder in new:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()

    def check(self, writes: bool) -> None:
        """Refuse what cannot work before anything is drawn, decoded or written.

        Raises:
            FileNotFoundError, OSError, ValueError: if there is nothing to resume, or a run that is not
                to be resumed; if a folder cannot be written to; if no module can have these flags.
        """
        config = self.config
        if config.resume is not None:
            self.to_resume()
        elif writes and self.last.exists():
            raise ValueError(
                f"{self.last} exists: go on from it with --resume, or choose another --save_dir"
            )
        if writes:
            flags.check_writable(config.log_dir, "--log_dir")
        STAGES[config.stage].check(config)


def check_extra_losses(model: nn.Module) -> None:
    """Raise ValueError for an extra loss whose weights want a gradient, but are not the model's: the
    optimiser would not change them."""
    own = set(model.parameters())
    for name, (_, term) in getattr(model, "extra_losses", {}).items():
        weights = set(term.parameters()) if isinstance(term, nn.Module) else set()
        if any(weight.requires_grad for weight in weights - own):
            raise ValueError(
                f"the extra loss {name} has weights that nothing trains: freeze them with "
                "requires_grad_(False), or make the network a part of the model"
            )


class TrainingRun:
    """The state of a run, which its checkpoint keeps: model, EMA, optimiser, counters."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        train_set: ImageDataset,
        val_set: ImageDataset,
    ):
        self.config, self.accelerator = config, accelerator
        self.train_set, self.val_set = train_set, val_set
        self.stage: Stage = STAGES[config.stage]
        self.loss_config = self.stage.loss_config(config)
        seed_everything(config.seed)
        model = self.stage.build(config, train_set)
        self.origin = ""  # what --init_from gave; a resumed run has its weights from its checkpoint
        if config.init_from and config.resume is None:
            self.origin = self.stage.start_from(config.init_from, model)
        check_extra_losses(model)
        model.to(accelerator.device, memory_format=torch.channels_last)
        self.ema = EMA(model, config.ema_decay)
        self.stage.prepare(model, config)
        trained = [p for p in model.parameters() if p.requires_grad]
        # Decided once: where bf16 is fast, Muon orthogonalises in it. The recipe records it.
        precision = devices.choose_precision("auto", accelerator.device.type)
        self.muon_precision = "bf16" if precision == "bf16" else "no"
        make = OPTIMIZERS[config.optimizer]
        hidden, decay = self.stage.hidden(model), config.weight_decay
        optimizer = make(trained, hidden, config.lr, decay, self.muon_precision == "bf16")
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.raw_model = accelerator.unwrap_model(self.model)
        self.step, self.seconds, self.best, self.skipped = 0, 0.0, float("inf"), 0
        self.finish_seconds = 0.0  # seconds that validation, pictures and saving take at the end
        self.whole = True  # False while a step changes weights, average and counters
        self.log = ""  # the run's folder in --log_dir
        self.images_per_step = config.batch_size * config.grad_accum * accelerator.num_processes
        self.steps_per_epoch = math.ceil(len(train_set) / self.images_per_step)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.total_steps = min(self.total_steps, config.max_steps or self.total_steps)
        self.num_validation_images = min(config.val_images, len(val_set))

    @property
    def progress(self) -> float:
        """The completed share of the run, by steps or by time, whichever is larger. Time that the end
        needs is kept free, at most half of the limit."""
        limit = 60 * (self.config.max_minutes or math.inf)
        usable = max(limit - self.finish_seconds, limit / 2)
        return max(self.step / self.total_steps, self.seconds / usable)

    @property
    def epoch(self) -> int:
        """The epoch of the last step, from 1 on."""
        return -(-self.step // self.steps_per_epoch)

    def of_first_process(self, value: float) -> float:
        """The first process's value, in all of them. So they anneal and end together."""
        if self.accelerator.num_processes == 1:
            return value
        return float(broadcast(torch.tensor(value, device=self.accelerator.device)))

    def first_line(self) -> str:
        """The size of a step, the learning rate, the precision, and where the weights come from."""
        config, processes = self.config, self.accelerator.num_processes
        parts = f"{config.batch_size} x {config.grad_accum} accumulated x {processes} processes"
        text = f"{self.images_per_step} images a step ({parts}), learning rate {config.lr:g}"
        text += f", precision {self.accelerator.mixed_precision}"
        text += f"; starts from {self.origin}" if self.origin else ""
        judge = getattr(self.raw_model.config, "judge", "")
        return f"{text}; likeness is judged by {judge}" if judge else text

    def batches(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        """``load_batches`` from the current step on."""
        return load_batches(self.train_set, self.config, self.accelerator, self.step)

    def validation_images(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images, or moments, and attributes of the validation split."""
        return ready_batch(self.val_set.__getitems__(list(indices)), self.accelerator)

    # ---------------------------------------------------------------- checkpoints

    def recipe(self) -> dict[str, Any]:
        """All settings that affect the numbers of a run. A resumed run must agree in all that are not
        ADJUSTABLE. N processes do the same as one process with N times the gradient accumulation:
        batches and seeds are the same."""
        recipe: dict[str, Any] = {}
        for each in fields(self.config):
            facts = each.metadata.get("flag", Flag())
            if facts.help and facts.resume != FREE:
                recipe[each.name] = getattr(self.config, each.name)
        recipe["mixed_precision"] = str(self.accelerator.mixed_precision)
        if self.config.optimizer == "muon":
            recipe["muon_precision"] = self.muon_precision
        recipe["flip"] = self.train_set.flips
        extra_losses = getattr(self.raw_model, "extra_losses", {})
        recipe["extra_losses"] = {name: weight for name, (weight, _) in extra_losses.items()}
        recipe |= self.loss_config.to_dict() | self.raw_model.config.to_dict()
        if isinstance(self.train_set, LatentDataset):
            recipe["first_stage"] = self.train_set.first_stage["hash"]
        recipe["batches_per_step"] = self.config.grad_accum * self.accelerator.num_processes
        return {"images": len(self.train_set)} | recipe

    def save(self, path: Path) -> None:
        """Write the whole state. ``load`` continues from it exactly."""
        state = {
            "config": self.raw_model.config.to_dict(),
            "recipe": self.recipe(),
            "flags": flags.flags_of(self.config),
            "stage": self.config.stage,
            "model": self.raw_model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
            "step": self.step,
            "seconds": self.seconds,
            "ending": self.finish_seconds,
            "best": self.best,
            "log": self.log,
            "save_dir": str(Path(self.config.save_dir).resolve()),
        }
        save_atomically(state, path)

    @contextmanager
    def saved_if_cut_short(self, path: Path, say: Callable[[str], None]) -> Iterator[None]:
        """Save the run if the loop inside ends too early, by a stop or by an error. The error is raised
        again. Nothing is saved if no step was made, if a step's update broke off, or after a second
        Ctrl-C."""
        first = self.step

        def save() -> None:
            unfinished = self.whole and first < self.step and self.progress < 1
            if unfinished and self.accelerator.is_main_process:
                self.save(path)
                say(f"stopped after step {self.step}; saved {path}; go on with --resume")

        try:
            yield
        except Exception:
            with suppress(OSError):  # the same disk, perhaps
                save()
            raise
        save()

    def load(self, path: Path) -> None:
        """Continue from a checkpoint. Raises FileNotFoundError if there is none, ValueError if it is not
        whole or has another recipe."""
        state = load_checkpoint(path)
        if "recipe" not in state:
            raise ValueError(f"{path} holds inference weights only: --resume needs a last.pth")
        with refusing(path, "training state"):
            self.check_recipe(path, state)
            load_weights(self.raw_model, state["model"], path)
            load_weights(self.ema.model, state["ema"], path)
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler and state["scaler"]:  # {}: of a run without fp16
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.step, self.best = int(state["step"]), float(state["best"])
            self.seconds, self.finish_seconds = float(state["seconds"]), float(state.get("ending", 0))
            own = state["save_dir"] == str(Path(self.config.save_dir).resolve())  # no copy or branch
            self.log = str(state["log"]) if own else ""

    def check_recipe(self, path: Path, state: dict) -> None:
        """Compare a checkpoint's recipe with this run's. A difference raises ValueError. If the setting
        is ADJUSTABLE, it prints a line."""
        if state["stage"] != self.config.stage:
            raise ValueError(
                f"{path} is of --stage {state['stage']}, this run is of --stage {self.config.stage}: "
                f"resume with --stage {state['stage']}"
            )
        adjustable = {"muon_precision"}
        defaults: dict[str, Any] = {}
        for part in (self.config, self.loss_config, self.raw_model.config):
            for each in fields(part):
                defaults[each.name] = each.default
                if each.metadata.get("flag", Flag()).resume == ADJUSTABLE:
                    adjustable.add(each.name)
        defaults["extra_losses"] = {}  # of runs from before they were recorded
        defaults["optimizer"] = "adamw"  # of runs from before there was a choice
        defaults["muon_precision"] = self.muon_precision  # of runs from before it was recorded
        differences = []
        for key, value in self.recipe().items():
            before = state["recipe"].get(key, defaults.get(key))  # newer than the file: its default
            if before == value or (key in FOLLOWS and differences):
                continue
            if key not in adjustable:
                values = f"{reprlib.repr(before)}, this run has {reprlib.repr(value)}"
                differences.append(f"{RECIPE_NAMES.get(key, key)} = {values}")
            elif self.accelerator.is_main_process:
                print(f"{key} was {before} so far, and is {value} from here on")
        if differences:
            starts = self.config.stage in ("diffusion", "guide")
            initial = f", with --init_from {path} for what fits of its weights" if starts else ""
            raise ValueError(
                f"{path} was trained with {'; '.join(differences)}: resume with the same flags "
                f"(config.yaml in its log has them), or start afresh in another --save_dir{initial}"
            )

    def save_for_inference(self, losses: dict[str, float], folder: Path) -> bool:
        """Write the EMA weights to the stage's file. A stage that keeps only the best writes them if the
        loss is the lowest so far. Returns whether this is the best model so far, for a stage that keeps
        the best."""
        facts: dict[str, Any] = losses
        if self.stage.keeps_best:
            if not losses["total"] < self.best:  # also if it is NaN
                return False
            self.best = losses["total"]
            facts = {"validation_loss": self.best}
        self.stage.save(self.stage.finished(self), folder / self.stage.best, step=self.step, **facts)
        return self.stage.keeps_best
