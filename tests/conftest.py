"""Shared fixtures: a tiny folder of synthetic faces, and flags of a model that trains in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the same numbers on every machine
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it does

SLOW_FIXTURES = {"trained", "launch_two"}  # a model that has learnt; two processes
MOST_GIB = 4.0  # of memory for the whole suite: a laptop has 16, and is never left alone


class PeakMemory(threading.Thread):
    """Watches the memory of this process and its children, four times a second: the sum of their PSS,
    which counts a page that several share once."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stop, self.gib, self.during = threading.Event(), 0.0, ""

    def run(self) -> None:
        own = psutil.Process()
        while not self.stop.wait(0.25):
            total = 0
            for process in (own, *own.children(recursive=True)):
                with suppress(psutil.Error):
                    found = process.memory_full_info()
                    total += getattr(found, "pss", found.uss)
            if total / 2**30 > self.gib:
                self.gib, self.during = total / 2**30, os.environ.get("PYTEST_CURRENT_TEST", "")


def pytest_sessionstart(session):
    session.config.peak_memory = PeakMemory()
    session.config.peak_memory.start()


def pytest_sessionfinish(session, exitstatus):
    session.config.peak_memory.stop.set()
    if session.config.peak_memory.gib > MOST_GIB and exitstatus == 0:
        session.exitstatus = 1


def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW_FIXTURES & {*item.fixturenames}:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter, config):
    peak = config.peak_memory
    terminalreporter.write_line(f"peak memory {peak.gib:.2f} GiB, during {peak.during}")
    if peak.gib > MOST_GIB:
        terminalreporter.write_line(f"that is more than {MOST_GIB:g} GiB", red=True)


TINY_FLAGS = [
    *("--image_size", "32", "--channels", "16", "32", "--patch_size", "2"),
    *("--latent_dim", "16", "--batch_size", "4", "--blocks_per_level", "1", "--device", "cpu"),
    *("--mixed_precision", "no", "--warmup_steps", "2", "--val_images", "4"),
]


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """A folder of 40 synthetic faces at 32 pixels in CelebA's layout."""
    from synthetic_faces.dataset import write_dataset

    root = tmp_path_factory.mktemp("faces") / "faces"
    write_dataset(root, num_images=40, image_size=32, seed=0, num_workers=1)
    return root


@pytest.fixture(scope="session")
def flags(faces, tmp_path_factory):
    """Command line for train.py: the tiny model on the tiny faces, without --save_dir and --log_dir."""
    return ["--data_root", str(faces), "--cache_dir", str(tmp_path_factory.mktemp("cache")), *TINY_FLAGS]


@pytest.fixture(scope="session")
def checkpoint(flags, tmp_path_factory):
    """best_model.pth of a model trained for three steps on the tiny faces."""
    import train

    folder = tmp_path_factory.mktemp("run")
    where = ["--save_dir", str(folder / "checkpoints"), "--log_dir", str(folder / "logs")]
    train.train(train.parse_args([*flags, *where, "--max_steps", "3"]))
    return folder / "checkpoints" / "best_model.pth"


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """Class folders of 3 x 120 noisy pictures, red, green and blue, 20 pixels wide."""
    import numpy as np
    from PIL import Image

    root, noise = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir()
        for number in range(120):
            pixels = noise.integers(0, 80, (20, 20, 3), dtype=np.uint8)
            pixels[..., channel] += 160
            Image.fromarray(pixels).save(root / name / f"{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def class_checkpoint(colours, tmp_path_factory):
    """best_model.pth of a model of those classes, trained for three steps; never without its class."""
    import train

    folder = tmp_path_factory.mktemp("classes")
    where = ["--save_dir", str(folder), "--log_dir", str(folder / "logs"), "--max_steps", "3"]
    data = ["--data_root", str(colours), "--cache_dir", str(folder / "cache"), "--cfg_dropout", "0"]
    train.train(train.parse_args([*TINY_FLAGS, *data, *where]))
    return folder / "best_model.pth"


@pytest.fixture
def make_model():
    """Build a tiny ConditionalDiffusion over named attributes, every weight drawn (none left at its
    zero initialisation, so that every path carries signal)."""
    from config import ModelConfig
    from diffusion_model import ConditionalDiffusion

    def make(names=("Smiling", "Male", "Young"), **changes):
        torch.manual_seed(0)
        small = {"image_size": 16, "channels": (16, 32), "num_heads": 2, "latent_dim": 8}
        model = ConditionalDiffusion(ModelConfig(names, **small | changes))
        for parameter in model.unet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def trained():
    """A model of the toys in toys.py that has learnt them."""
    from toys import NAMES, toy_batch

    from config import LossConfig, ModelConfig
    from diffusion_model import ConditionalDiffusion

    torch.manual_seed(0)
    small = {"image_size": 16, "channels": (32, 64), "blocks_per_level": 1, "num_heads": 2}
    config = ModelConfig(NAMES, **small, latent_dim=8, prediction="v")
    model = ConditionalDiffusion(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loss = LossConfig(attr_weight=1.0, loss_weighting="none", attr_dropout=0.2, latent_dropout=0.8)
    for step in range(240):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20) * (1 - step / 240)
        terms, _, _ = model(*toy_batch(32), loss)
        optimizer.zero_grad()
        terms["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def launch_two():
    """Run a script in two processes on the CPU; returns what they say."""

    def launch(script: str, *flags: object) -> str:
        # Its --cpu would start a single one; the script, which sees no GPU, makes gloo of --multi_gpu.
        how = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        how += ["--main_process_port", "0"]
        done = subprocess.run(
            [sys.executable, *how, script, *map(str, flags)],
            cwd=Path(__file__).resolve().parents[1],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    return launch


@pytest.fixture
def stop_after_three(monkeypatch):
    """A context in which training is asked to stop after three steps, as Ctrl-C would."""
    from training import process

    class StopAfterThree(process.StopRequest):
        steps = 0

        def __bool__(self):
            self.steps += 1
            return self.steps > 3

    @contextmanager
    def stop():
        with monkeypatch.context() as patch:
            patch.setattr(process, "StopRequest", StopAfterThree)
            yield

    return stop
