"""Where and how precisely to compute: the device, the precision and the autocast that flags name."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

# Turns for which an OpenMP thread looks for new work before it sleeps; its own default is 300,000.
# Beside one busy process, an edit on two processors took 12.7 seconds by default and 5.3 with this;
# alone 2.9 and 3.3 (docs/scaling.md).
SHORT_WAIT = "1000"
BUSY = 0.5  # if others use more processors than this, waiting threads sleep sooner; by eye


def share_processors() -> None:
    """Let the threads of this process wait without a fight where others use its processors now. To be
    called before torch is imported, which reads what this sets."""
    import psutil

    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        return
    shares = psutil.cpu_percent(0.1, percpu=True)
    if hasattr(psutil.Process, "cpu_affinity"):  # not on macOS
        shares = [shares[number] for number in psutil.Process().cpu_affinity() if number < len(shares)]
    if sum(shares) / 100 > BUSY:
        os.environ["GOMP_SPINCOUNT"] = SHORT_WAIT


def choose_device(name: str) -> str:
    """'cuda', 'mps' or 'cpu' for a flag's value. 'auto' is cuda where there is one, else cpu, and never
    mps, which nobody has tried yet. 'cuda:1' becomes this thread's cuda. torch gets no more threads than
    this process may use processors.

    Raises:
        ValueError: without such a device.
    """
    import torch
    from joblib import cpu_count

    torch.set_num_threads(min(torch.get_num_threads(), cpu_count()))
    kind, _, number = name.partition(":")
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    usual = "cuda" if available["cuda"] else "cpu"
    if name != "auto" and not available[kind]:
        raise ValueError(f"--device {name}, but torch sees none here: use --device {usual}")
    if number:
        devices, processes = torch.cuda.device_count(), int(os.environ.get("WORLD_SIZE", "1"))
        if int(number) >= devices:
            names = ", ".join(f"cuda:{each}" for each in range(devices))
            raise ValueError(f"--device {name}, but torch sees {names} here: use one of these")
        if processes > 1:
            raise ValueError(f"--device {name} is for one process, not {processes}: use --device cuda")
        torch.cuda.set_device(int(number))
    return usual if name == "auto" else kind


def choose_precision(name: str, device: str) -> str:
    """'no', 'bf16' or 'fp16' for the flag's value. 'auto' is bf16 where the processor has it, else fp16
    on CUDA and no on the rest."""
    import torch

    if name == "fp16" and device == "cpu":
        raise ValueError("--mixed_precision fp16 needs a GPU: use bf16 or no on the CPU")
    if name != "auto":
        return name
    if device == "cpu":
        has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # not in 2.4
        return "bf16" if has_bf16() else "no"
    if device == "mps":  # not every macOS and torch has half precision there
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(name: str, device: str) -> AbstractContextManager:
    """torch.autocast for the flag's value of mixed precision."""
    import torch

    precision = choose_precision(name, device)
    if precision == "no":
        return nullcontext()
    return torch.autocast(device, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
