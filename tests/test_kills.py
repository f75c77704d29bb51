"""Training killed at any moment goes on, and ends where an undisturbed run ends."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
import torch
from helpers import run_training, start_child

import train
from checkpoint import load_checkpoint

KILLS, ROUNDS = 20, 200


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.slow
def test_killed_at_random_moments_the_weights_are_those_of_an_undisturbed_run(
    flags, tmp_path, monkeypatch, capfd
):
    """Every step saves, so that many kills fall into a save; moments are drawn from the time that the
    undisturbed run takes."""
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    common = [*flags, "--max_steps", "10", "--grad_accum", "2"]

    def survive(folder, pick: random.Random, left: int, span: float, steps: set[int]) -> int:
        """Train in a child that is killed again and again, until it ends by itself; how many kills.
        ``steps`` takes in where they left it."""
        for kills in range(ROUNDS):
            resume = ["--resume"] if (folder / "last.pth").exists() else []
            child = start_child(lambda: run_training(common, folder, *resume))  # noqa: B023
            if kills < left:
                time.sleep(pick.uniform(0.1, 0.7) * span)
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0, capfd.readouterr().err[-2000:]
                return kills
            if (folder / "last.pth").exists():
                steps.add(load_checkpoint(folder / "last.pth")["step"])
        raise AssertionError(f"not done after {ROUNDS} rounds")

    run_training(common, tmp_path / "first")  # which pays for imports and the cache
    started = time.perf_counter()
    run_training(common, tmp_path / "whole")
    span = time.perf_counter() - started
    whole = load_checkpoint(tmp_path / "whole" / "last.pth")
    pick, kills, number, steps = random.Random(0), 0, 0, set()
    while kills < KILLS:
        folder = tmp_path / f"killed_{number}"
        kills += survive(folder, pick, KILLS - kills, span, steps)
        state = load_checkpoint(folder / "last.pth")
        assert state["step"] == whole["step"]
        for part in ("model", "ema"):
            for name, value in whole[part].items():
                assert torch.equal(state[part][name], value), f"{part} {name}"
        number += 1
        assert number < 40
    assert len(steps & set(range(1, 10))) >= 5, steps  # killed in the midst of it, not before or after
