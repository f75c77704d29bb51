"""Settings of models, losses, sampling, editing and the studio, as frozen dataclasses. Each field also
describes its flag.

A script's own settings stand at its top. ``flags.parse`` makes flags from a dataclass: a field has a
default, a help text and limits. ``ModelConfig`` travels in checkpoints. Nothing heavy is imported, so
that --help is instant.
"""

from __future__ import annotations

import functools
import os
import re
import reprlib
import sys
import types
import typing
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

# What a resumed run does if a field differs from the checkpoint.
SAME, ADJUSTABLE, FREE = "refuse", "say so and go on", "not recorded"

# The choices of a flag: the names in a registry of the same name, which tests compare with these.
SCHEDULES = ("linear", "cosine", "flow")
PREDICTIONS = ("eps", "x0", "v", "flow")
NEED_SIGNAL = ("eps",)  # predictions that say nothing of the image where signal_t is 0
NEED_PRESERVED = ("eps", "v")  # predictions for variance-preserving schedules
LOSS_WEIGHTINGS = ("none", "min_snr", "clamped_v")
SAMPLERS = ("ddpm", "ddim", "dpm_solver", "unipc")
SPACINGS = ("leading", "trailing", "linspace", "quadratic", "log_snr")
FIRST_STAGES = ("pixels", "vae", "upscaler", "sd-vae")
NORMS = ("group", "instance")
ACTIVATIONS = ("silu", "relu")
MASKS = ("lower_half", "eyes", "hair")  # of an aligned face
DATASETS = ("celeba", "celebahq", "mnist", "cifar10", "parquet", "folder")

CROPS = (178, 148, 140, 128)  # sides of the square cut from CelebA's 178 x 218
SPLITS = ("train", "val", "test")
REQUESTS = ("whole", "three", "none")  # kinds of requests that evaluate.py draws under
CFG_SCALE = 1.5  # of new faces, by default
# cfg_scale of edits that a guide or the VAE's head ends, and of edits that nothing ends. The first would
# burn the second.
STEERED_SCALE, EDIT_CFG_SCALE = 8.0, 2.0
GUIDANCE = ("free", "guide", "both")
DATASET_HELP = "what --data_root holds; none given: as its files say"
UNSPECIFIED_HELP = "which of 0 and -1 is not known, in labels of 1, 0 and -1"
CROP_HELP = "square cut from photographs, in CelebA's 178 x 218"
PRETRAINED = Path(__file__).resolve().parent / "pretrained"  # models that come with the repository
USUAL_GUIDE = "./checkpoints/guide_best.pth"  # where train.py writes one
DEFAULT_MODEL = "celeba128"  # of those, what manipulate.py draws with if no --checkpoint is given
FEWEST_SAMPLES = 32  # of which a distance says anything
SEED = {"low": 0, "high": 2**63 - 1}  # the limits of a seed
MOST_ATTRIBUTES = 10_000
NAME, REQUEST = "NAME", "NAME=VALUE"  # what stands for attributes in help


# -------------------------------------------------------------------- fields


@dataclass(frozen=True)
class Flag:
    """What a field knows beyond its type and default."""

    help: str = ""  # without help there is no flag
    name: str = ""  # of the flag, where it is not the field's
    choices: tuple = ()
    low: float | None = None
    above: float | None = None  # an exclusive low
    high: float | None = None
    metavar: str | None = None
    resume: str = SAME
    required: bool = False
    bare: str | None = None  # what the flag means without a value, where it may stand alone
    old: str = ""  # the flag's name before; it still sets this field
    positional: bool = False


def flag(default: Any, help: str = "", **facts: Any) -> Any:
    """A field of a configuration, with its limits and the help of its flag."""
    return field(default=default, metadata={"flag": Flag(help, **facts)})


def nested(kind: type, only: Sequence[str] = ()) -> Any:
    """A field that holds another configuration. Its flags (or ``only`` these) are the script's, too."""
    return field(default_factory=kind, metadata={"only": tuple(only)})


def count(default: Any, help: str = "", low: int = 1, high: int = 10**9, **facts: Any) -> Any:
    """A whole number from ``low`` on."""
    return flag(default, help, low=low, high=high, **facts)


def share(default: Any, help: str = "", **facts: Any) -> Any:
    """A number in [0, 1]."""
    return flag(default, help, low=0, high=1, **facts)


def weight(default: Any, help: str = "", **facts: Any) -> Any:
    """A number from 0 to a million."""
    return flag(default, help, low=0, high=10**6, **facts)


