"""Train the conditional diffusion model jointly with its attribute-predicting VAE.

Without --data_root it draws synthetic faces first. Logs go to --log_dir; TensorBoard shows them, unless
--report_to names another. Checkpoints go to --save_dir: last.pth resumes exactly, best_model.pth (EMA
weights, best validation loss) is for manipulate.py. One process, or several with `accelerate launch
train.py ...`.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import flags
from config import (
    ADJUSTABLE,
    FREE,
    NAME,
    SEED,
    DataConfig,
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

if TYPE_CHECKING:
    from training.run import CheckpointFiles, TrainingRun

STAGES = ("diffusion", "first_stage", "guide", "upscaler")  # those of training/stages.py
LR_SCHEDULES = ("cosine", "constant")
OPTIMIZERS = ("muon", "adamw")  # those of training/optimizers.py
REPORT_TO = ("tensorboard", "wandb", "none")  # metrics.jsonl is written in any case
MAX_SKIPPED = 20  # steps in a row without a finite gradient, before training stops; by eye
GRAD_CLIP = 1.0  # largest norm of the gradient; a longer one is shortened to it
SAVE_SECONDS = 600  # last.pth is never older than this, however long an epoch is
LOG_STEPS = 20  # steps averaged in one point of a training curve


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """Flags of train.py. FREE: a resumed run may change it. ADJUSTABLE: it may, and says so. All others
    must stay the same."""

    # What is trained
    stage: str = flag(
        "diffusion", "the model, a first stage, a guide or an upscaler", choices=STAGES, resume=FREE
    )
    train_guide: bool = flag(True, "train a guide beside the model, for edits", resume=FREE)
    init_from: str | None = flag(None, "start from what fits of this model's weights", resume=FREE)
    seed: int = count(0, "another seed, another run", **SEED)

    # Data
    data_root: str | None = flag(
        None,
        "folder of labelled images or of their latents; none given: draws synthetic faces",
        resume=FREE,
        old="latents",
    )
    data_fraction: float = flag(1.0, "share of the training images to use", above=0, high=1, resume=FREE)
    attribute: tuple[str, ...] = flag((), "learn only these", metavar=NAME, resume=FREE)
    judge: str = flag("./checkpoints/judge.pth", "judge of likeness, in place of VGG16", resume=FREE)
    num_workers: int = count(0, "threads that read ahead; 0: none", low=0, resume=FREE)

    # Length of the run
    batch_size: int = count(16, "images of a process in one forward pass")
    grad_accum: int = count(1, "batches of an optimiser step", resume=FREE)
    epochs: int = count(100, "passes over the training images", resume=ADJUSTABLE)
    max_steps: int | None = count(None, "end after this many optimiser steps", resume=ADJUSTABLE)
    max_minutes: float | None = flag(None, "end by this time, saved", above=0, resume=ADJUSTABLE)

    # Optimisation
    optimizer: str = flag("muon", "changes the weights", choices=OPTIMIZERS)
    lr: float = flag(1e-3, "learning rate after the warm-up", above=0, resume=ADJUSTABLE)
    warmup_steps: int = count(200, "steps of linear warm-up", low=0, resume=ADJUSTABLE)
    lr_schedule: str = flag(
        "cosine", "after the warm-up: down to zero, or as it is", choices=LR_SCHEDULES, resume=ADJUSTABLE
    )
    weight_decay: float = weight(0.01, "share of the learning rate by which weights shrink in a step")
    ema_decay: float = share(0.9999, "decay of the averaged weights")
    compile: bool = flag(False, "torch.compile the UNet; pays on long runs", resume=FREE)
    gradient_checkpointing: bool = flag(False, "less memory, a third more time", resume=FREE)

    # Checkpoints, validation and logs
    save_dir: str = flag("./checkpoints", "folder of checkpoints", resume=FREE)
    save_interval: int = count(10, "epochs between kept checkpoints", resume=FREE)
    resume: str | None = flag(None, "go on from SAVE_DIR, or from this file", resume=FREE, bare="")
    val_images: int = count(1024, "images of a validation pass", resume=ADJUSTABLE)
    log_dir: str = flag("./logs", "folder of logs", resume=FREE)
    sample_interval: int = count(5, "epochs between pictures of the run; 0: none", low=0, resume=FREE)
    report_to: str = flag("tensorboard", "what shows the curves", choices=REPORT_TO, resume=FREE)
    dry_run: bool = flag(False, "two steps, timed: no checkpoint, no log", resume=FREE)

    # The network, and the weights of its loss
    model: ModelConfig = nested(ModelConfig)
    loss: LossConfig = nested(LossConfig)
    first_stage: FirstStageConfig = nested(FirstStageConfig)
    first_stage_loss: FirstStageLossConfig = nested(FirstStageLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset and not self.data_root:
            raise ValueError(f"--dataset {self.dataset} needs --data_root, the folder that holds it")
        if self.init_from and self.stage in ("first_stage", "upscaler"):
            raise ValueError(f"--init_from is for the model and the guide, not for --stage {self.stage}")
        for name in ("compile", "gradient_checkpointing"):
            if getattr(self, name) and self.stage != "diffusion":
                raise ValueError(f"--{name} is for the UNet: leave it out with --stage {self.stage}")

    @property
    def data_folder(self) -> str:
        """The folder of images: that of synthetic faces, if none is given."""
        return self.data_root or f"data/synthetic_faces_{self.model.image_size}"


def parse_args(argv: list[str] | None = None) -> TrainConfig:
    return flags.parse(TrainConfig, __doc__, argv)


def train(config: TrainConfig) -> None:
    """Start or resume a run, and take it to its end."""
    from training.batches import load_datasets
    from training.monitoring import dry_run
    from training.process import make_accelerator
    from training.run import CheckpointFiles, TrainingRun

    accelerator = make_accelerator(config)  # the device, the precision, the processes
    files = CheckpointFiles(config)
    with files.held(accelerator.is_main_process):  # refuses what cannot work before it is begun
        run = TrainingRun(config, accelerator, *load_datasets(config, accelerator))
        if config.resume is not None:
            run.load(files.to_resume())
        if config.dry_run:
            dry_run(run, training_step)
        else:
            fit(run, files)
        accelerator.wait_for_everyone()
    accelerator.end_training()  # or the processes abort one another at exit


def fit(run: TrainingRun, files: CheckpointFiles) -> None:
    """The training loop: step, log, validate, save. ``run.stage`` has what differs by --stage."""
    from tqdm import tqdm

    from training.monitoring import Logger, last_words, validate
    from training.process import StopRequest, keep_freed_memory

    config, accelerator = run.config, run.accelerator
    is_main = accelerator.is_main_process
    with (
        tqdm(total=run.total_steps, initial=run.step, unit="step", disable=not is_main) as bar,
        StopRequest(accelerator) as stop,  # true after Ctrl-C, SIGTERM and the like
        keep_freed_memory(accelerator.device.type),
        run.saved_if_cut_short(files.last, bar.write),  # by a stop or an error
        closing(Logger(run, config.log_dir)) as logger,
        closing(run.batches()) as batches,
    ):
        if is_main:
            bar.write(run.first_line())
        begun, saved = time.perf_counter() - run.seconds, time.perf_counter()
        save_seconds = 0.0  # that the latest save took
        while run.progress < 1 and not stop:  # of --epochs, --max_steps or --max_minutes
            started = time.perf_counter()
            metrics = training_step(run, batches)
            logger.add(metrics, time.perf_counter() - started)
            run.seconds = run.of_first_process(time.perf_counter() - begun)
            bar.total = max(run.step, round(run.step / run.progress))  # the clock may end it sooner
            bar.update()
            if run.skipped and is_main:
                bar.write(f"step {run.step}: the loss or its gradient is not finite, step skipped")
            ended = run.progress >= 1
            if run.step % LOG_STEPS == 0 or ended:
                means = logger.flush()
                loss, rate = means["loss/total"], means["speed/images_per_second"]
                bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} images/s")
                if run.step < run.steps_per_epoch and not ended:  # until validation is measured
                    run.finish_seconds = run.of_first_process(run.num_validation_images / rate)
            if run.step % run.steps_per_epoch == 0 or ended:
                started = time.perf_counter()
                trained, losses = logger.training_loss(), validate(run)
                interval = config.sample_interval
                if interval and (ended or run.epoch % interval == 0):
                    logger.pictures()
                logger.scalars({f"validation/{name}": value for name, value in losses.items()})
                if is_main:
                    note = " (best so far)" if run.save_for_inference(losses, files.folder) else ""
                    text = f"training loss {trained:.4f}, validation loss {losses['total']:.4f}"
                    text += run.stage.summary(losses, final=ended)
                    bar.write(f"epoch {run.epoch}, step {run.step}{note}: {text}")
                    if run.epoch % config.save_interval == 0:
                        run.save(files.folder / f"{files.prefix}epoch_{run.epoch:04d}.pth")
                    # Set before saving: from it, a resumed run knows whether the run had ended.
                    finished = time.perf_counter()
                    run.finish_seconds = max(run.finish_seconds, finished - started + save_seconds)
                    run.save(files.last)
                    save_seconds = time.perf_counter() - finished
                saved = time.perf_counter()
                run.finish_seconds = run.of_first_process(run.finish_seconds)
            elif is_main and time.perf_counter() - saved > SAVE_SECONDS:
                run.save(files.last)
                saved = time.perf_counter()
        logger.flush()
    if is_main and run.progress >= 1:
        print(last_words(run, files))


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up, then cosine annealing to zero over ``progress`` in [0, 1], or a constant."""
    rate = config.lr * min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.lr_schedule == "constant":
        return rate
    return rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def training_step(run: TrainingRun, batches) -> dict:
    """One optimiser step over grad_accum batches: forward, backward, clip, step, average.

    Returns:
        mean loss terms, the last batch's loss and timestep per sample, the learning rate, and the norm
        of the gradient before clipping.

    Raises:
        ValueError: after MAX_SKIPPED steps in a row with a non-finite loss or gradient.
    """
    accelerator, config, sums = run.accelerator, run.config, {}
    rate = learning_rate(config, run.step, run.progress)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.raw_model.progress = run.progress  # which a first stage's loss reads
    for _ in range(config.grad_accum):
        images, attributes = next(batches)
        with accelerator.accumulate(run.model):
            terms, per_sample, t = run.model(images, attributes, run.loss_config)
            accelerator.backward(terms["total"])
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.detach() / config.grad_accum
    norm = float(accelerator.clip_grad_norm_(run.raw_model.parameters(), GRAD_CLIP))
    finite = math.isfinite(norm)  # the same on all processes; a loss that is not finite shows here, too
    run.whole = False  # an error from here on leaves nothing that could be saved
    if finite or accelerator.scaler is not None:  # fp16's scaler skips by itself, to adapt its scale
        run.optimizer.step()
    run.optimizer.zero_grad()
    if finite:
        run.ema.update(run.raw_model, run.step)
    run.skipped = 0 if finite else run.skipped + 1
    run.step += 1
    if run.skipped >= MAX_SKIPPED:
        raise ValueError(
            f"the loss or its gradient was not finite {MAX_SKIPPED} steps in a row, up to step "
            f"{run.step}: the last checkpoint is intact; --resume with a lower --lr"
        )
    run.whole = True
    return {"terms": sums, "per_sample": per_sample, "t": t, "lr": rate, "grad_norm": norm}


if __name__ == "__main__":
    flags.run(lambda: train(parse_args()))
