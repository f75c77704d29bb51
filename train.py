"""Train the conditional diffusion model jointly with its attribute-predicting VAE.

Without --data_root it draws synthetic faces first. Logs go to --log_dir, for TensorBoard if --report_to
names no other; checkpoints to --save_dir: last.pth resumes exactly, best_model.pth (EMA weights, best
validation loss) is for manipulate.py. One process, or several with `accelerate launch train.py ...`.
"""

from __future__ import annotations

import math
import shlex
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import flags
from config import (
    ADJUSTABLE,
    CACHE_HELP,
    DATASET_HELP,
    DATASETS,
    FREE,
    NAME,
    FirstStageConfig,
    FirstStageLossConfig,
    LossConfig,
    ModelConfig,
    count,
    flag,
    nested,
    share,
    weight,
)
from devices import DeviceConfig

SAVE_SECONDS = 600  # last.pth is never older than this, however long an epoch is
LOG_STEPS = 20  # steps averaged in one point of a training curve


STAGES = ("diffusion", "first_stage", "guide")  # those of training/stages.py
OPTIMIZERS = ("muon", "adamw")  # those of training/optimizers.py
REPORT_TO = ("tensorboard", "wandb", "none")  # metrics.jsonl is written in any case


@dataclass(frozen=True)
class TrainConfig(DeviceConfig):
    """Flags of train.py."""

    stage: str = flag(
        "diffusion", "the model; a first stage for latents; a guide", choices=STAGES, resume=FREE
    )
    data_root: str | None = flag(
        None, "folder of labelled images; none given: draws synthetic faces", resume=FREE
    )
    dataset: str | None = flag(None, DATASET_HELP, choices=(*DATASETS, "synthetic"), resume=FREE)
    download: bool = flag(False, "fetch CelebA into --data_root first", resume=FREE)
    data_fraction: float = flag(1.0, "share of the training images to use", above=0, high=1, resume=FREE)
    flip: bool = flag(True, "mirror images at random")
    latents: str | None = flag(None, "folder of encode_latents.py: train in those latents", resume=FREE)
    attribute: tuple[str, ...] = flag(
        (), "learn these alone, one or several; none given: all", metavar=NAME, resume=FREE
    )
    judge: str = flag(
        "./checkpoints/judge.pth", "judge of a first stage's likeness, in place of VGG16", resume=FREE
    )
    cache_dir: str = flag("data/cache", CACHE_HELP, resume=FREE)
    num_workers: int = count(0, "threads that read ahead; 0: none", low=0, resume=FREE)
    batch_size: int = count(16, "images of a process in one forward pass")
    grad_accum: int = count(1, "batches of an optimiser step", resume=FREE)
    epochs: int = count(100, "passes over the training images", resume=ADJUSTABLE)
    max_steps: int | None = count(None, "end after this many optimiser steps", resume=ADJUSTABLE)
    max_minutes: float | None = flag(
        None, "end after this time, the learning rate annealed", above=0, resume=ADJUSTABLE
    )
    optimizer: str = flag("muon", "what moves the weights", choices=OPTIMIZERS)
    lr: float = flag(1e-3, "learning rate after the warm-up", above=0, resume=ADJUSTABLE)
    warmup_steps: int = count(200, "steps of linear warm-up", low=0, resume=ADJUSTABLE)
    weight_decay: float = weight(0.01, "share of the learning rate by which weights shrink in a step")
    grad_clip: float = flag(
        1.0, "largest norm of the gradient; a longer one is shortened", above=0, resume=ADJUSTABLE
    )
    ema_decay: float = share(0.9999, "decay of the averaged weights")
    compile: bool = flag(False, "torch.compile the UNet; pays on long runs", resume=FREE)
    gradient_checkpointing: bool = flag(False, "less memory, a third more time", resume=FREE)
    save_dir: str = flag("./checkpoints", "folder of checkpoints", resume=FREE)
    log_dir: str = flag("./logs", "folder of logs", resume=FREE)
    report_to: str = flag(
        "tensorboard", "who shows curves and pictures; wandb is extra", choices=REPORT_TO, resume=FREE
    )
    save_interval: int = count(10, "epochs between kept checkpoints", resume=FREE)
    keep_last: int | None = count(None, "kept checkpoints; none given: all", resume=FREE)
    sample_interval: int = count(5, "epochs between sample grids", resume=FREE)
    val_images: int = count(1024, "images of a validation pass", resume=ADJUSTABLE)
    init_from: str | None = flag(
        None,
        "start from what fits of this model's weights; a path, or a name in pretrained/",
        resume=FREE,
    )
    resume: str | None = flag(
        None, "go on from SAVE_DIR's latest checkpoint, or from this file", resume=FREE, bare=""
    )
    seed: int = count(0, "another seed, another run", low=0)
    dry_run: bool = flag(False, "two steps, timed: no checkpoint, no log", resume=FREE)
    model: ModelConfig = nested(ModelConfig)
    loss: LossConfig = nested(LossConfig)
    first_stage: FirstStageConfig = nested(FirstStageConfig)
    first_stage_loss: FirstStageLossConfig = nested(FirstStageLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for wrong, message in (
            (
                self.dataset == "synthetic" and self.data_root,
                "--dataset synthetic draws its own faces: leave --data_root out",
            ),
            (
                self.dataset not in (None, "synthetic") and not self.data_root,
                f"--dataset {self.dataset} needs --data_root, the folder that holds it",
            ),
            (
                self.download and self.dataset not in (None, "celeba"),
                f"--download fetches CelebA, not {self.dataset}: fetch that by hand",
            ),
            (
                self.download and not self.data_root,
                "--download needs --data_root, the folder to download into",
            ),
            (
                self.latents
                and (self.data_root or self.stage == "first_stage" or self.data_fraction < 1),
                "--latents is a dataset of its own: no --data_root, no --data_fraction, and no "
                "--stage first_stage",
            ),
            (
                self.init_from and self.stage == "first_stage",
                "--init_from is for the model and the guide: leave it out with --stage first_stage",
            ),
            (
                self.compile and self.stage != "diffusion",
                f"--compile is for the UNet: leave it out with --stage {self.stage}",
            ),
            (
                self.gradient_checkpointing and self.stage != "diffusion",
                f"--gradient_checkpointing is for the UNet: leave it out with --stage {self.stage}",
            ),
        ):
            if wrong:
                raise ValueError(message)

    @property
    def data_folder(self) -> str:
        """The folder of images: that of synthetic faces, if none is given."""
        return self.data_root or f"data/synthetic_faces_{self.model.image_size}"


def parse_args(argv: list[str] | None = None) -> TrainConfig:
    return flags.parse(TrainConfig, __doc__, argv)


def train(config: TrainConfig) -> None:
    """Start or resume a run, and take it to its end."""
    from training.process import make_accelerator
    from training.run import CheckpointFiles, TrainingRun

    accelerator = make_accelerator(config)
    files = CheckpointFiles(config)
    check(config, accelerator, files)
    config, train_set, val_set = load_datasets(config, accelerator)
    run = TrainingRun(config, accelerator, train_set, val_set)
    if config.resume is not None:
        run.load(*files.to_resume())
    if config.dry_run:
        dry_run(run)
    else:
        fit(run, files)
    accelerator.wait_for_everyone()
    accelerator.end_training()  # or the processes abort one another at exit


def fit(run, files) -> None:
    """The training loop: step, log, validate, save."""
    from tqdm import tqdm

    from training.monitoring import Logger, summary, validate
    from training.process import StopRequest, keep_freed_memory

    config, accelerator = run.config, run.accelerator
    main = accelerator.is_main_process
    with (
        tqdm(total=run.total_steps, initial=run.step, unit="step", disable=not main) as bar,
        StopRequest(accelerator) as stop,
        keep_freed_memory(accelerator.device.type),
        run.saved_if_cut_short(files.last, bar.write),
        closing(Logger(run, config.log_dir)) as logger,
        closing(run.batches(lambda: stop.asked)) as batches,
    ):
        if main:
            bar.write(about(run))
        clock, saved = run.clock(), time.perf_counter()
        while run.progress < 1 and not stop:
            started = time.perf_counter()
            metrics = training_step(run, batches)
            logger.add(metrics, time.perf_counter() - started)
            run.seconds = clock()
            bar.total = max(run.step, round(run.step / run.progress))  # the clock may end it sooner
            bar.update()
            if run.skipped and main:
                bar.write(f"step {run.step}: the loss or its gradient is not finite, step skipped")
            if run.step % LOG_STEPS == 0:
                means = logger.flush()
                loss, rate = means["loss/total"], means["speed/images_per_second"]
                bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} images/s")

            ended = run.progress >= 1
            if run.step % run.steps_per_epoch == 0 or ended:
                if ended:
                    logger.flush()
                trained, losses = logger.training_loss(), validate(run)
                if ended or run.epoch % config.sample_interval == 0:
                    logger.pictures()
                logger.scalars({f"validation/{name}": value for name, value in losses.items()})
                if main:
                    written = run.save_for_inference(losses, files.folder)
                    note = " (best so far)" if written and run.stage.keeps_best else ""
                    text = summary(run, losses, final=ended)
                    text = f"training loss {trained:.4f}, {text}"
                    bar.write(f"epoch {run.epoch}, step {run.step}{note}: {text}")
                    if run.epoch % config.save_interval == 0:
                        files.keep_epoch(run, run.epoch)
                    run.save(files.last)
                saved = time.perf_counter()
            elif main and time.perf_counter() - saved > SAVE_SECONDS:
                run.save(files.last)
                saved = time.perf_counter()
        logger.flush()
    if main and run.progress >= 1:
        print(what_next(run, files))