def composed(value: Any) -> Any:
    """A name, or each of a tuple of names, in Unicode's composed form (NFC). macOS writes 'é' as two
    characters, other systems as one. Other values are not changed."""
    if isinstance(value, tuple):
        return tuple(composed(each) if isinstance(each, str) else each for each in value)
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


# The types of a dataclass's fields, by name.
types_of: Callable[[type], dict[str, Any]] = functools.cache(typing.get_type_hints)


def is_path(hint: Any, limits: Flag) -> bool:
    """Whether a flag takes the path of a file or a folder: text that nothing else limits."""
    return bool(item_type(hint) is str and limits.help and not (limits.choices or limits.metavar))


def is_config(hint: Any) -> bool:
    """Whether a field holds another configuration."""
    return isinstance(hint, type) and issubclass(hint, Config)


def is_optional(hint: Any) -> bool:
    """Whether None is among the values: ``int | None``, and so on."""
    return isinstance(hint, types.UnionType)


def plain_type(hint: Any) -> Any:
    """int for ``int | None``, and so on."""
    return hint.__args__[0] if is_optional(hint) else hint


def item_type(hint: Any) -> Any:
    """int for ``tuple[int, ...]``; the type itself for what is no tuple."""
    hint = plain_type(hint)
    return hint.__args__[0] if typing.get_origin(hint) is tuple else hint


def expected(hint: Any, limits: Flag) -> str:
    """What a value must be, in words."""
    if limits.choices:
        return f"one of {', '.join(map(str, limits.choices))}"
    noun = {int: "a whole number", float: "a number", bool: "true or false"}.get(item_type(hint), "text")
    bounds = []
    if limits.low is not None:
        bounds.append(f"at least {limits.low:g}")
    if limits.above is not None:
        bounds.append(f"more than {limits.above:g}")
    if limits.high not in (None, 10**9):
        bounds.append(f"at most {limits.high}")
    return " ".join([noun, " and ".join(bounds)]).strip()


def fits(value: Any, hint: Any, limits: Flag) -> bool:
    """Whether one value is of a field's type, and within its limits."""
    kind = item_type(hint)
    right_type = type(value) is kind or (kind is float and type(value) is int)
    if not right_type or (limits.choices and value not in limits.choices):
        return False
    if kind not in (int, float):
        return True
    inside = abs(value) < sys.float_info.max  # isfinite fails for whole numbers that no float holds
    inside &= limits.low is None or value >= limits.low
    inside &= limits.above is None or value > limits.above
    return inside and (limits.high is None or value <= limits.high)


def check(owner: Config, each: Field) -> None:
    """Raise ValueError unless a field's value has its type and keeps its limits."""
    value, hint = getattr(owner, each.name), types_of(type(owner))[each.name]
    limits, plain = each.metadata.get("flag", Flag()), plain_type(hint)
    if (value is None and is_optional(hint)) or plain is dict:
        return
    if is_config(plain):
        good = isinstance(value, plain)
    elif typing.get_origin(plain) is tuple:  # of any length
        good = isinstance(value, tuple) and all(fits(item, hint, limits) for item in value)
    else:
        good = fits(value, hint, limits)
    if not good:
        name, values = limits.name or each.name, expected(hint, limits)
        raise ValueError(f"{name} must be {values}, got {reprlib.repr(value)}")


@dataclass(frozen=True)
class Config:
    """A configuration: plain values that never change. ValueError for one that breaks its limits."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value, facts = getattr(self, each.name), each.metadata.get("flag", Flag())
            if isinstance(value, list | range):
                value = tuple(value)
            if facts.metavar in (NAME, REQUEST):
                value = composed(value)
            if is_path(types_of(type(self))[each.name], facts):
                if isinstance(value, str):
                    value = os.path.expanduser(value)
                elif isinstance(value, tuple) and all(isinstance(path, str) for path in value):
                    value = tuple(map(os.path.expanduser, value))
            object.__setattr__(self, each.name, value)
            check(self, each)

    def to_dict(self) -> dict:
        """The configuration as plain lists, strings and numbers."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


# -------------------------------------------------------------------- models and their losses


def check_attribute_names(names: Sequence[str]) -> None:
    """Raise ValueError unless these can be names: not too many, each once, and fit to be part of a
    file's name."""
    if not 1 <= len(names) <= MOST_ATTRIBUTES:
        raise ValueError(f"attribute_names must be 1 to {MOST_ATTRIBUTES}, got {reprlib.repr(names)}")
    for name in names:
        good = isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable()
        if not good or {*name} & {*"/\\="} or name.startswith("."):
            raise ValueError(f"{str(name)[:100]!r} cannot name an attribute: no /, \\, = or leading dot")
    if len({*names}) < len(names):
        raise ValueError(f"an attribute is named twice: {max(names, key=list(names).count)}")


