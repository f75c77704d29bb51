"""Time and memory of attention on a CPU: written out, fused, and as unet_model.attend chooses.

    python benchmarks/attention.py

For 4 images with 4 heads, at the positions and widths of the default UNet's levels at 64 pixels, over
themselves and over 41 context tokens; forward, and with gradients; in float32 and bfloat16. The ways
alternate, and medians count. Memory is what the process holds at most beyond what it held before, after
freed memory has been given back (Linux only). The last line is one JSON object: how much faster the
chosen way is than either, as geometric means.
"""

from __future__ import annotations

import ctypes
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flags
from config import Config, count

LEVELS = ((64, 128), (256, 64), (1024, 32), (4096, 16))  # positions, width of a head
TOKENS = 41
IMAGES, HEADS = 4, 4


@dataclass(frozen=True)
class Options(Config):
    """Flags of this benchmark."""

    rounds: int = count(5, "of which the median counts")


def peak_mib(work: Callable[[], object]) -> float:
    """MiB that ``work`` takes at most; 0 where the system does not tell."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return 0.0
    ctypes.CDLL(None).malloc_trim(0)

    def held(key: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    reset.write_text("5", encoding="utf-8")  # the peak starts anew
    before = held("VmRSS")
    work()
    return (held("VmHWM") - before) / 1024


def main() -> None:
    args = flags.parse(Options, __doc__)

    import torch
    import torch.nn.functional as F

    import unet_model

    def written(*inputs):
        unet_model.WRITTEN_OUT = 10**12
        return unet_model.attend(*inputs)

    def chosen(*inputs):
        unet_model.WRITTEN_OUT = most
        return unet_model.attend(*inputs)

    most = unet_model.WRITTEN_OUT
    ways = {"written": written, "fused": F.scaled_dot_product_attention, "chosen": chosen}
    ratios: dict[str, list[float]] = {"written": [], "fused": []}
    print(f"{'N x M, width':<20}{'dtype':<10}{'':<10}", end="")
    print("".join(f"{name + ' ms':>12}{'MiB':>8}" for name in ways))
    for positions, width in LEVELS:
        for keys in (positions, TOKENS):
            for dtype in (torch.float32, torch.bfloat16):
                # As attention gets them: heads come out of the channels.
                shapes = [(IMAGES, n, HEADS, width) for n in (positions, keys, keys)]
                inputs = [torch.randn(s, dtype=dtype).transpose(1, 2) for s in shapes]
                inputs = [each.requires_grad_() for each in inputs]

                def forward(attend, inputs=inputs) -> None:
                    with torch.no_grad():
                        attend(*inputs)

                def gradients(attend, inputs=inputs) -> None:
                    torch.autograd.grad(attend(*inputs).sum(), inputs)

                for label, run in (("forward", forward), ("gradients", gradients)):
                    seconds: dict[str, list[float]] = {name: [] for name in ways}
                    memory = {name: peak_mib(lambda w=w, run=run: run(w)) for name, w in ways.items()}
                    for _ in range(args.rounds):
                        for name, attend in ways.items():
                            started, times = time.perf_counter(), 0
                            while times == 0 or time.perf_counter() - started < 0.05:
                                run(attend)
                                times += 1
                            seconds[name].append((time.perf_counter() - started) / times)
                    median = {name: statistics.median(found) for name, found in seconds.items()}
                    for name, found in ratios.items():
                        found.append(median[name] / median["chosen"])
                    what = f"{positions} x {keys}, {width}"
                    print(f"{what:<20}{str(dtype)[6:]:<10}{label:<10}", end="")
                    cells = (f"{1e3 * median[n]:>12.2f}{memory[n]:>8.0f}" for n in ways)
                    print("".join(cells), flush=True)
    result = {
        f"chosen_over_{name}": round(math.exp(statistics.fmean(map(math.log, found))), 2)
        for name, found in ratios.items()
    }
    print(json.dumps(result | {"torch": torch.__version__, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    flags.run(main)
