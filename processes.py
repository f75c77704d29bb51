"""Work shared by processes that were started together, outside of training."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partialmethod
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


def launched() -> int:
    """How many processes were started together; 1 without a launcher."""
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # of torchrun and MPI
    return int(next((os.environ[name] for name in names if name in os.environ), 1))


def join(device: str) -> None:
    """Let the processes that were started together find each other, each with a GPU of its own where
    ``device`` is cuda; all but the first fall silent. Nothing where this one is alone."""
    if launched() == 1:
        return
    from accelerate import PartialState
    from tqdm import tqdm

    PartialState(cpu=device == "cpu")
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the rest of the program
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    print(f"{number()} processes")


def leave() -> None:
    """Wait for all and part, or the processes abort one another at exit."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def number() -> int:
    """How many processes have joined."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of the processes this is: 0 writes."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def in_parallel(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """[work(part) for part in parts], each done by one of the processes and then known to all: so what
    follows is the same in all of them. Every process must call this."""
    own = [work(part) for part in parts[rank() :: number()]]
    if number() == 1:
        return own
    from accelerate.utils import gather_object

    done = gather_object([own])  # [rank][part of that rank]
    return [done[i % number()][i // number()] for i in range(len(parts))]


def wait_for_all() -> None:
    """Until every process has come here."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