def what_next(run, files) -> str:
    """What a run says at its end: its files, and the commands that one would type next."""
    config, best = run.config, files.folder / run.stage.best
    log = Path(config.log_dir) / Path(run.log).name
    made = {best: "for the other scripts", files.last: "for --resume", log: "what was logged"}
    lines = [f"done: {run.step} steps, {run.seconds / 60:.1f} minutes"]
    lines += [f"  {path}: {what}" for path, what in made.items() if path.exists()]
    lines += ["next:"]
    if best.exists():
        lines += [f"  {run.stage.next_command(config, best)}"]
    if any(log.rglob("events.out.tfevents*")):
        lines += [f"  tensorboard --logdir {shlex.quote(config.log_dir)}"]
    return "\n".join(lines)


def training_step(run, batches) -> dict:
    """One optimiser step over grad_accum batches: forward, backward, clip, step, average.

    Returns:
        mean loss terms, the last batch's loss and timestep per sample, the learning rate, and the norm
        of the gradient before clipping.
    """
    accelerator, config = run.accelerator, run.config
    rate, sums = run.anneal(), {}
    for _ in range(config.grad_accum):
        images, attributes = next(batches)
        with accelerator.accumulate(run.model):
            terms, per_sample, t = run.model(images, attributes, run.loss_config)
            accelerator.backward(terms["total"])
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.detach() / config.grad_accum
    norm = float(accelerator.clip_grad_norm_(run.raw_model.parameters(), config.grad_clip))
    finite = math.isfinite(norm)  # alike on all processes; a loss that is not finite shows here, too
    with run.updating():
        if finite or accelerator.scaler is not None:  # fp16's scaler skips by itself, to adapt its scale
            run.optimizer.step()
        run.optimizer.zero_grad()
        if finite:
            run.ema.update(run.raw_model, run.step)
        run.count_step(finite)
    return {"terms": sums, "per_sample": per_sample, "t": t, "lr": rate, "grad_norm": norm}