def check_local(path: str | os.PathLike) -> None:
    """Raise ValueError for an address, also one that a path has garbled."""
    if re.match(r"(https?|ftp|s3|gs|hf):/", os.fspath(path)):
        raise ValueError(f"{path} is an address: download it, and give a file or folder here")


def check_pulled(path: str | os.PathLike) -> None:
    """Raise ValueError where a file, or one in this folder, is only the pointer that Git LFS left."""
    path = Path(path)
    for file in path.rglob("*") if path.is_dir() else [path]:
        if not file.is_file() or file.stat().st_size > 1024:
            continue
        if file.read_bytes().startswith(b"version https://git-lfs"):
            raise ValueError(f"{file} is a pointer of Git LFS, and not the file: run git lfs pull")


def in_file_name(text: str) -> str:
    """A text as part of a file's name on any system: what Windows refuses there becomes _."""
    return re.sub(r'[<>:"/\\|?*]', "_", text)


@dataclass(frozen=True)
class ModelConfig(Config):
    """What builds the model again. It travels in checkpoints."""

    attribute_names: tuple[str, ...] = flag((), metavar=NAME)  # set by the data of training
    one_hot: bool = False  # the attributes are classes that exclude each other
    guidable: bool = True  # trained without condition, too; else cfg_scale is 1
    image_size: int = count(64, "side of the square images", high=4096)
    crop: int = flag(178, choices=CROPS)
    channels: tuple[int, ...] = count((64, 128, 256, 512), "widths, finest level first", high=8192)
    blocks_per_level: int = count(2, "residual blocks down, and again up", high=32)
    self_attention_levels: tuple[int, ...] | None = count(
        None, "0 is the finest; none given: the last 2", low=0, high=11
    )
    cross_attention_levels: tuple[int, ...] | None = count(
        None, "likewise; none given: all but the finest", low=0, high=11
    )
    num_heads: int = count(4, high=256)  # of attention
    attr_emb_dim: int | None = count(
        None, "width of an attribute's token; none given: as the finest level, at least 128", high=8192
    )
    time_emb_dim: int | None = count(
        None, "width of the time embedding; none given: 4 times attr_emb_dim", high=65_536
    )
    patch_size: int = count(1, "pixel-unshuffle before the UNet", high=64)
    attribute_maps: bool = True  # learn where each attribute shows; pays where faces are aligned
    bottleneck_attention: bool = flag(True, "self- and cross-attention at the coarsest level")
    shared_film: bool = flag(False, "one time projection for all blocks of a width")
    dropout: float = share(0.0, "share of features dropped in the residual blocks")
    norm: str = flag("group", "normalisation in the residual blocks", choices=NORMS)
    activation: str = flag("silu", "nonlinearity in the residual blocks", choices=ACTIVATIONS)
    latent_dim: int = count(512, "size of the semantic latent", high=65_536)
    schedule: str = flag("cosine", "noise schedule", choices=SCHEDULES)
    num_timesteps: int = count(1000, "length of the noise schedule", low=2, high=1_000_000)
    zero_terminal_snr: bool = False  # end the noise schedule in pure noise
    prediction: str = flag("x0", "what the UNet predicts", choices=PREDICTIONS)
    first_stage: str = flag("pixels", choices=FIRST_STAGES)
    first_stage_config: dict = field(default_factory=dict)  # what rebuilds it
    first_stage_judge: str = ""  # what judged likeness when the first stage was trained
    prior_rows: int = count(0, low=0, high=10**8)  # distinct training rows, which complete requests
    guide_channels: tuple[int, ...] = count((), high=8192)  # widths of the guide inside; none: no guide
    knows_typical: bool = False  # whether the guide can tell what lies far from the training images

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = tuple(range(len(self.channels)))
        if self.self_attention_levels is None:
            object.__setattr__(self, "self_attention_levels", levels[-2:])
        if self.cross_attention_levels is None:
            object.__setattr__(self, "cross_attention_levels", levels[1:] or levels)
        if not 1 <= len(self.channels) <= 12:
            raise ValueError(f"channels must be 1 to 12 widths, got {len(self.channels)}")
        if self.attribute_names:
            check_attribute_names(self.attribute_names)
        if self.zero_terminal_snr and self.prediction in NEED_SIGNAL:
            raise ValueError("zero_terminal_snr leaves no image at the last timestep: predict v or x0")
        if self.zero_terminal_snr and self.schedule == "flow":
            raise ValueError("schedule flow ends in pure noise by itself: leave zero_terminal_snr out")
        if self.prediction in NEED_PRESERVED and self.schedule == "flow":
            raise ValueError(
                f"prediction {self.prediction} does not go with schedule flow: predict flow, or x0"
            )

    def check_norm(self, side: int) -> None:
        """Raise ValueError for instance normalisation if the coarsest level of the UNet has only one
        position: its normalised value would always be 0.

        Args:
            side: of x0.
        """
        if self.norm == "instance" and side == self.patch_size * 2 ** (len(self.channels) - 1):
            raise ValueError(
                f"norm instance needs more than one position, and the coarsest of {len(self.channels)} "
                f"levels has one at image_size {self.image_size}: give fewer --channels, or --norm group"
            )

    def own_guide(self) -> ModelConfig:
        """What builds the guide inside the model."""
        return replace(self, channels=self.guide_channels, guide_channels=(), prior_rows=0)

    @property
    def one_of_two(self) -> bool:
        """Whether the model has one attribute alone, and some pictures of its training set lack it.
        Then there are two classes. A model of unlabelled pictures has one attribute that none lacks."""
        return len(self.attribute_names) == 1 and self.prior_rows != 1


