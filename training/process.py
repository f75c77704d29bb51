"""The process that a run lives in: what accelerate makes of it, its signals, its memory."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

import devices
from training.stages import STAGES

if TYPE_CHECKING:
    from train import TrainConfig

# What `accelerate config` and `accelerate launch` may set, and train.py does not support.
NOT_SUPPORTED = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The Accelerator for the device and the precision of the flags.

    Of accelerate's environment only the number of processes counts. So a run is the same however it is
    launched.

    Raises:
        ValueError: if that environment names another device, or a feature that train.py lacks; if the
            library of --report_to is not installed.
    """
    device = devices.choose_device(config.device)
    tracker = None if config.report_to == "none" else config.report_to
    if tracker and importlib.util.find_spec(tracker) is None:
        raise ValueError(
            f"--report_to {tracker} needs a library that is not here: pip install {tracker}, or give "
            "another --report_to"
        )
    for name in NOT_SUPPORTED:
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1", "yes"):
            raise ValueError(
                f"accelerate is set to use {name} (ACCELERATE_USE_{name}), and train.py does not: "
                "answer no in accelerate config, or start it with accelerate launch --multi_gpu"
            )
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes are the same in every step
        torch.set_float32_matmul_precision("high")  # TF32 where --mixed_precision no
    unused = STAGES[config.stage].has_unused_parameters
    AcceleratorState._reset_state(reset_partial_state=True)  # of a run before, in a notebook
    accelerator = Accelerator(
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
        cpu=device == "cpu",
        mixed_precision=devices.choose_precision(config.mixed_precision, device),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.grad_accum),
        log_with=tracker,
        project_dir=config.log_dir,
        dynamo_backend="no",  # --compile compiles, and keeps the names of the weights
    )
    if accelerator.device.type != device:
        raise ValueError(
            f"--device {config.device} is {device} here, and accelerate is set to use "
            f"{accelerator.device.type} (ACCELERATE_USE_CPU or ACCELERATE_TORCH_DEVICE): unset it"
        )
    return accelerator


# SIGHUP: the terminal was closed; SIGUSR1: Slurm, before its limit. Windows has neither.
STOPS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class StopRequest:
    """Within this context, the signals of STOPS ask for a stop after the current step. A second Ctrl-C
    stops at once. Afterwards the signals do what they did before. A thread gets no signals."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.requested = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in STOPS:
                number = getattr(signal, name, None)
                if number is None:
                    continue
                if name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # under nohup, which is to go on without a terminal
                self.before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __bool__(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.requested
        if self.requested:  # one process's signal stops all at the same step
            self.accelerator.set_trigger()
        self.requested = self.accelerator.check_trigger()
        return self.requested


@contextmanager
def keep_freed_memory(device: str) -> Iterator[None]:
    """Within this context, glibc keeps up to 2 GiB of freed memory and does not return it to the system.
    A training step on a CPU frees and allocates the same memory each time, and the system would clear
    every page again. Afterwards all of it is returned. Other C libraries are not changed."""
    try:
        libc: Any = ctypes.CDLL(None) if device == "cpu" else None
    except (OSError, TypeError):  # Windows
        libc = None
    if not hasattr(libc, "mallopt"):
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