def about(run) -> str:
    """What a run's first line says."""
    config, processes = run.config, run.accelerator.num_processes
    parts = f"{config.batch_size} x {config.grad_accum} accumulated x {processes} processes"
    text = f"{run.images_per_step} images a step ({parts}), learning rate {config.lr:g}"
    text += f", precision {run.accelerator.mixed_precision}"
    text += f"; starts from {run.origin}" if run.origin else ""
    judge = getattr(run.raw_model.config, "judge", "")
    return f"{text}; likeness is judged by {judge}" if judge else text


def check(config: TrainConfig, accelerator, files) -> None:
    """Refuse what cannot work before anything is drawn, decoded or written."""
    from training.stages import STAGES

    main, last = accelerator.is_main_process, files.last
    if config.resume is None and last.exists() and not config.dry_run and main:
        raise ValueError(f"{last} exists: go on from it with --resume, or choose another --save_dir")
    if config.resume is not None:
        files.to_resume()
    if main and not config.dry_run:
        flags.check_writable(config.save_dir, "--save_dir")
        flags.check_writable(config.log_dir, "--log_dir")
    STAGES[config.stage].check(config)


def load_datasets(config: TrainConfig, accelerator):
    """The configuration, as the data completes it, and the training and validation datasets. Draws the
    synthetic faces where no folder is given."""
    from celeba_dataset import download_celeba
    from image_data.datasets import find_dataset
    from image_data.encoded import LatentDataset
    from synthetic_faces.dataset import write_dataset

    size, crop, root = config.model.image_size, config.model.crop, config.data_root
    datasets: list
    if config.latents:
        datasets = [LatentDataset(config.latents, split) for split in ("train", "val")]
        for data in datasets if config.attribute else ():
            data.keep(config.attribute)
        known = {"image_size": datasets[0].image_size, "crop": datasets[0].crop}
        config = replace(config, model=replace(config.model, **known))
    else:
        if config.download and root:
            with accelerator.main_process_first():
                download_celeba(root)
        if root is None:
            root = config.data_folder
            with accelerator.main_process_first():
                write_dataset(root, num_images=6000, image_size=size, seed=0)
        kind = None if config.dataset == "synthetic" else config.dataset
        found = find_dataset(root, kind)
        found = found.keeping(config.attribute) if config.attribute else found
        accelerator.print(found)
        datasets = [
            found.open(split, size, crop, fraction, config.cache_dir)
            for split, fraction in (("train", config.data_fraction), ("val", 1.0))
        ]
    return config, *datasets


def dry_run(run) -> None:
    """Two training steps, the second timed, and a validation batch; no checkpoint, no log."""
    import torch

    from training.monitoring import validate

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
    precision = run.accelerator.mixed_precision
    print(about(run))
    print(f"{parameters:.1f} M parameters on {run.accelerator.device}, precision {precision}")
    print(f"training loss {float(metrics['terms']['total']):.4f}, validation loss {losses['total']:.4f}")
    print(f"{rate:.1f} images/s, {len(run.train_set) / rate / 60:.1f} minutes an epoch")
    if run.accelerator.device.type == "cuda":
        print(f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of GPU memory at most")
    print("dry run: no checkpoint and no log was written")


if __name__ == "__main__":
    flags.run(lambda: train(parse_args()))