@dataclass(frozen=True)
class LossConfig(Config):
    """Weights of the joint loss, and the rates at which conditions are dropped in training."""

    ae_weight: float = weight(0.1, "weight of the VAE's losses")
    kl_weight: float = weight(0.01)  # of the KL divergence within them
    attr_weight: float = weight(0.1)  # of the attribute loss within them
    free_bits: float = weight(0.02)  # nats that each latent dimension may keep at no cost
    loss_weighting: str = flag("clamped_v", "weight of each timestep", choices=LOSS_WEIGHTINGS)
    snr_gamma: float = flag(20.0, "most weight of an error of x0: more for longer runs", above=0)
    cfg_dropout: float = share(0.1, "share of rows trained without any attribute")
    attr_dropout: float = share(0.3)  # share of rows trained with some of their attributes only
    latent_dropout: float = share(0.5, "share trained without the latent")
    guide_weight: float = weight(1.0)  # of the loss of the guide inside; they share no weights


@dataclass(frozen=True)
class FirstStageConfig(Config):
    """What rebuilds a first stage of our own, and what it was trained on."""

    attribute_names: tuple[str, ...] = flag((), metavar=NAME)
    image_size: int = count(64, "side of the square images", high=4096)
    crop: int = flag(178, choices=CROPS)
    judge: str = ""  # the network that judges likeness, if one does
    vae_channels: tuple[int, ...] = count(
        (64, 128), "each level halves the side", high=8192, name="channels", old="vae_channels"
    )
    latent_channels: int = count(4, "channels of the latent", high=1024)
    vae_blocks: int = count(1, high=32)  # residual blocks of each level
    shortcut: bool = True  # a linear map of patches beside the convolutions; files of before have none

    def network(self) -> dict:
        """The arguments of ``SpatialVAE``."""
        return {
            "channels": list(self.vae_channels),
            "latent_channels": self.latent_channels,
            "blocks_per_level": self.vae_blocks,
            "num_attributes": len(self.attribute_names),
            "shortcut": self.shortcut,
        }


@dataclass(frozen=True)
class FirstStageLossConfig(Config):
    """Weights of the first stage's loss, and when in a run its parts set in."""

    perceptual_weight: float = weight(0.2, "weight of the perceptual distance; 0: needs no judge")
    latent_kl_weight: float = weight(1e-4)  # of the KL divergence
    kl_warmup: float = share(0.1)  # share of the run in which that weight grows
    latent_attr_weight: float = weight(0.01)  # of the attribute loss
    adversarial_weight: float = weight(0.1, "weight of the discriminator's gradient; 0: none")
    adversarial_start: float = share(0.5)  # share of the run before that begins


# -------------------------------------------------------------------- sampling and editing


