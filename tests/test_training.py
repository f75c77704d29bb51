from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from checkpoint import load_checkpoint
from monitoring import validate
from training import MAX_SKIPPED, BatchOrder, TrainingRun, learning_rate, seed_everything

REPOSITORY = Path(__file__).resolve().parents[1]


def run_training(flags, folder, *more):
    where = ["--save_dir", str(folder), "--log_dir", str(folder / "logs")]
    train.train(train.parse_args([*flags, *where, *more]))
    return folder / "last.pth"


def make_run(flags, *more) -> TrainingRun:
    args = train.parse_args([*flags, *more])
    accelerator = train.make_accelerator(args)
    return TrainingRun(args, accelerator, *train.load_datasets(args, accelerator))


def same(first, second) -> bool:
    """Equal to the last bit, through dictionaries and lists."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("more", [[], ["--grad_accum", "2", "--num_workers", "2", "--dropout", "0.1"]])
def test_interrupted_and_resumed_equals_uninterrupted(flags, tmp_path, monkeypatch, more):
    """Stopped in the middle of an epoch, and resumed: every weight, average, moment and best loss is
    bit for bit what it would have been."""
    more = [*more, "--epochs", "2"]
    whole = load_checkpoint(run_training(flags, tmp_path / "whole", *more))

    class StopAfterThree(train.StopRequest):
        def __init__(self, accelerator):
            self.steps = 0

        def __bool__(self):
            self.steps += 1
            return self.steps > 3

    with monkeypatch.context() as patch:
        patch.setattr(train, "StopRequest", StopAfterThree)
        path = run_training(flags, tmp_path / "parts", *more)
    assert load_checkpoint(path)["step"] == 3 < whole["step"]
    run_training(flags, tmp_path / "parts", *more, "--resume")
    parts = load_checkpoint(path)
    for key in ("step", "best", "model", "ema", "optimizer"):
        assert same(whole[key], parts[key]), key
    best = [load_checkpoint(tmp_path / which / "best_model.pth") for which in ("whole", "parts")]
    assert same(*best)


def test_resuming_with_other_flags_is_refused(flags, tmp_path):
    run_training(flags, tmp_path, "--max_steps", "1")
    with pytest.raises(ValueError, match=r"ae_weight = 0.1, this run has 0.7"):
        run_training(flags, tmp_path, "--max_steps", "2", "--resume", "--ae_weight", "0.7")
    with pytest.raises(ValueError, match=r"last.pth exists: go on from it with --resume"):
        run_training(flags, tmp_path, "--max_steps", "2")
    with pytest.raises(ValueError, match="inference weights only"):
        best = str(tmp_path / "best_model.pth")
        run_training(flags, tmp_path, "--max_steps", "2", "--resume", best)


def test_sigterm_saves_and_exits_cleanly(flags, tmp_path):
    command = [sys.executable, "train.py", *flags, "--epochs", "9999", "--save_dir", str(tmp_path)]
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(
            [*command, "--log_dir", str(tmp_path / "logs")],
            cwd=REPOSITORY, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        deadline = time.time() + 120
        while not (tmp_path / "last.pth").exists() and time.time() < deadline:
            time.sleep(0.2)  # the first epoch's checkpoint: training is under way
        process.send_signal(signal.SIGTERM)
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
    run.update(batches)
    assert run.skipped == 1
    assert same(weights, run.raw_model.state_dict()) and same(weights, run.ema.model.state_dict())
    with pytest.raises(ValueError, match=f"not finite {MAX_SKIPPED} steps in a row"):
        for _ in range(MAX_SKIPPED):
            run.update(batches)
    monkeypatch.undo()
    run.update(batches)
    assert run.skipped == 0
    assert not same(weights, run.raw_model.state_dict())


def test_dry_run_writes_nothing(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.train(train.parse_args([*flags, "--dry_run"]))
    assert "no checkpoint and no log was written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_every_curve_and_picture(flags, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_training(flags, tmp_path, "--max_steps", "20")
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    terms = ("total", "diffusion", "reconstruction", "kl", "attributes")
    expected = {f"{kind}/{term}" for kind in ("loss", "validation") for term in terms}
    expected |= {f"diffusion_by_timestep/quartile_{q}" for q in (1, 2, 3, 4)}
    expected |= {"optimisation/grad_norm", "optimisation/lr", "speed/images_per_second"}
    assert expected <= set(events.Tags()["scalars"])
    assert {tag.split("/")[0] for tag in events.Tags()["images"]} == {"samples", "reconstructions"}


def test_validation_repeats_and_leaves_training_alone(flags):
    run = make_run(flags, "--val_images", "3")
    first = validate(run)
    torch.randn(5)
    assert validate(run) == first
    assert set(first) == {"total", "diffusion", "reconstruction", "kl", "attributes"}


def test_flags_default_to_the_configuration_s_defaults():
    from model_config import LossConfig

    args = train.parse_args([])
    assert args.channels == (64, 128, 256, 512)
    assert (args.latent_dim, args.batch_size, args.lr, args.epochs) == (512, 16, 2e-4, 100)
    assert args.cfg_dropout == LossConfig.cfg_dropout == 0.1
    assert args.ae_weight == LossConfig.ae_weight == 0.1
    assert (args.save_interval, args.sample_interval) == (10, 5)


def test_every_epoch_shows_every_image_once_over_all_processes():
    for world in (1, 2):
        orders = [iter(BatchOrder(30, 5, 0, rank, world, 0)) for rank in range(world)]
        steps = 2 * 30 // (5 * world)
        seen = [i for _ in range(steps) for order in orders for i in next(order)]
        assert sorted(seen[:30]) == sorted(seen[30:]) == list(range(30))
        assert seen[:30] != seen[30:]
    late = next(iter(BatchOrder(30, 5, 0, 0, 1, start=4)))
    assert late == next(itertools.islice(iter(BatchOrder(30, 5, 0, 0, 1, 0)), 4, None))


def test_two_processes_train_and_validate_together(flags, tmp_path):
    """Also where the second has no image left to validate."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py", *flags]
    where = ["--save_dir", str(tmp_path), "--log_dir", str(tmp_path / "logs"), "--max_steps", "2"]
    done = subprocess.run(
        [sys.executable, *launch, *where], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    state = load_checkpoint(tmp_path / "last.pth")
    assert state["step"] == 2 and state["recipe"]["processes"] == 2
    assert 0 < state["best"] < 5


def test_learning_rate_warms_up_and_anneals():
    args = train.parse_args(["--lr", "1", "--warmup_steps", "9"])
    assert learning_rate(args, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(args, 9, 0.0) == 1
    assert learning_rate(args, 500, 0.5) == pytest.approx(0.5)
    assert learning_rate(args, 999, 1.0) == pytest.approx(0)


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
