"""Where and how precisely to compute: the device, the precision and the autocast that flags name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


def choose_device(name: str) -> str:
    """'cuda', 'mps' or 'cpu' for a flag's value. 'auto' is cuda where there is one, else cpu, and never
    mps, which nobody has tried yet.

    Raises:
        ValueError: without such a device.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    usual = "cuda" if available["cuda"] else "cpu"
    if name != "auto" and not available[name]:
        raise ValueError(f"--device {name}, but torch sees none here: use --device {usual}")
    return usual if name == "auto" else name


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