@dataclass(frozen=True)
class SamplingConfig(Config):
    """How images are drawn. ``samplers.resolve`` fills what is None."""

    sampler: str = flag("dpm_solver", "solver of the reverse chain", choices=SAMPLERS)
    num_inference_steps: int | None = count(
        None, "steps; none given: 20, all T with ddpm; edits 12, between photographs 25"
    )
    spacing: str | None = flag(None, "of the timesteps; none given: the sampler's", choices=SPACINGS)
    eta: float = share(0.0, "noise of each step: 0 deterministic, 1 as much as ddpm")
    cfg_scale: float | None = weight(
        None, f"classifier-free guidance of new faces, 1 is off; none given: {CFG_SCALE:g}"
    )  # 0 is unconditional; None is CFG_SCALE, or 1 for a model that was never without condition
    perturb: bool = flag(True, "guidance leads to whole shapes, too, and to plainer scenes")
    guide_scale: float = weight(0.0)  # of a guide's gradient
    guidance: str = flag("both", choices=GUIDANCE)  # both: a guide_scale of 0 leaves the guide out
    tries: int = count(3, "drawings, at most, of a face that lies far from the training pictures")


def refuse_ignored_requests(
    sampling: SamplingConfig, unconditional: bool, requests: dict[str, Any]
) -> None:
    """Raise ValueError if pictures would ignore a request.

    Args:
        sampling: a cfg_scale of 0 ignores every request.
        unconditional: whether --unconditional is given.
        requests: the values of other flags that are requests, by flag.
    """
    if sampling.cfg_scale == 0:
        raise ValueError("--cfg_scale 0 ignores every request: use --unconditional; no guidance is 1")
    for name, request in requests.items():
        if unconditional and request:
            raise ValueError(f"--unconditional draws without any request: leave --{name} out")
    if unconditional and sampling.cfg_scale is not None:
        raise ValueError("--unconditional guides towards nothing: leave --cfg_scale out")


@dataclass(frozen=True)
class EditConfig(Config):
    """How photographs are edited. ``editing.resolve`` fills what is None."""

    num_inference_steps: int = count(12, "steps")  # measured: docs/log.md, "Edits in eight steps"
    t_start: float | None = flag(
        None,
        "share of the timesteps that edits go back; none given: as suits what is named",
        above=0,
        high=1,
        old="depth",
    )
    cfg_scale: float | None = weight(
        None,
        f"of edits; none given: {STEERED_SCALE:g}, at --edit_guide_scale 0 {EDIT_CFG_SCALE:g}",
        name="edit_cfg_scale",
    )
    guide_scale: float = weight(
        5.0, "weight of the guide's gradient in edits; 0: nothing ends them", name="edit_guide_scale"
    )
    hold: float = weight(5.0, "how firmly the guide holds what was not named", name="edit_hold")
    margin: float | None = weight(
        None, "log odds that content the guide; none given: as suits what is named", name="edit_margin"
    )
    oppose: bool = True  # take what is named to be otherwise in the source, whatever was read
    # By eye. At 0.4, fewer edits do what was asked for: 0.79 of them, and 0.88 at 0.2 (docs/log.md).
    localise: float = share(0.2, "share of the largest change below which the source stays; 0: off")


# -------------------------------------------------------------------- what the studio does


