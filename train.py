"""Train the conditional diffusion model jointly with its attribute-predicting VAE.

Without --data_root it draws synthetic faces first. TensorBoard logs go to --log_dir, checkpoints to
--save_dir: last.pth resumes exactly, best_model.pth (EMA weights, best validation loss) is for
manipulate.py. One process, or several with `accelerate launch train.py ...`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from contextlib import closing
from pathlib import Path

import cli
from model_config import ModelConfig, configure

SAVE_SECONDS = 600  # last.pth is never older than this, however long an epoch is
LOG_STEPS = 20  # steps averaged in one point of a training curve


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    stages = "the diffusion model, a first stage for latent diffusion, or a classifier for guidance"
    add("--config", metavar="FILE", help="YAML of flags and values, which the command line overrides")
    add("--stage", default="diffusion", choices=("diffusion", "autoencoder", "classifier"), help=stages)
    judge = "./checkpoints/evaluation_classifier.pth"
    add("--classifier", default=judge, help="judges likeness in --stage autoencoder without VGG16")
    data = parser.add_argument_group("data").add_argument
    data("--data_root", help="folder of labelled images; synthetic faces are drawn where not given")
    kinds = ("celeba", "celebahq", "folder", "mnist", "cifar10", "synthetic")
    data("--dataset", choices=kinds, help="what --data_root holds; None: as its files say")
    data("--flip", action=argparse.BooleanOptionalAction, default=True, help="mirror at random")
    data("--latents", help="folder of encode_latents.py: train in those latents, decoding no image")
    data("--attribute", help="the only one that --stage classifier learns; all where not given")
    data("--download", action="store_true", help="fetch CelebA into --data_root first")
    data("--data_fraction", type=cli.fraction, default=1.0, help="share of the training images to use")
    data("--cache_dir", default="data/cache", help="where decoded images are kept")
    data("--num_workers", type=cli.count, default=0, help="loader processes; 0 reads in this one")
    cli.add_model_flags(parser)
    optim = parser.add_argument_group("optimisation").add_argument
    optim("--batch_size", type=cli.positive_int, default=16, help="per process and accumulation step")
    optim("--grad_accum", type=cli.positive_int, default=1, help="batches per optimiser step")
    optim("--epochs", type=cli.positive_int, default=100)
    optim("--max_steps", type=cli.positive_int, help="end after this many optimiser steps")
    optim("--max_minutes", type=cli.positive, help="end, learning rate annealed, after this time")
    optim("--lr", type=cli.positive, default=2e-4)
    optim("--warmup_steps", type=cli.count, default=200)
    optim("--weight_decay", type=cli.non_negative, default=0.01)
    optim("--grad_clip", type=cli.positive, default=1.0, help="largest gradient norm")
    optim("--ema_decay", type=cli.fraction, default=0.9999)
    optim("--compile", action="store_true", help="torch.compile the UNet; pays on long runs")
    optim("--gradient_checkpointing", action="store_true", help="less memory, a third more time")
    add("--save_dir", default="./checkpoints")
    add("--log_dir", default="./logs")
    add("--save_interval", type=cli.positive_int, default=10, help="epochs between kept checkpoints")
    add("--keep_last", type=cli.positive_int, help="of those; None: all")
    add("--sample_interval", type=cli.positive_int, default=5, help="epochs between sample grids")
    add("--val_images", type=cli.positive_int, default=1024, help="images of a validation pass")
    add("--resume", nargs="?", const="", metavar="CHECKPOINT", help="go on from SAVE_DIR/last.pth")
    add("--seed", type=cli.count, default=0)
    cli.add_device_flags(parser)
    add("--dry_run", action="store_true", help="two steps, timed: no checkpoint, no log")
    args = parser.parse_args(argv)
    if args.config:
        try:
            given = cli.config_flags(args.config, parser)
        except ValueError as error:
            parser.error(str(error))
        args = parser.parse_args([*given, *(sys.argv[1:] if argv is None else argv)])
    refuse(parser, args)
    return args


def refuse(parser: cli.Parser, args: argparse.Namespace) -> None:
    """What flags say against each other is an error of the parser."""
    if args.dataset == "synthetic" and args.data_root:
        parser.error("--dataset synthetic draws its own faces: leave --data_root out")
    if args.dataset not in (None, "synthetic") and not args.data_root:
        parser.error(f"--dataset {args.dataset} needs --data_root, the folder that holds it")
    if args.download and args.dataset not in (None, "celeba"):
        parser.error(f"--download fetches CelebA, not {args.dataset}: fetch that by hand")
    if args.download and not args.data_root:
        parser.error("--download needs --data_root, the folder to download into")
    if args.latents and (args.data_root or args.stage == "autoencoder" or args.data_fraction < 1):
        parser.error(
            "--latents is a dataset of its own: no --data_root, --data_fraction, --stage autoencoder"
        )
    for flag in ("compile", "gradient_checkpointing"):
        if getattr(args, flag) and args.stage != "diffusion":
            parser.error(f"--{flag} is for the UNet: leave it out with --stage {args.stage}")
    if args.attribute and args.stage != "classifier":
        parser.error("--attribute is for --stage classifier: the other stages learn all attributes")


def make_accelerator(args: argparse.Namespace):
    """The accelerate.Accelerator for the device and precision asked for."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    device = cli.choose_device(args.device)
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes are the same in every step
        torch.set_float32_matmul_precision("high")  # TF32 where --mixed_precision no
    unused = DistributedDataParallelKwargs(find_unused_parameters=args.stage == "autoencoder")
    return Accelerator(
        kwargs_handlers=[unused],  # the discriminator, before it sets in
        cpu=device == "cpu",
        mixed_precision=cli.choose_precision(args.mixed_precision, device),
        gradient_accumulation_steps=args.grad_accum,
    )


