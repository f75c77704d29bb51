"""Shared fixtures: a tiny folder of synthetic faces, models trained on it; and the suite's memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress

import psutil
import pytest
import torch
from helpers import REPOSITORY, TINY_FLAGS, draw_zeros, run_training

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the same numbers on every machine
# Tiny tensors: a second thread costs more than it does. Processes that a test starts have one, too.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# These files take longest. With several processes they go first, so that none has to wait for the last.
LONGEST = ("test_page.py", "test_edit_evaluation.py", "test_fuzz.py", "test_trained.py", "test_kills.py")
SLOW_FIXTURES = {"trained", "launch_two"}  # a model that has learnt; two processes
MOST_GIB = 6.0  # of memory for the whole suite, in two processes: a laptop has 16


class PeakMemory(threading.Thread):
    """Watches the memory of this process and its children: the sum of their PSS, which counts a page
    that several share once. PSS is slow to read, so it is read only at a new peak of the RSS."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stop, self.gib, self.during, self.test = threading.Event(), 0.0, "", ""

    def run(self) -> None:
        own, highest = psutil.Process(), 0
        while not self.stop.wait(0.5):
            processes = [own, *own.children(recursive=True)]
            resident = total(processes, lambda process: process.memory_info().rss)
            if resident > highest:
                highest = resident
                gib = total(processes, lambda process: process.memory_full_info().pss) / 2**30
                if gib > self.gib:
                    self.gib, self.during = gib, self.test


def total(processes: list[psutil.Process], read: Callable[[psutil.Process], int]) -> int:
    """The sum over the processes that have not ended."""
    amount = 0
    for process in processes:
        with suppress(psutil.Error):
            amount += read(process)
    return amount


MEMORY = PeakMemory()


def pytest_sessionstart(session):
    if not hasattr(session.config, "workerinput"):  # pytest-xdist's workers are children of this process
        MEMORY.start()


def pytest_runtest_logstart(nodeid):
    MEMORY.test = nodeid


def pytest_sessionfinish(session, exitstatus):
    MEMORY.stop.set()
    if MEMORY.gib > MOST_GIB and exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"peak memory {MEMORY.gib:.2f} GiB, during {MEMORY.during}")
    if MEMORY.gib > MOST_GIB:
        terminalreporter.write_line(f"that is more than {MOST_GIB:g} GiB", red=True)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if SLOW_FIXTURES & {*item.fixturenames}:
            item.add_marker(pytest.mark.slow)


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
    folder = tmp_path_factory.mktemp("run")
    return run_training(flags, folder, "--max_steps", 3).with_name("best_model.pth")


@pytest.fixture(params=["linear", "cosine"])
def schedule(request):
    """A variance-preserving schedule of 1000 timesteps."""
    from noise_schedule import NoiseSchedule

    return NoiseSchedule(request.param, 1000)


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """Class folders of 3 x 60 noisy pictures, red, green and blue, 20 pixels wide."""
    import numpy as np
    from PIL import Image

    root, noise = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir()
        for number in range(60):
            pixels = noise.integers(0, 80, (20, 20, 3), dtype=np.uint8)
            pixels[..., channel] += 160
            Image.fromarray(pixels).save(root / name / f"{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def class_checkpoint(colours, tmp_path_factory):
    """best_model.pth of a model of those classes, trained for three steps; never without its class."""
    folder = tmp_path_factory.mktemp("classes")
    data = ["--data_root", str(colours), "--cache_dir", str(folder / "cache"), "--cfg_dropout", "0"]
    last = run_training([*TINY_FLAGS, *data], folder, "--max_steps", 3)
    return last.with_name("best_model.pth")


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
        draw_zeros(model.unet, std=0.05)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def launch_two():
    """Run a script in two processes on the CPU; returns what they say."""

    def launch(script: str, *flags: object) -> str:
        # Its --cpu would start a single one; the script, which sees no GPU, makes gloo of --multi_gpu.
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
        command += ["--num_processes", "2", "--main_process_port", "0", script, *map(str, flags)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
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