@dataclass(frozen=True)
class DeviceConfig(Config):
    """Where and how precisely a script computes."""

    device: str = flag(
        "auto",
        "auto: cuda where there is one; cpu, cuda, mps, or one of several GPUs, such as cuda:1",
        metavar="DEVICE",
        resume=FREE,
    )
    mixed_precision: str = flag(
        "auto",
        "auto: bf16 where the processor has it",
        choices=("auto", "no", "bf16", "fp16"),
        resume=ADJUSTABLE,  # what it comes to is recorded
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        name = re.sub(r"^gpu|^(?=\d)", "cuda", self.device.lower())  # what other programs call it
        name = re.sub(r"^cuda(?=\d)", "cuda:", name)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
            raise ValueError(f"device must be auto, cpu, cuda, cuda:1 or mps, got {self.device!r}")
        object.__setattr__(self, "device", name)


@dataclass(frozen=True)
class DataConfig(DeviceConfig):
    """Labelled images, how their folder is read, and where a script computes."""

    data_root: str | None = flag(None, "folder of labelled images", resume=FREE)
    dataset: str | None = flag(None, DATASET_HELP, choices=DATASETS, resume=FREE)
    unspecified: int | None = flag(None, UNSPECIFIED_HELP, choices=(0, -1), resume=FREE)
    cache_dir: str = flag("data/cache", "where decoded images are kept", resume=FREE)


REQUEST_HELP = "what to ask for, such as Smiling=1 Male=0: 1 present, 0 absent, 0.5 open"
GUIDANCE_HELP = "what steers new faces: classifier-free guidance, --guide, or both"


@dataclass(frozen=True)
class ModelFiles(DeviceConfig):
    """The model and its guide, and where they compute."""

    checkpoint: str = flag(DEFAULT_MODEL, "a model of train.py, or one of pretrained/ by its name")
    guide: str | None = flag(None, "of train.py --stage guide: it steers, and reads photographs")

    def guide_file(self, is_needed: bool = False) -> str | None:
        """The guide's file: the one given, or that of a pretrained model, or the usual one if a guide is
        needed."""
        own = f"{self.checkpoint}_guide"
        if self.guide is None and (PRETRAINED / f"{own}.safetensors").is_file():
            return own
        return self.guide or (USUAL_GUIDE if is_needed else None)


@dataclass(frozen=True)
class DrawSettings(Config):
    """How new faces are drawn. ``sampling.guidance`` and ``sampling.guide_scale`` are overwritten by the
    fields here."""

    open: bool = flag(False, "leave what is not named to the network: often shapeless")
    guidance: str = flag("free", GUIDANCE_HELP, choices=GUIDANCE)
    guide_scale: float = weight(3.0, "weight of the guide's gradient in new faces")
    seed: int = count(0, "another seed, other faces", **SEED)
    sampling: SamplingConfig = nested(SamplingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance == "guide" and self.guide_scale == 0:
            raise ValueError("--guidance guide --guide_scale 0 asks for nothing: use --unconditional")


@dataclass(frozen=True)
class GenerateSettings(DrawSettings):
    """New faces."""

    attributes: tuple[str, ...] = flag((), REQUEST_HELP, metavar=REQUEST)
    unconditional: bool = flag(False, "new faces without any request")
    num_samples: int | None = count(
        None, "new faces of each request or class; none given: 8 of each class, else 8 in all"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unconditional and self.guidance != "free":
            raise ValueError("--unconditional guides towards nothing: leave --guidance out")
        requests = {"attributes": self.attributes, "open": self.open}
        refuse_ignored_requests(self.sampling, self.unconditional, requests)


@dataclass(frozen=True)
class InterpolateSettings(DrawSettings):
    """A strip from one request to another, or from one photograph to another."""

    start: tuple[str, ...] = flag((), "where it starts, such as Smiling=0", name="from", metavar=REQUEST)
    end: tuple[str, ...] = flag((), "where it ends, such as Smiling=1", name="to", metavar=REQUEST)
    target_image: str | None = flag(None, "photograph to interpolate to, from --source_image")
    interpolation_steps: int = count(10, "frames of a strip", low=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.start) != bool(self.end):
            raise ValueError("--from and --to go together: name the attributes at both ends")


@dataclass(frozen=True)
class PhotographSettings(Config):
    """A photograph, and where the face is in it."""

    source_image: str | None = flag(None, "photograph to edit")
    landmarks: tuple[float, ...] | None = flag(
        None, "x y of left eye, right eye, nose, left and right mouth corner, in pixels", metavar="XY"
    )
    face: int = count(1, "which face, 1 the largest; 0: no search, cropped at the centre", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.face > 1 and self.landmarks:
            raise ValueError(f"--face {self.face} is searched for: leave it out, or --landmarks")


@dataclass(frozen=True)
class EditSettings(Config):
    """An edit of a photograph, or a counterfactual of it."""

    attributes: tuple[str, ...] = flag((), REQUEST_HELP, metavar=REQUEST)
    manipulation_strength: float = share(1.0, "0 the source, 1 the full edit")
    mask: str | None = flag(None, f"picture, white where edits may act; or {', '.join(MASKS)}")
    pins: tuple[str, ...] = flag((), "attributes that the guide holds firmly", name="hold", metavar=NAME)
    guidance: str = flag("free", GUIDANCE_HELP, choices=GUIDANCE)  # "guide": edits, too, by it alone
    seed: int = count(0, "another seed, other faces", **SEED)
    editing: EditConfig = nested(EditConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.pins:
            if any(item.partition("=")[0] == name for item in self.attributes):
                raise ValueError(f"{name} is both asked for, in --attributes, and held, by --hold")
        if self.editing.cfg_scale == 0:
            raise ValueError("--edit_cfg_scale 0 ignores every request; no guidance is 1")
        if self.guidance == "guide" and self.editing.guide_scale == 0:
            raise ValueError("--guidance guide --edit_guide_scale 0 asks for nothing: raise the scale")
