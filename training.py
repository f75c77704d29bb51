"""The state of a training run and what is done with it: a step, saving, resuming.

train.py holds the flags and the loop, monitoring.py what is looked at.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attribute_prior import AttributePrior
from autoencoder_loss import AutoencoderTraining
from celeba_dataset import create_attribute_vector, random_flip
from checkpoint import (
    EMA,
    load_checkpoint,
    load_weights,
    refusing,
    save_atomically,
    save_first_stage,
    save_model,
)
from classifier_model import GuidanceClassifier
from diffusion_model import ConditionalDiffusion
from evaluation_classifier import perceptual_stages
from image_dataset import ImageDataset
from latent_dataset import LatentDataset
from model_config import AutoencoderConfig, AutoencoderLossConfig, LossConfig, ModelConfig, configure

ADJUSTABLE = ("lr", "warmup_steps", "grad_clip", "epochs", "max_steps", "max_minutes")
MAX_SKIPPED = 20  # steps with a non-finite loss or gradient in a row before training stops


def leave_signals(_worker: int) -> None:
    """Of a loader's worker: a signal to the whole group is for the main process, which needs its workers
    until it has saved, and ends them by a message."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def keep_freed_memory(device: str) -> Iterator[None]:
    """Within this context, glibc keeps up to 2 GiB of what is freed instead of giving it back to the
    system. A training step on a CPU frees and takes the same memory each time, and the system clears
    every page that it gives. Afterwards all is given back. Other C libraries are left as they are."""
    libc = ctypes.CDLL(None)
    if device != "cpu" or not hasattr(libc, "mallopt"):
        yield
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_max, 0)
    try:
        yield
    finally:
        libc.mallopt(trim_threshold, 128 * 1024)  # glibc's defaults
        libc.mallopt(mmap_max, 65_536)
        libc.malloc_trim(0)


class BatchOrder:
    """Image indices of every batch from number ``start`` on, for one process of ``world``: an endless
    stream of epochs, each a permutation drawn from (seed, epoch), so that a resumed run sees what an
    uninterrupted one would have seen."""

    def __init__(self, num_images: int, batch_size: int, seed: int, rank: int, world: int, start: int):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.stride = batch_size * world
        self.first = start * self.stride + rank * batch_size

    def __iter__(self) -> Iterator[list[int]]:
        first, epoch, order = self.first, -1, []
        while True:
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.num_images != epoch:
                    epoch = position // self.num_images
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
                batch.append(int(order[position % self.num_images]))
            yield batch
            first += self.stride


def seed_everything(*numbers: int) -> None:
    """Seed torch from these numbers, so that what is random in a step depends on nothing before it."""
    entropy = (len(numbers), *numbers)  # numpy takes (1,) and (1, 0) for the same
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


def learning_rate(args: argparse.Namespace, step: int, progress: float) -> float:
    """Linear warm-up, then cosine annealing to zero over ``progress`` in [0, 1]."""
    warmup = min(1.0, (step + 1) / (args.warmup_steps + 1))
    return args.lr * warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def keep_attribute(data: ImageDataset | LatentDataset, name: str) -> None:
    """Leave a dataset one attribute.

    Raises:
        ValueError: where it has none of that name.
    """
    names = {each: i for i, each in enumerate(data.attribute_names)}
    column = create_attribute_vector(names, **{name: 1}).argmax()  # unknown names are refused there
    data.attributes, data.attribute_names = data.attributes[:, [int(column)]], [name]
    data.one_hot = False


def build(args: argparse.Namespace, train_set) -> tuple[nn.Module, LossConfig | AutoencoderLossConfig]:
    """The module that a stage trains, and its loss's configuration. The module's ``forward`` takes
    images, attributes and that configuration, and gives loss terms; its ``progress`` is set before."""
    names = tuple(train_set.attribute_names)
    if args.stage == "autoencoder":
        stages, judge = perceptual_stages(args.classifier, names, args.crop)
        print(f"likeness is judged by {judge}")
        config = configure(AutoencoderConfig, args, attribute_names=names, judge=judge)
        return AutoencoderTraining(config, stages), configure(AutoencoderLossConfig, args)
    stage = {"kind": "pixels", "config": {}, "judge": ""}
    if args.latents:
        stage = train_set.first_stage
    prior = AttributePrior.of(train_set.attributes)
    config = configure(
        ModelConfig,
        args,
        attribute_names=names,
        prior_rows=len(prior.counts) if args.stage == "diffusion" else 0,
        one_hot=train_set.one_hot,
        guidable=args.cfg_dropout > 0,
        first_stage=stage["kind"],
        first_stage_config=stage["config"],
        first_stage_judge=stage["judge"],
    )
    if args.stage == "classifier":
        model = GuidanceClassifier(config)
        model.set_prior(train_set.attributes)
    else:
        model = ConditionalDiffusion(config)
        model.attribute_prior.load_state_dict(prior.state_dict())
    if args.latents:
        load_weights(model.first_stage, train_set.first_stage_weights(), args.latents)
    return model, configure(LossConfig, args)


