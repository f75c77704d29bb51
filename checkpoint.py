"""Checkpoints: EMA weights, atomic saving, loading with weights_only=True, and a module from its file.

Files from strangers enter here. Their contents are checked before memory is allocated for them. So the
model code needs no such checks.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import os
import re
import reprlib
import textwrap
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from autoencoder_model import build_first_stage
from config import PRETRAINED, ModelConfig, check_local, check_pulled

FORMAT = "attribute-face-diffusion/1"
Model = TypeVar("Model", bound=nn.Module)
MOST_BLOCKS = 32  # per level of a first stage
SUFFIXES = (".pth", ".safetensors", ".pt", ".ckpt", ".bin")  # of files, not of names on the hub
IN_FOLDER = "model.safetensors"  # the weights in a folder of ``hub.save``
FACTS = ("step", "validation_loss")  # about a model's training, in files for inference


class EMA:
    """Exponential moving average of a model's trained parameters, with warm-up. Frozen parts, such as
    a first stage, are shared and not copied.

    At update n the decay is min(decay, (1 + n) / (10 + n)), so the average soon forgets the
    initialisation.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        frozen = [p for p in model.parameters() if not p.requires_grad]
        shared = {id(p): p for p in (*frozen, *model.buffers())}
        self.model = copy.deepcopy(model, memo=shared).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, num_updates: int) -> None:
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        averaged, latest = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
        torch._foreach_lerp_(averaged, latest, 1 - decay)


@contextmanager
def refusing(path: str | Path, what: str) -> Iterator[None]:
    """A stranger's file may cause any error in the code that reads it. Turn it into one ValueError."""
    try:
        yield
    except (OSError, MemoryError, ImportError, torch.OutOfMemoryError):  # not the file's fault
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        raise ValueError(f"{path} holds no {what}, or one of another version ({reason})") from None


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that ``path`` always holds either all of the old or all of the new content. If the
    process is killed, the next write overwrites the temporary file that it left."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        reason: BaseException = error
        if isinstance(error, RuntimeError) and error.__context__:
            reason = error.__context__  # torch.save hides it: a full disk, a Ctrl-C
        if not isinstance(reason, OSError):
            raise reason from None
        text = textwrap.shorten(str(reason), 160)
        raise OSError(f"cannot write {path} ({text}): free some space, or write elsewhere") from None
    finally:
        temporary.unlink(missing_ok=True)


def find_weights(name: str | Path, **download: Any) -> Path:
    """The file that a name stands for: a path, the name of a model in pretrained/, a folder of
    ``hub.save``, or "user/name" on the Hugging Face hub. The path that it returns may not exist.

    Args:
        download: ``revision``, ``token`` and so on, as ``hf_hub_download`` takes them.

    Raises:
        FileNotFoundError: if the hub has no such model.
        TypeError: for an argument that ``hf_hub_download`` does not take.
        ValueError: for a revision of a model that is here.
    """
    check_local(name)
    path, named = Path(name).expanduser(), PRETRAINED / f"{name}.safetensors"
    if named.is_file() and not path.exists():
        path = named
    may_be_on_hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)) and path.suffix not in SUFFIXES
    on_hub = may_be_on_hub and not path.exists() and not path.parent.is_dir()
    if on_hub or download:  # its library takes time to load
        from huggingface_hub import hf_hub_download

        inspect.signature(hf_hub_download).bind(name, IN_FOLDER, **download)
    if on_hub:
        try:
            return Path(hf_hub_download(str(name), IN_FOLDER, **download))
        except (OSError, ValueError) as error:  # no network, no such name
            reason = textwrap.shorten(str(error), 200)
            raise FileNotFoundError(
                f"no model {name}: there is no such file or folder, and the hub gave none ({reason})"
            ) from None
    if download.get("revision") and path.exists():
        raise ValueError(f"{name} is {path}, which has no revision {download['revision']}: leave it out")
    return path / IN_FOLDER if path.is_dir() else path