def load_datasets(args: argparse.Namespace, accelerator):
    """The training and validation datasets; draws the synthetic faces where no folder is given."""
    from celeba_dataset import download_celeba
    from labelled_images import open_dataset

    if args.latents:
        from latent_dataset import LatentDataset

        train_set, val_set = (LatentDataset(args.latents, split) for split in ("train", "val"))
        args.image_size, args.crop = train_set.image_size, train_set.crop
        return train_set, val_set
    root = args.data_root
    if args.download:
        with accelerator.main_process_first():
            download_celeba(root)
    if root is None:
        from synthetic_faces import write_dataset

        root = f"data/synthetic_faces_{args.image_size}"
        with accelerator.main_process_first():
            write_dataset(root, num_images=6000, image_size=args.image_size, seed=0)
    common = {"image_size": args.image_size, "crop": args.crop, "cache_dir": args.cache_dir}
    common["kind"] = None if args.dataset == "synthetic" else args.dataset
    train_set = open_dataset(root, "train", data_fraction=args.data_fraction, **common)
    return train_set, open_dataset(root, "val", **common)


def dry_run(run) -> None:
    """Two training steps, the second timed, and a validation batch; no checkpoint, no log."""
    from monitoring import validate

    run.args.val_images = run.args.batch_size
    with closing(run.batches()) as batches:
        run.update(batches)  # the first step allocates
        started = time.perf_counter()
        metrics = run.update(batches)
        seconds = time.perf_counter() - started
    losses = validate(run)
    if not run.accelerator.is_main_process:
        return
    parameters = sum(p.numel() for p in run.raw_model.parameters()) / 1e6
    rate = run.images_per_step / seconds
    precision = run.accelerator.mixed_precision
    print(f"{parameters:.1f} M parameters on {run.accelerator.device}, precision {precision}")
    print(f"loss {float(metrics['terms']['total']):.4f}, validation loss {losses['total']:.4f}")
    print(f"{rate:.1f} images/s, {len(run.train_set) / rate / 60:.1f} minutes an epoch")
    if run.accelerator.device.type == "cuda":
        import torch

        print(f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of GPU memory at most")
    print("dry run: no checkpoint and no log was written")


def prefix(args: argparse.Namespace) -> str:
    """Of a classifier's files, so that it may stand in the folder of the model it guides."""
    return "classifier_" if args.stage == "classifier" else ""


def last_checkpoint(args: argparse.Namespace) -> Path:
    """Where a run saves what --resume goes on from."""
    return Path(args.save_dir) / f"{prefix(args)}last.pth"


def saved_checkpoints(args: argparse.Namespace) -> list[Path]:
    """What a run has saved that can be resumed from, newest first."""
    return [path for path in (last_checkpoint(args), *epoch_files(args)[::-1]) if path.is_file()]


def epoch_files(args: argparse.Namespace, up_to: float = float("inf")) -> list[Path]:
    """The kept checkpoints of epochs up to this one, oldest first."""
    pattern, folder = re.compile(rf"{prefix(args)}epoch_(\d+)\.pth"), Path(args.save_dir)
    found = {path: pattern.fullmatch(path.name) for path in folder.glob("*.pth")}
    numbered = sorted((int(match[1]), path) for path, match in found.items() if match)
    return [path for number, path in numbered if number <= up_to]


def finish_epoch(run, logger, bar, final: bool = False) -> None:
    """Validate, show samples, and save what is due."""
    from monitoring import summary, validate

    args, folder = run.args, Path(run.args.save_dir)
    epoch = -(-run.step // run.steps_per_epoch)
    losses = validate(run)
    logger.scalars({f"validation/{name}": value for name, value in losses.items()})
    if final or epoch % args.sample_interval == 0:
        logger.pictures()
    if run.accelerator.is_main_process:
        written = run.save_for_inference(losses, folder)
        note = f", written: {written}" if written else ""
        bar.write(f"epoch {epoch}, step {run.step}{note}: {summary(losses, final)}")
        if epoch % args.save_interval == 0:
            run.save(folder / f"{prefix(args)}epoch_{epoch:04d}.pth")
            for old in epoch_files(args, epoch)[: -args.keep_last] if args.keep_last else ():
                old.unlink()
        run.save(last_checkpoint(args))


def check_flags(args: argparse.Namespace, accelerator) -> None:
    """Refuse what cannot work before anything is drawn, decoded or written."""
    import torch

    from celeba_dataset import CELEBA_ATTRIBUTES
    from classifier_model import GuidanceClassifier
    from diffusion_model import ConditionalDiffusion

    last = last_checkpoint(args)
    if args.resume is None and last.exists() and not args.dry_run and accelerator.is_main_process:
        raise ValueError(f"{last} exists: go on from it with --resume, or choose another --save_dir")
    if args.resume == "" and not saved_checkpoints(args):
        raise FileNotFoundError(f"no checkpoint at {last} to resume from")
    if args.resume and not Path(args.resume).is_file():
        raise FileNotFoundError(f"no checkpoint at {args.resume} to resume from")
    if accelerator.is_main_process and not args.dry_run:
        check_writable(Path(args.save_dir), Path(args.log_dir))
    if args.stage != "autoencoder" and not args.latents:  # whose image size is the folder's
        kind = GuidanceClassifier if args.stage == "classifier" else ConditionalDiffusion
        with torch.device("meta"):
            kind(configure(ModelConfig, args, attribute_names=CELEBA_ATTRIBUTES))


def check_writable(*folders: Path) -> None:
    """OSError where one of the folders cannot be written to, or not be made."""
    for folder in folders:
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise OSError(f"cannot write to {folder}, as {there} is not open to it: choose another")


def train(args: argparse.Namespace) -> None:
    """Start or resume a run, and take it to its end."""
    from training import TrainingRun, keep_attribute

    accelerator = make_accelerator(args)
    check_flags(args, accelerator)
    datasets = load_datasets(args, accelerator)
    if args.attribute:
        for data in datasets:
            keep_attribute(data, args.attribute)
    run = TrainingRun(args, accelerator, *datasets)
    if args.resume is not None:
        run.load(*([Path(args.resume)] if args.resume else saved_checkpoints(args)))
    (dry_run if args.dry_run else fit)(run)
    accelerator.wait_for_everyone()
    accelerator.end_training()  # or the processes abort one another at exit


def fit(run) -> None:
    """The training loop."""
    from training import keep_freed_memory

    with closing(run.batches()) as batches, keep_freed_memory(run.accelerator.device.type):
        loop(run, batches)


def loop(run, batches) -> None:
    """Every step over these batches, and what comes between steps."""
    from tqdm import tqdm

    from monitoring import Logger
    from training import StopRequest

    args, accelerator, last = run.args, run.accelerator, last_checkpoint(run.args)
    main = accelerator.is_main_process
    logger, stop = Logger(run, args.log_dir), StopRequest(accelerator)
    bar = tqdm(total=run.total_steps, initial=run.step, unit="step", disable=not main)
    parts = f"{args.batch_size} x {args.grad_accum} accumulated x {accelerator.num_processes} processes"
    if main:
        bar.write(f"{run.images_per_step} images a step ({parts}), learning rate {args.lr:g}")
    clock, saved = run.clock(), time.perf_counter()
    while run.progress < 1 and not stop:
        started = time.perf_counter()
        metrics = run.update(batches)
        logger.add(metrics, time.perf_counter() - started)
        run.seconds = clock()
        bar.update()
        if run.skipped and main:
            bar.write(f"step {run.step}: the loss or its gradient is not finite, step skipped")
        if run.step % LOG_STEPS == 0:
            means = logger.flush()
            bar.total = max(run.step, round(run.step / run.progress))  # the clock may end it sooner
            loss, rate = means["loss/total"], means["speed/images_per_second"]
            bar.set_postfix(loss=f"{loss:.4f}", images_s=f"{rate:.1f}")
        if run.step % run.steps_per_epoch == 0 and run.progress < 1:
            finish_epoch(run, logger, bar)
            saved = time.perf_counter()
        elif main and time.perf_counter() - saved > SAVE_SECONDS:
            run.save(last)
            saved = time.perf_counter()
    logger.flush()
    if run.progress >= 1:
        finish_epoch(run, logger, bar, final=True)
    elif main:
        run.save(last)
        bar.write(f"stopped after step {run.step}; go on with --resume")
    bar.close()


if __name__ == "__main__":
    cli.run(lambda: train(parse_args()))
