"""A training run: its state, saving it, resuming it. train.py holds the loop."""

from __future__ import annotations

import math
import re
import reprlib
import shlex
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

import devices
import flags
from checkpoint import EMA, load_checkpoint, load_weights, refusing, save_atomically
from config import ADJUSTABLE, FREE, Flag
from image_data.encoded import LatentDataset
from training.batches import Dataset, Interrupted, load_batches, seed_everything, to_device
from training.optimizers import OPTIMIZERS
from training.stages import STAGES, Stage

if TYPE_CHECKING:
    from train import TrainConfig

MAX_SKIPPED = 20  # steps in a row without a finite gradient, before training stops; by eye
# The flags that choose the data, and the settings that follow from it.
DATA_FLAGS = ("data_root", "dataset", "data_fraction", "attribute", "latents", "judge")
DATA_SETTINGS = ("images", "attribute_names", "one_hot", "flip", "prior_rows")
DATA_SETTINGS += ("first_stage", "first_stage_config", "first_stage_judge", "judge")
FOLLOWS = ("guidable", "prior_rows")  # from other settings: a difference is not told twice


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up, then cosine annealing to zero over ``progress`` in [0, 1]."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class CheckpointFiles:
    """The checkpoints in a run's folder."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.folder, self.prefix = Path(config.save_dir), STAGES[config.stage].prefix
        self.last = self.folder / f"{self.prefix}last.pth"  # --resume continues from this file

    def of_epoch(self, epoch: int) -> Path:
        """The checkpoint kept of an epoch."""
        return self.folder / f"{self.prefix}epoch_{epoch:04d}.pth"

    def epochs(self) -> list[Path]:
        """The kept checkpoints of epochs, oldest first."""
        pattern = re.compile(rf"{self.prefix}epoch_(\d+)\.pth")
        numbered = []
        for path in self.folder.glob("*.pth"):
            match = pattern.fullmatch(path.name)
            if match:
                numbered.append((int(match[1]), path))
        return [path for _, path in sorted(numbered)]

    def saved(self) -> list[Path]:
        """The checkpoints, newest first."""
        return [path for path in (self.last, *self.epochs()[::-1]) if path.is_file()]

    def to_resume(self) -> list[Path]:
        """The checkpoints that --resume means, newest first: the file given, those of the folder given,
        or those of this folder.

        Raises:
            FileNotFoundError: if there is none.
        """
        resume = Path(self.config.resume or "")
        if not self.config.resume or (str(resume) in ("latest", "last") and not resume.exists()):
            paths, place = self.saved(), self.last
        elif resume.is_dir():
            others = CheckpointFiles(replace(self.config, save_dir=str(resume)))
            paths, place = others.saved(), others.last
        else:
            paths, place = [resume] if resume.is_file() else [], resume
        if not paths:
            raise FileNotFoundError(
                f"no checkpoint at {place} to resume from: leave --resume out to start afresh"
            )
        return paths

    def check(self, main: bool) -> None:
        """Refuse what cannot work before anything is drawn, decoded or written.

        Args:
            main: whether this is the main process, which writes.

        Raises:
            FileNotFoundError, OSError, ValueError: if there is nothing to resume, or a run that is not
                to be resumed; if a folder cannot be written to; if no module can have these flags.
        """
        config = self.config
        writes = main and not config.dry_run
        if config.resume is not None:
            self.to_resume()
        elif writes and self.last.exists():
            raise ValueError(
                f"{self.last} exists: go on from it with --resume, or choose another --save_dir"
            )
        if writes:
            flags.check_writable(config.save_dir, "--save_dir")
            flags.check_writable(config.log_dir, "--log_dir")
        STAGES[config.stage].check(config)


class TrainingRun:
    """The state of a run, which its checkpoint keeps: model, EMA, optimiser, counters."""

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, train_set: Dataset, val_set: Dataset
    ):
        self.config, self.accelerator = config, accelerator
        self.train_set, self.val_set = train_set, val_set
        self.stage: Stage = STAGES[config.stage]
        self.loss_config = self.stage.loss(config)
        seed_everything(config.seed)
        model = self.stage.build(config, train_set)
        self.origin = ""  # what --init_from gave; a resumed run has its weights from its checkpoint
        if config.init_from and config.resume is None:
            self.origin = self.stage.start_from(config.init_from, model)
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
        self.whole = True  # False while weights, average and counters are changed
        self.log = ""  # the run's folder in --log_dir
        self.images_per_step = config.batch_size * config.grad_accum * accelerator.num_processes
        self.steps_per_epoch = math.ceil(len(train_set) / self.images_per_step)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.total_steps = min(self.total_steps, config.max_steps or self.total_steps)
        self.num_validation_images = min(config.val_images, len(val_set))

    @property
    def progress(self) -> float:
        """The completed share of the run, by steps or by time, whichever is larger."""
        minutes = self.config.max_minutes
        return max(self.step / self.total_steps, self.seconds / (60 * minutes) if minutes else 0.0)

    @property
    def epoch(self) -> int:
        """The epoch of the last step, from 1 on."""
        return -(-self.step // self.steps_per_epoch)

    def clock(self) -> Callable[[], float]:
        """A clock of the run's seconds. It includes the time before a resume. All processes read the
        clock of rank 0, so they anneal and end together."""
        started = time.perf_counter() - self.seconds

        def read() -> float:
            seconds = time.perf_counter() - started
            if self.accelerator.num_processes > 1:
                seconds = float(broadcast(torch.tensor(seconds, device=self.accelerator.device)))
            return seconds

        return read

    def first_line(self) -> str:
        """The size of a step, the learning rate, the precision, and where the weights come from."""
        config, processes = self.config, self.accelerator.num_processes
        parts = f"{config.batch_size} x {config.grad_accum} accumulated x {processes} processes"
        text = f"{self.images_per_step} images a step ({parts}), learning rate {config.lr:g}"
        text += f", precision {self.accelerator.mixed_precision}"
        text += f"; starts from {self.origin}" if self.origin else ""
        judge = getattr(self.raw_model.config, "judge", "")
        return f"{text}; likeness is judged by {judge}" if judge else text

    def batches(
        self, stopping: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """``load_batches`` from the current step on."""
        return load_batches(self.train_set, self.config, self.accelerator, self.step, stopping)

    def validation_images(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images, or moments, and attributes of the validation split."""
        return to_device(self.val_set.__getitems__(list(indices)), self.accelerator)

    def anneal(self) -> float:
        """Set the learning rate and the models' ``progress``. Returns the rate."""
        rate = learning_rate(self.config, self.step, self.progress)
        self.raw_model.progress = self.ema.model.progress = self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    @contextmanager
    def updating(self) -> Iterator[None]:
        """The part of a step that changes the run. An error in it leaves nothing that could be saved."""
        self.whole = False
        yield
        self.whole = True

    def count_step(self, finite: bool) -> None:
        """Count one step.

        Raises:
            ValueError: after MAX_SKIPPED steps in a row with a non-finite loss or gradient.
        """
        self.skipped = 0 if finite else self.skipped + 1
        self.step += 1
        if self.skipped >= MAX_SKIPPED:
            raise ValueError(
                f"the loss or its gradient was not finite {MAX_SKIPPED} steps in a row, up to step "
                f"{self.step}: the last checkpoint is intact; --resume with a lower --lr"
            )

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
                say(f"stopped after step {self.step}; saved {path}; go on with --resume:")
                say(f"  {self.command_to_resume()}")

        try:
            yield
        except Interrupted:
            pass
        except Exception as error:
            try:
                save()
            except OSError as failed:
                if str(failed) != str(error):  # else it was a save that ended the run
                    say(str(failed))
            raise
        save()

    def command_to_resume(self) -> str:
        """The command that goes on with this run, as one types it."""
        script, *options = sys.argv
        if not self.config.resume:  # else --resume has a file, and the last --resume counts
            options = [each for each in options if each != "--resume"]
        several = self.accelerator.num_processes > 1
        start = ["accelerate", "launch", "..."] if several else ["python"]
        return shlex.join([*start, script, *options, "--resume"])

    def load(self, *paths: Path) -> None:
        """Continue from the first of these checkpoints that is whole. Damaged ones before it are named
        on stderr.

        Raises:
            FileNotFoundError, ValueError: if none is whole, or it has another recipe.
        """
        for path in paths:
            try:
                state = load_checkpoint(path)
                break
            except ValueError as damaged:
                if path == paths[-1]:
                    raise
                if self.accelerator.is_main_process:
                    print(f"{damaged}: going back to the one before", file=sys.stderr)
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
            self.seconds = float(state["seconds"])
            own = state["save_dir"] == str(Path(self.config.save_dir).resolve())  # no copy or branch
            self.log = str(state["log"]) if own else ""

    def check_recipe(self, path: Path, state: dict) -> None:
        """Compare a checkpoint's recipe with this run's. A difference raises ValueError, which names the
        flags that would do. If the setting is ADJUSTABLE, it prints a line."""
        if state["stage"] != self.config.stage:
            raise ValueError(
                f"{path} is of --stage {state['stage']}, this run is of --stage {self.config.stage}: "
                f"resume with --stage {state['stage']}"
            )
        recorded, flags_then = state["recipe"], state.get("flags", {})
        facts = {each.name: each.metadata.get("flag", Flag()) for each in fields(self.config)}
        parts = (self.config, self.loss_config, self.raw_model.config)
        defaults = {each.name: each.default for part in parts for each in fields(part)}
        defaults["optimizer"] = "adamw"  # of runs from before there was a choice
        defaults["muon_precision"] = self.muon_precision  # of runs from before it was recorded
        differences, remedies = [], []
        for key, value in self.recipe().items():
            before = recorded.get(key, defaults.get(key))  # a field newer than the file: its default
            if before == value or (key in FOLLOWS and differences):
                continue
            if key == "muon_precision" or (key in facts and facts[key].resume == ADJUSTABLE):
                if self.accelerator.is_main_process:
                    print(f"{key} was {before} so far, and is {value} from here on")
                continue
            differences.append(f"{key} = {reprlib.repr(before)}, this run has {reprlib.repr(value)}")
            remedies += self.remedies(key, before, flags_then)
        if differences:
            raise ValueError(
                f"{path} was trained with {'; '.join(differences)}: resume with "
                f"{' '.join(dict.fromkeys(remedies))}, or start afresh in another --save_dir"
            )

    def remedies(self, key: str, before: Any, flags_then: dict[str, Any]) -> list[str]:
        """The flags with which a setting is again what it was."""
        kind, processes = type(self.config), self.accelerator.num_processes
        if key == "batches_per_step" and before % processes == 0:
            return [f"--grad_accum {before // processes}"]
        if key == "batches_per_step":
            return [f"a number of processes that divides {before}"]
        if key in DATA_SETTINGS:
            flags_now = flags.flags_of(self.config)
            changed = [name for name in DATA_FLAGS if flags_then.get(name) != flags_now.get(name)]
            if not flags_then or not changed:
                return ["the same data"]
            return [flags.typed(kind, name, flags_then.get(name)) for name in changed]
        for name, behind in flags.by_flag(kind).items():
            if key in (setting.path[-1] for setting in behind):
                return [flags.typed(kind, name, before)]
        return [f"{key} = {before!r} in config.py"]  # a setting without a flag

    def save_for_inference(self, losses: dict[str, float], folder: Path) -> str:
        """Write the EMA weights to the stage's file. A stage that keeps only the best writes them only
        if the loss is the lowest so far. Returns the file's name, or "" if nothing was written."""
        facts: dict[str, Any] = losses
        if self.stage.keeps_best:
            if not losses["total"] < self.best:  # also if it is NaN
                return ""
            self.best = losses["total"]
            facts = {"validation_loss": self.best}
        self.stage.save(self.ema.model, folder / self.stage.best, step=self.step, **facts)
        return self.stage.best