def save_atomically(state: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint by ``replace_file``. A .safetensors file takes inference weights only."""
    path, state = Path(path), {"format": FORMAT, **state}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        replace_file(path, lambda file: file.write(_to_safetensors(state)))
    else:
        replace_file(path, lambda file: torch.save(state, file))


def _to_safetensors(state: dict[str, Any]) -> bytes:
    """Tensors from the one state dict in ``state``; the rest becomes JSON in the metadata. A weight that
    several modules share is written once."""
    from safetensors.torch import save

    (part,) = {"model", "guide", "judge"} & state.keys()
    facts = {key: value for key, value in state.items() if key != part}
    weights: dict[str, Tensor] = {}
    first: dict[tuple, str] = {}  # where a weight lies in memory -> its first name
    shared: dict[str, str] = {}  # other name -> first name
    for name, weight in state[part].items():
        place = (weight.data_ptr(), weight.shape) if weight.numel() else (name,)
        if first.setdefault(place, name) == name:
            weights[name] = weight.contiguous().clone()
        else:
            shared[name] = first[place]
    metadata = {"part": part, "facts": json.dumps(facts), "shared": json.dumps(shared)}
    return save(weights, metadata)


def _from_safetensors(content: bytes) -> dict[str, Any]:
    from safetensors.torch import load

    weights = load(content)  # it checks the header
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__", {})
    if "facts" not in metadata:
        return weights
    for name, first in json.loads(metadata.get("shared", "{}")).items():
        weights[name] = weights[first]
    return {**json.loads(metadata["facts"]), metadata["part"]: weights}


def load_checkpoint(path: str | Path, part: str = "", advice: str = "") -> dict[str, Any]:
    """A checkpoint's contents, on the CPU; only plain tensors and plain types are unpickled. Under
    "file_hash" stands the hash of what was read, even if another file takes its place meanwhile.

    Args:
        part: what the file must hold, such as "judge".
        advice: how one gets such a file, for the errors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a checkpoint of this project, or damaged, or has no such part.
    """
    path = find_weights(path)
    if not path.is_file():
        names = ", ".join(sorted(each.stem for each in PRETRAINED.glob("*.safetensors")))
        usual = f"train one with train.py, check the path, or name one of {names}"
        raise FileNotFoundError(f"no {part or 'checkpoint'} at {path}: {advice or usual}")
    try:
        with open(path, "rb") as file:
            digest = _digest(file)
            if path.suffix == ".safetensors":
                state = _from_safetensors(file.read())
            else:
                _check_sums(file)
                state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):  # not the file's fault
        raise
    except Exception as error:  # a damaged file may raise any error in the unpickler
        check_pulled(path)
        reason = str(error).split("\n")[0][:100]
        raise ValueError(f"{path} is not a whole checkpoint ({reason})") from None
    state = state if isinstance(state, dict) else {}
    if state.get("format") != FORMAT:
        if any(re.match(r"(unet|network)\.", str(name)) for name in state):
            raise ValueError(
                f"{path} holds weights alone, and not the ModelConfig that builds their network: write "
                "it with save_pretrained or checkpoint.save_model, which keep both"
            )
        raise ValueError(f"{path} is not a checkpoint of this project, whose format is {FORMAT}")
    if part and part not in state:
        raise ValueError(f"{path} holds no {part}: {advice}")
    return state | {"file_hash": digest}


def _digest(file: BinaryIO) -> str:
    """The first 12 hexadecimal digits of a file's SHA-256, to tell checkpoints apart."""
    digest = hashlib.sha256()
    for part in iter(lambda: file.read(2**20), b""):
        digest.update(part)
    file.seek(0)
    return digest.hexdigest()[:12]


def _check_sums(file: BinaryIO) -> None:
    """Raise ValueError for a file with a wrong checksum, which torch does not check, or for a compressed
    file, which torch does not write."""
    with zipfile.ZipFile(file) as archive:
        if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
            raise ValueError("it is compressed")
        damaged = archive.testzip()
        if damaged:
            raise ValueError(f"damaged at {damaged}")
    file.seek(0)


def _is_whole(weight: object) -> bool:
    """Whether this is a CPU tensor with memory for every element. An expanded tensor has less."""
    if not isinstance(weight, Tensor) or weight.layout != torch.strided or weight.is_quantized:
        return False
    return weight.is_cpu and weight.untyped_storage().nbytes() >= weight.nbytes


def _memory(weights: Iterable[Tensor]) -> int:
    """Bytes that these tensors occupy. Shared storage counts once."""
    storages = [weight.untyped_storage() for weight in weights]
    return sum({each._cdata: each.nbytes() for each in storages}.values())


def check_shapes(own: dict[str, Tensor], weights: dict[str, Tensor], path: str | Path) -> None:
    """Raise ValueError unless two state dicts have the same names and shapes. It names the first weight
    that does not fit, with both shapes."""
    if not isinstance(weights, dict) or not all(map(_is_whole, weights.values())):
        raise ValueError(f"{path} holds no weights where they should be")
    for name in own.keys() | weights.keys():
        ours = tuple(own[name].shape) if name in own else "absent"
        theirs = tuple(weights[name].shape) if name in weights else "absent"
        if ours != theirs:
            raise ValueError(
                f"{path} holds another architecture: {name} is {theirs} there and {ours} in this model"
            )
    if _memory(weights.values()) < _memory(own.values()) // 2:  # half precision is fine
        raise ValueError(f"{path} holds fewer bytes than its weights need")


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Load a state dict strictly. Raises as ``check_shapes``."""
    check_shapes(model.state_dict(), weights, path)
    model.load_state_dict(weights)


def save_model(model: nn.Module, path: str | Path, key: str = "model", **facts: Any) -> None:
    """Write what inference needs: weights under ``key``, the configuration, and plain ``facts`` about
    the training."""
    save_atomically({"config": model.config.to_dict(), key: model.state_dict(), **facts}, path)


def build(
    kind: Callable[[ModelConfig], Model], key: str, state: dict[str, Any], path: str | Path
) -> Model:
    """The module in a checkpoint's contents, in evaluation mode, built from the configuration inside.
    Its weights are under ``ema`` if there are averaged ones, else under ``key``. Its ``facts`` are what
    the contents say of its training, and its ``file_hash`` is that of the file.

    Raises:
        ValueError: if ``path``, from which the contents come, holds no such module.
    """
    with refusing(path, key):
        config = ModelConfig(**state["config"])
        if not config.attribute_names:
            raise ValueError("no attributes are named")
        check_first_stage_config(config.first_stage_config)
        weights = state["ema"] if "ema" in state else state[key]
        with torch.device("meta"):  # takes no memory, whatever the file asks for
            expected = kind(config).state_dict()
        check_shapes(expected, weights, path)
        model = kind(config)
        model.load_state_dict(weights)
    model.facts = {name: state[name] for name in FACTS if isinstance(state.get(name), int | float)}
    model.file_hash = state["file_hash"]
    return model.eval()


def load(
    kind: Callable[[ModelConfig], Model], key: str, path: str | Path, device: str | torch.device
) -> Model:
    """``build`` from a file, on a device. Raises as ``load_checkpoint`` and ``build``."""
    model = build(kind, key, load_checkpoint(path), path)
    return model.to(device, memory_format=torch.channels_last)


def check_first_stage_config(config: dict) -> None:
    """Raise ValueError unless a first stage's configuration holds plain values of reasonable size."""
    values = []
    for value in config.values():
        values += value if isinstance(value, list | tuple) else [value]
    plain = all(isinstance(value, int | float | str | None) for value in values)
    large = any(isinstance(value, int) and abs(value) > 65_536 for value in values)
    for name in ("blocks_per_level", "layers_per_block"):
        blocks = config.get(name, 1)
        large |= not isinstance(blocks, int) or blocks > MOST_BLOCKS
    if large or not plain or len(values) > 100:
        raise ValueError(f"first_stage_config asks for too much: {reprlib.repr(config)}")


class StoredFirstStage(NamedTuple):
    """A first stage from its file."""

    kind: str  # a name in ``FIRST_STAGES``
    config: dict  # what rebuilds it
    module: nn.Module  # with its weights
    judge: str  # the network that judged likeness in its training, "" if none did


def load_first_stage(path: str | Path) -> StoredFirstStage:
    """A first stage from a checkpoint of ``train.py --stage first_stage`` (a .pth file), or from an
    ``AutoencoderKL``: a folder in diffusers' format or a name on the hub. Raises FileNotFoundError or
    ValueError if there is none."""
    if not str(path).endswith(".pth"):
        from latent_vae import pretrained_vae

        config, weights = pretrained_vae(str(path))
        module = build_first_stage("sd-vae", config)
        load_weights(module.autoencoder, weights, path)
        return StoredFirstStage("sd-vae", config, module, "")
    state = load_checkpoint(path)
    if "autoencoder" not in state:
        raise ValueError(f"{path} holds no first stage: train one with train.py --stage first_stage")
    with refusing(path, "first stage"):
        config, weights, judge = state["config"], state["autoencoder"], state["trained_on"]["judge"]
        check_first_stage_config(config)
        kind = state.get("kind", "vae")
        if kind not in ("vae", "upscaler"):
            raise ValueError(f"its kind {reprlib.repr(kind)} is neither vae nor upscaler")
        with torch.device("meta"):
            expected = build_first_stage(kind, config).autoencoder.state_dict()
        check_shapes(expected, weights, path)
        module = build_first_stage(kind, config)
        module.autoencoder.load_state_dict(weights)
    return StoredFirstStage(kind, config, module, str(judge))


def weights_hash(weights: dict[str, Tensor]) -> str:
    """The first 12 hexadecimal digits of a SHA-256 over names and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
