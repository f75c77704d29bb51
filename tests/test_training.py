from __future__ import annotations

import errno
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from helpers import REPOSITORY, one_line, run_training
from torch.utils.tensorboard import SummaryWriter

import checkpoint
import encode_latents
import manipulate
import train
from checkpoint import load_checkpoint
from train import MAX_SKIPPED, training_step
from training.batches import batch_order, load_datasets, seed_everything
from training.monitoring import Logger, validate
from training.process import make_accelerator
from training.run import TrainingRun, check_extra_losses

TENSORBOARD = ("--report_to", "tensorboard")
DRAWS = ("--sample_interval", "1")


def make_run(flags, *more) -> TrainingRun:
    config = train.parse_args([*flags, *more])
    accelerator = make_accelerator(config)
    return TrainingRun(config, accelerator, *load_datasets(config, accelerator))


def same(first, second) -> bool:
    """Equal to the last bit, through dictionaries and lists."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize(
    ("best", "more"),
    [
        ("best_model.pth", ""),
        ("best_model.pth", "--grad_accum 2 --num_workers 2 --dropout 0.1"),
        ("guide_best.pth", "--stage guide --num_workers 2"),
        ("first_stage.pth", "--stage first_stage --channels 8 16 --perceptual_weight 0"),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(flags, tmp_path, stop_after_three, best, more):
    """Stopped in the middle of an epoch, and resumed: every weight, average, moment and best loss is
    bit for bit what it would have been. A first stage's discriminator and its schedule, too."""
    prefix = "guide_" if "guide" in more else ""
    more = [*more.split(), "--epochs", "2"]
    run_training(flags, tmp_path / "whole", *more)
    with stop_after_three():
        run_training(flags, tmp_path / "parts", *more)
    assert load_checkpoint(tmp_path / "parts" / f"{prefix}last.pth")["step"] == 3
    run_training(flags, tmp_path / "parts", *more, "--resume")
    whole, parts = (
        load_checkpoint(tmp_path / which / f"{prefix}last.pth") for which in ("whole", "parts")
    )
    for key in ("step", "best", "model", "ema", "optimizer"):
        assert same(whole[key], parts[key]), key
    assert same(*(load_checkpoint(tmp_path / which / best) for which in ("whole", "parts")))


def test_no_run_is_overwritten_and_none_resumed_from_weights_alone(flags, tmp_path):
    run_training(flags, tmp_path, "--max_steps", "1")
    with pytest.raises(ValueError, match=r"last.pth exists: go on from it with --resume"):
        run_training(flags, tmp_path, "--max_steps", "2")
    with pytest.raises(ValueError, match="inference weights only"):
        best = str(tmp_path / "best_model.pth")
        run_training(flags, tmp_path, "--max_steps", "2", "--resume", best)


