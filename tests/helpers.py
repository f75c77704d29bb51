"""What several files of tests use: scripts run in this process, the line of an error, tiny flags."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tqdm import tqdm

import encode_latents
import evaluate
import export
import flags
import manipulate
import train
import visualize

REPOSITORY = Path(__file__).resolve().parents[1]
MAIN = {
    train: train.train,
    manipulate: manipulate.manipulate,
    visualize: visualize.visualize,
    encode_latents: encode_latents.encode,
    evaluate: evaluate.evaluate,
    export: export.export,
}
SCRIPTS = {script.__name__: script for script in MAIN}

# A model that trains in seconds. Without pictures: they take longer than all else that a run does.
TINY_FLAGS = [
    *("--image_size", "32", "--channels", "16", "32", "--patch_size", "4", "--report_to", "none"),
    *("--latent_dim", "16", "--batch_size", "4", "--blocks_per_level", "1", "--device", "cpu"),
    *("--mixed_precision", "no", "--warmup_steps", "2", "--val_images", "4"),
    *("--sample_interval", "0"),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def draw_zeros(module: torch.nn.Module, std: float) -> None:
    """Draw the weights that start at zero, so that every path of an untrained network carries signal."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=std)


def run_script(script: ModuleType, *argv: object) -> None:
    """What a script does with these flags. Errors are raised."""
    MAIN[script](script.parse_args([str(word) for word in argv]))


def run_training(flags: list[str], folder: Path, *more: object) -> Path:
    """Train into a folder, which also takes the logs. Returns its last.pth."""
    run_script(train, *flags, "--save_dir", folder, "--log_dir", folder / "logs", *more)
    return folder / "last.pth"


def train_judge(judge: Path, *argv: object) -> None:
    """``evaluate.py judge``, of one that reads images at 32 pixels, as its file says: a quarter of the
    work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("classifiers.judge.SIDE", 32)
        run_script(evaluate, "judge", "--judge", judge, *argv)


def start_child(call: Callable[[], object]) -> int:
    """Call in a copy of this process, which needs no imports. Returns its id. It exits with 1 after an
    error."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        # Copies share tqdm's lock with this process. One that is killed while it draws a bar would keep
        # it, and all others would wait for it without end.
        tqdm.set_lock(threading.RLock())
        call()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def refused(call: Callable[[], object], *words: str, error=(ValueError, OSError)) -> None:
    """A call raises such an error, whose message is one line and has all these words."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert not [word for word in words if word not in message], message


def one_line(capsys: pytest.CaptureFixture, call: Callable[[], object]) -> str:
    """What a call that must end with exit code 2 says: one line, apart from progress bars."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        flags.run(call)
    text = capsys.readouterr().err.splitlines()
    (line,) = (line for line in text if line.strip() and "%|" not in line)
    assert stopped.value.code == 2 and ": error: " in line
    return line