class StopRequest:
    """Ctrl-C and SIGTERM ask for a stop after the current step; a second Ctrl-C stops at once."""

    def __init__(self, accelerator):
        self.accelerator, self.asked = accelerator, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number, frame):
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __bool__(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.asked
        if self.asked:  # one process's signal stops all at the same step
            self.accelerator.set_trigger()
        self.asked = self.accelerator.check_trigger()
        return self.asked


class TrainingRun:
    """Everything a run needs and its checkpoint keeps: model, EMA, optimiser, counters."""

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        train_set: ImageDataset | LatentDataset,
        val_set: ImageDataset | LatentDataset,
    ):
        self.args, self.accelerator, self.train_set, self.val_set = args, accelerator, train_set, val_set
        seed_everything(args.seed)
        model, self.loss_config = build(args, train_set)
        model.to(accelerator.device, memory_format=torch.channels_last)
        self.ema = EMA(model, args.ema_decay)
        if args.stage == "diffusion":
            model.unet.gradient_checkpointing = args.gradient_checkpointing
        if args.compile:
            model.unet.compile()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=args.weight_decay, fused=True)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.raw_model = accelerator.unwrap_model(self.model)
        self.step, self.seconds, self.best, self.skipped = 0, 0.0, float("inf"), 0
        self.log = ""  # the run's folder in --log_dir
        self.images_per_step = args.batch_size * args.grad_accum * accelerator.num_processes
        self.steps_per_epoch = math.ceil(len(train_set) / self.images_per_step)
        self.total_steps = args.epochs * self.steps_per_epoch
        self.total_steps = min(self.total_steps, args.max_steps or self.total_steps)

    @property
    def progress(self) -> float:
        """How much of the run is done, by steps or by the clock, whichever is further."""
        by_clock = self.seconds / (60 * self.args.max_minutes) if self.args.max_minutes else 0.0
        return max(self.step / self.total_steps, by_clock)

    def clock(self) -> Callable[[], float]:
        """A clock of the run's seconds, those before a resume included. Several processes read rank
        0's, so that all anneal and end alike."""
        started = time.perf_counter() - self.seconds

        def read() -> float:
            seconds = time.perf_counter() - started
            if self.accelerator.num_processes > 1:
                seconds = float(broadcast(torch.tensor(seconds, device=self.accelerator.device)))
            return seconds

        return read

    def batches(self) -> Generator[dict[str, Tensor], None, None]:
        """Batches from the current step on; ``close`` ends the loader's workers."""
        order = BatchOrder(
            len(self.train_set),
            self.args.batch_size,
            self.args.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            start=self.step * self.args.grad_accum,
        )
        loader = DataLoader(
            self.train_set,
            batch_sampler=order,
            num_workers=self.args.num_workers,
            collate_fn=self.train_set.collate,
            worker_init_fn=leave_signals,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        iterator = iter(loader)
        try:
            yield from iterator
        finally:  # an error's traceback keeps the iterator alive, and it them, beyond the exit
            getattr(iterator, "_shutdown_workers", lambda: None)()

    def to_device(self, batch: dict[str, Tensor], flip: bool = False) -> tuple[Tensor, Tensor]:
        """Images, or moments, mirrored at random with ``flip``; and attributes."""
        device = self.accelerator.device
        images, attributes = (
            batch[key].to(device, non_blocking=True) for key in ("image", "attributes")
        )
        if flip and self.args.flip and self.train_set.flips:
            return random_flip(images), attributes
        return images[:, 0] if images.ndim == 5 else images, attributes  # encoded: its mirror image, too

    def validation_images(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Images, or moments, and attributes of the validation split."""
        return self.to_device(self.val_set.__getitems__(indices))

    def update(self, batches: Iterator[dict[str, Tensor]]) -> dict:
        """One optimiser step over grad_accum batches: their mean loss terms, the last one's diffusion
        loss and timestep per sample, the learning rate and the gradient norm before clipping.

        Raises:
            ValueError: after MAX_SKIPPED steps in a row with a non-finite loss or gradient.
        """
        args, accelerator = self.args, self.accelerator
        rate = learning_rate(args, self.step, self.progress)
        self.raw_model.progress = self.ema.model.progress = self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums: dict[str, Tensor] = {}
        for micro in range(args.grad_accum):
            batch = next(batches)
            part = micro * accelerator.num_processes + accelerator.process_index  # of the global batch
            seed_everything(args.seed, self.step, part)
            images, attributes = self.to_device(batch, flip=True)
            with accelerator.accumulate(self.model):
                terms, per_sample, t = self.model(images, attributes, self.loss_config)
                accelerator.backward(terms["total"])
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / args.grad_accum
        norm = float(accelerator.clip_grad_norm_(self.raw_model.parameters(), args.grad_clip))
        finite = math.isfinite(norm)  # alike on all processes; a loss that is not finite shows here, too
        if finite or accelerator.scaler is not None:  # fp16's scaler skips by itself, to adapt its scale
            self.optimizer.step()
        self.optimizer.zero_grad()
        if finite:
            self.ema.update(self.raw_model, self.step)
        self.skipped = 0 if finite else self.skipped + 1
        self.step += 1
        if self.skipped >= MAX_SKIPPED:
            raise ValueError(
                f"the loss or its gradient was not finite {MAX_SKIPPED} steps in a row, up to step "
                f"{self.step}: the last checkpoint is intact; --resume with a lower --lr or --grad_clip"
            )
        return {"terms": sums, "per_sample": per_sample, "t": t, "lr": rate, "grad_norm": norm}

    # ---------------------------------------------------------------- checkpoints

    def recipe(self) -> dict:
        """What decides the numbers a run produces; a resumed run must agree on all but ADJUSTABLE. N
        processes do what one does with N times the accumulation: their parts and seeds are the same."""
        names = ("batch_size", "weight_decay", "ema_decay", "val_images", "seed", *ADJUSTABLE)
        recipe = {name: getattr(self.args, name) for name in names}
        recipe["mixed_precision"] = str(self.accelerator.mixed_precision)
        recipe["flip"] = self.args.flip and self.train_set.flips
        recipe |= vars(self.loss_config) | self.raw_model.config.to_dict()
        if isinstance(self.train_set, LatentDataset):
            recipe["first_stage"] = self.train_set.first_stage["hash"]
        recipe["batches_per_step"] = self.args.grad_accum * self.accelerator.num_processes
        return recipe | {"images": len(self.train_set)}

    def save(self, path: Path) -> None:
        """Write all state, so that loading it continues exactly."""
        state = {
            "config": self.raw_model.config.to_dict(),
            "recipe": self.recipe(),
            "stage": self.args.stage,
            "model": self.raw_model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "log": self.log,
            "save_dir": str(Path(self.args.save_dir).resolve()),
        }
        save_atomically(state, path)

    def load(self, *paths: Path) -> None:
        """Continue from ``save``: from the first of these files that is whole; what is passed over is
        named on stderr.

        Raises:
            FileNotFoundError, ValueError: no whole checkpoint, or one of another recipe.
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
            self.check_recipe(path, state["recipe"])
            load_weights(self.raw_model, state["model"], path)
            load_weights(self.ema.model, state["ema"], path)
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.step, self.best = int(state["step"]), float(state["best"])
            self.seconds = float(state["seconds"])
            own = state["save_dir"] == str(Path(self.args.save_dir).resolve())  # no copy, no branch
            self.log = str(state["log"]) if own else ""

    def check_recipe(self, path: Path, trained: dict) -> None:
        """Compare a checkpoint's recipe with this run's: ValueError for what must agree, a line for what
        need not."""
        for key, value in self.recipe().items():
            before = trained.get(key, "something else")
            if before == value:
                continue
            if key not in ADJUSTABLE:
                raise ValueError(
                    f"{path} was trained with {key} = {before}, this run has {value}: "
                    f"resume with the same flags, or start afresh in another --save_dir"
                )
            if self.accelerator.is_main_process:
                print(f"{key} was {before} so far, and is {value} from here on")

    def save_for_inference(self, losses: dict[str, float], folder: Path) -> str:
        """Write the EMA weights: a first stage as first_stage.pth, always, since its loss changes when
        the discriminator sets in; a diffusion model as best_model.pth or a classifier as
        classifier_best.pth, if its validation loss is the best so far. Returns what was written."""
        model, name = self.ema.model, "best_model.pth"
        if self.args.stage == "classifier":
            name = "classifier_best.pth"
        if self.args.stage == "autoencoder":
            save_first_stage(model, folder / "first_stage.pth", step=self.step, **losses)
            return "first_stage.pth"
        if not losses["total"] < self.best:  # nor where it is not a number
            return ""
        self.best = losses["total"]
        save_model(model, folder / name, step=self.step, validation_loss=self.best)
        return name