def test_sigterm_saves_and_exits_cleanly(flags, tmp_path):
    """To the whole group, as schedulers send it."""
    command = [sys.executable, "train.py", *flags, "--epochs", "9999", "--save_dir", str(tmp_path)]
    command += ["--num_workers", "2"]
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(
            [*command, "--log_dir", str(tmp_path / "logs")],
            cwd=REPOSITORY, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        deadline = time.time() + 120
        while not (tmp_path / "last.pth").exists() and time.time() < deadline:
            time.sleep(0.2)  # the first epoch's checkpoint: training is under way
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0
    text = (tmp_path / "output").read_text()
    assert "go on with --resume" in text and "Traceback" not in text
    stopped = load_checkpoint(tmp_path / "last.pth")["step"]
    assert f"stopped after step {stopped};" in text


def test_non_finite_gradients_skip_the_step_and_too_many_stop(flags, monkeypatch):
    run = make_run(flags)
    batches = run.batches()
    weights = {name: value.clone() for name, value in run.raw_model.state_dict().items()}
    true_target = run.raw_model.schedule.target
    monkeypatch.setattr(run.raw_model.schedule, "target", lambda *a: true_target(*a) * float("nan"))
    training_step(run, batches)
    assert run.skipped == 1
    assert same(weights, run.raw_model.state_dict()) and same(weights, run.ema.model.state_dict())
    with pytest.raises(ValueError, match=f"not finite {MAX_SKIPPED} steps in a row"):
        for _ in range(MAX_SKIPPED):
            training_step(run, batches)
    monkeypatch.undo()
    training_step(run, batches)
    assert run.skipped == 0
    assert not same(weights, run.raw_model.state_dict())


class FullDisk(io.FileIO):
    """A file on a disk with room for 5,000 bytes."""

    def write(self, data):
        if self.tell() > 5000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("at", ["write", "fsync"])
def test_a_full_disk_leaves_the_last_checkpoint(flags, tmp_path, monkeypatch, capsys, at):
    path = run_training(flags, tmp_path, "--max_steps", "2")
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if at == "write":
        monkeypatch.setattr(checkpoint, "open", FullDisk, raising=False)
    else:
        monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    more = ["--max_steps", "4", "--resume"]
    said = one_line(capsys, lambda: run_training(flags, tmp_path, *more))
    assert "cannot write" in said and str(tmp_path) in said and "free some space" in said
    assert path.read_bytes() == before and not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    run_training(flags, tmp_path, *more)
    assert load_checkpoint(path)["step"] == 4


def test_pictures_that_vanish_in_a_run_are_in_the_cache(faces, flags, tmp_path):
    root = tmp_path / "faces"
    shutil.copytree(faces, root)
    run = make_run(flags, "--data_root", str(root), "--cache_dir", str(tmp_path / "cache"))
    batches = run.batches()
    training_step(run, batches)
    shutil.rmtree(root)
    training_step(run, batches)
    assert run.step == 2


def test_dry_run_writes_nothing(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.train(train.parse_args([*flags, "--dry_run"]))
    assert "no checkpoint and no log was written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_every_curve_and_picture(flags, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_training(flags, tmp_path, "--max_steps", "20", *TENSORBOARD, *DRAWS)
    folder = tmp_path / "logs" / "0001"
    events = EventAccumulator(str(folder)).Reload()
    terms = ("total", "diffusion", "reconstruction", "kl", "attributes")
    expected = {f"{kind}/{term}" for kind in ("loss", "validation") for term in terms}
    expected |= {f"diffusion_by_timestep/quartile_{q}" for q in (1, 2, 3, 4)}
    expected |= {"optimisation/grad_norm", "optimisation/lr", "speed/images_per_second"}
    assert expected <= set(events.Tags()["scalars"])
    assert {tag.split("/")[0] for tag in events.Tags()["images"]} == {"samples", "reconstructions"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert expected <= {name for line in lines for name in line} and lines[-1]["step"] == 20
    environment = json.loads((folder / "environment.json").read_text())
    assert environment[0]["images_per_step"] == 4 and "git_revision" in environment[0]
    again = train.parse_args(["--config", str(folder / "config.yaml")])
    assert again.max_steps == 20 and again.model.channels == (16, 32)
    said = capsys.readouterr().out
    epochs = re.findall(r"epoch \d, step (\d+).*: training loss (\S+), validation loss \d", said)
    steps = [int(step) for step, _ in epochs]
    assert len(steps) == 3 and steps[-1] == 20
    lengths = [step - before for before, step in pairwise([0, *steps])]
    total = sum(length * float(loss) for length, (_, loss) in zip(lengths, epochs, strict=True))
    (mean,) = [line["loss/total"] for line in lines if "loss/total" in line]
    assert total / 20 == pytest.approx(mean, abs=1e-3)


def test_without_a_tracker_metrics_are_written(flags, tmp_path):
    run_training(flags, tmp_path, "--max_steps", "1")
    names = {path.name for path in (tmp_path / "logs" / "0001").iterdir()}
    assert names == {"config.yaml", "environment.json", "metrics.jsonl"}


def test_wandb_that_is_not_installed(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = one_line(capsys, lambda: run_training(flags, tmp_path, "--report_to", "wandb"))
    assert "pip install wandb" in said and not list(tmp_path.iterdir())


WANDB = """
import pathlib

def init(project, dir, **more):
    if not (pathlib.Path(dir) / "config.yaml").is_file():
        raise RuntimeError("no folder")
    runs.append({"project": project, **more})
    return Run()

class Image:
    def __init__(self, pixels):
        assert pixels.ndim == 3 and pixels.dtype.name == "uint8"

class Run:
    def log(self, values, step):
        logged.append((step, *values))

    def finish(self):
        logged.append("finished")

class config:
    def update(values, allow_val_change):
        runs[-1]["config"] = values

runs, logged = [], []
"""


def test_a_stub_of_wandb_sees_curves_pictures_and_settings(flags, tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(WANDB)
    spec = spec_from_file_location("wandb", tmp_path / "wandb.py")
    stub = module_from_spec(spec)
    spec.loader.exec_module(stub)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    run_training(flags, tmp_path / "run", "--max_steps", "1", "--report_to", "wandb", *DRAWS)
    (started,) = stub.runs
    assert started["name"] == "0001" and started["config"]["max_steps"] == 1
    seen = {name for step, *names in stub.logged[:-1] for name in names if step == 1}
    assert {"loss/total", "validation/total", "samples", "reconstructions"} <= seen
    assert stub.logged[-1] == "finished" and stub.logged.count("finished") == 1
    assert not list((tmp_path / "run" / "logs" / "0001").glob("events*"))


def test_a_skipped_step_does_not_spoil_an_epoch_s_training_loss():
    single = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=False, num_processes=1))
    logger = Logger(single, "")
    for total in (1.0, float("nan"), 3.0):
        logger.add({"terms": {"total": torch.tensor(total)}}, 0.1)
    assert logger.training_loss() == 2
    logger.add({"terms": {"total": torch.tensor(5.0)}}, 0.1)
    assert logger.training_loss() == 5


def test_a_resumed_run_keeps_its_folder_and_another_gets_its_own(flags, tmp_path):
    """Metrics after the checkpoint are those of a run that broke off, and go."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_training(flags, tmp_path, "--max_steps", "20", *TENSORBOARD)
    logs = tmp_path / "logs"
    (last,) = (logs / "0001").glob("events*")
    with SummaryWriter(str(logs / "0001")) as events:
        events.add_scalar("validation/total", 9.0, 30)
    (added,) = {*(logs / "0001").glob("events*")} - {last}
    added.rename(last.with_name(f"{last.name}.1"))  # files are read by their names' order
    with open(logs / "0001" / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "loss/total": 1}\n{"step": 40, "lo')
    run_training(flags, tmp_path / "other", "--max_steps", "1")
    run_training(flags, tmp_path, "--max_steps", "40", "--resume", *TENSORBOARD)
    assert [each.name for each in logs.iterdir()] == ["0001"]
    steps = [json.loads(line)["step"] for line in (logs / "0001" / "metrics.jsonl").open()]
    assert steps == sorted(steps) and steps[-1] == 40 and 30 not in steps
    shown = EventAccumulator(str(logs / "0001")).Reload().Scalars("validation/total")
    assert [each.step for each in shown] == [7, 14, 20, 21, 28, 35, 40]
    starts = json.loads((logs / "0001" / "environment.json").read_text())
    assert [start["step"] for start in starts] == [0, 20]
    args = ["--save_dir", str(tmp_path / "third"), "--log_dir", str(logs), "--max_steps", "41"]
    train.train(train.parse_args([*flags, *args, "--resume", str(tmp_path / "last.pth")]))  # a branch
    assert sorted(each.name for each in logs.iterdir()) == ["0001", "0002"]
    shutil.copytree(tmp_path / "third", tmp_path / "copy")
    args = ["--save_dir", str(tmp_path / "copy"), "--log_dir", str(logs), "--max_steps", "42"]
    train.train(train.parse_args([*flags, *args, "--resume"]))
    assert sorted(each.name for each in logs.iterdir()) == ["0001", "0002", "0003"]


def test_validation_repeats_and_leaves_training_alone(flags):
    run = make_run(flags, "--val_images", "3")
    first = validate(run)
    torch.randn(5)
    assert validate(run) == pytest.approx(first, rel=0, abs=0, nan_ok=True)
    losses = {name for name in first if "quartile" not in name}
    assert losses == {"total", "diffusion", "reconstruction", "kl", "attributes", "guide"}
    weighted = first["diffusion"] + 0.1 * first["reconstruction"] + 0.001 * first["kl"]
    assert first["total"] == pytest.approx(weighted + 0.01 * first["attributes"])  # without the guide


def test_every_epoch_shows_every_image_once_over_all_processes():
    for world in (1, 2):
        orders = [batch_order(30, 5, 0, rank, world, 0) for rank in range(world)]
        steps = 2 * 30 // (5 * world)
        seen = [i for _ in range(steps) for order in orders for i in next(order)]
        assert sorted(seen[:30]) == sorted(seen[30:]) == list(range(30))
        assert seen[:30] != seen[30:]
    late = next(batch_order(30, 5, 0, 0, 1, start=4))
    assert late == next(itertools.islice(batch_order(30, 5, 0, 0, 1, 0), 4, None))


def test_two_processes_train_as_one_with_twice_the_accumulation(flags, launch_two, tmp_path):
    """The same weights, but for the order of sums. The second process has no image left to validate."""
    more = ["--max_steps", "4", "--num_workers", "1"]
    alone = load_checkpoint(run_training(flags, tmp_path / "one", *more, "--grad_accum", "2"))
    where = ["--save_dir", str(tmp_path), "--log_dir", str(tmp_path / "logs")]
    assert "8 images a step (4 x 1 accumulated x 2 processes)" in launch_two(
        "train.py", *flags, *where, *more
    )
    together = load_checkpoint(tmp_path / "last.pth")
    assert together["recipe"] == alone["recipe"] and together["step"] == alone["step"] == 4
    assert together["best"] == pytest.approx(alone["best"], rel=1e-5)
    for part in ("model", "ema"):
        for name, weight in alone[part].items():
            assert torch.allclose(together[part][name], weight, rtol=1e-4, atol=1e-6), f"{part} {name}"


def test_seeds_of_different_steps_differ():
    draws = set()
    for numbers in ((0, 1), (1, 0), (0, 0, 1), (0, 1, 0)):
        seed_everything(*numbers)
        draws.add(float(torch.rand(())))
    assert len(draws) == 4


def test_speed_and_memory_flags_reach_the_unet_and_not_the_average(flags, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    run = make_run(flags, "--gradient_checkpointing", "--compile")
    assert compiled == [run.raw_model.unet]
    assert run.raw_model.unet.gradient_checkpointing and not run.ema.model.unet.gradient_checkpointing


def test_a_damaged_checkpoint_is_refused_and_one_of_an_epoch_can_be_named(flags, tmp_path):
    more = ["--max_steps", "20", "--save_interval", "1"]
    path = run_training(flags, tmp_path, *more)
    epochs = sorted(path.parent.glob("epoch_*.pth"))
    assert [each.name for each in epochs] == ["epoch_0001.pth", "epoch_0002.pth", "epoch_0003.pth"]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"last.pth is not a whole checkpoint"):
        run_training(flags, tmp_path, *more, "--resume")
    run_training(flags, tmp_path, *more, "--resume", str(epochs[1]))
    assert load_checkpoint(path)["step"] == 20


def test_an_extra_loss_with_weights_that_nothing_trains_is_refused(make_model):
    model, term = make_model(), torch.nn.Linear(2, 1)
    model.extra_losses["x"] = (1.0, term)
    with pytest.raises(ValueError, match="the extra loss x has weights that nothing trains"):
        check_extra_losses(model)
    term.requires_grad_(False)
    check_extra_losses(model)


def test_a_run_is_not_resumed_with_another_loss(flags, tmp_path):
    """An extra loss and its weight are part of the recipe. A file from before they were has none."""
    run, path = make_run(flags), tmp_path / "last.pth"
    run.save(path)
    state = load_checkpoint(path)
    del state["recipe"]["extra_losses"]
    run.check_recipe(path, state)
    run.raw_model.extra_losses["edges"] = (0.1, lambda predicted: predicted.x0_hat.mean())
    for before in (state, load_checkpoint(path)):
        with pytest.raises(ValueError, match=r"extra_losses = \{\}, this run has \{'edges': 0.1\}"):
            run.check_recipe(path, before)


@pytest.mark.parametrize("stage", ["diffusion", "guide", "first_stage"])
def test_a_run_ends_with_its_files_and_commands_that_can_be_typed(flags, tmp_path, capsys, stage):
    folder = tmp_path / "with space"
    more = ["--stage", stage, "--max_steps", "1", *TENSORBOARD]
    if stage == "first_stage":
        more += ["--channels", "8", "16", "--perceptual_weight", "0"]
    run_training(flags, folder, *more)
    ended, commands = capsys.readouterr().out.split("next:\n")
    files = [
        line.strip().partition(": ")[0] for line in ended[ended.index("done: 1 steps") :].split("\n")
    ]
    files = [file for file in files[1:] if file]
    assert len(files) == 3 and all(Path(file).exists() for file in files)
    command, watch = (shlex.split(line) for line in commands.splitlines())
    assert watch == ["tensorboard", "--logdir", str(folder / "logs")]
    parse = {"manipulate.py": manipulate.parse_args, "encode_latents.py": encode_latents.parse_args}
    config = parse[command[1]](command[2:])
    owner = config if stage == "first_stage" else config.files
    named = {"diffusion": "checkpoint", "guide": "guide", "first_stage": "first_stage"}[stage]
    assert getattr(owner, named) == files[0]
    assert stage != "first_stage" or (config.data_root, config.image_size) == (flags[1], 32)
