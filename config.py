"""What a model, its losses, sampling and editing are set to, as frozen dataclasses; what a field knows.

A script's own settings stand at its top. ``flags.parse`` makes flags from a dataclass: a field has a
default, a help text and limits. ``ModelConfig`` travels in checkpoints. Nothing heavy is imported, so
that --help is instant.
"""

from __future__ import annotations

import math
import re
import reprlib
import types
import typing
import unicodedata
from collections.abc import Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

# A field of TrainConfig differs from that of the checkpoint: what a resumed run does then.
SAME, ADJUSTABLE, FREE = "refuse", "say so and go on", "not recorded"


# The choices of a flag: the names in a registry of the same name, which tests compare with these.
SCHEDULES = ("linear", "cosine", "flow")
PREDICTIONS = ("eps", "x0", "v", "flow")
LOSS_WEIGHTINGS = ("none", "min_snr", "clamped_v")
SAMPLERS = ("ddpm", "ddim", "dpm_solver")
SPACINGS = ("leading", "trailing", "linspace", "quadratic", "log_snr")
FIRST_STAGES = ("pixels", "vae", "sd-vae")
NORMS = ("group", "instance")
ACTIVATIONS = ("silu", "relu")
DATASETS = ("celeba", "celebahq", "mnist", "cifar10", "parquet", "folder")

CROPS = (178, 148, 140, 128)  # sides of the square cut from CelebA's 178 x 218
SPLITS = ("train", "val", "test")
REQUESTS = ("whole", "three", "none")  # kinds of requests that evaluate.py draws under
CFG_SCALE = 1.5  # of new faces, by default
STEERED_SCALE, EDIT_CFG_SCALE = 6.0, 2.0  # of edits: a guide ends them, and without one 6 burns them
GUIDE_ON = ("x_t", "x0")  # what a guide reads: the noisy image, or the image as predicted
DATASET_HELP = "what --data_root holds; none given: as its files say"
CROP_HELP = "square cut from photographs, in CelebA's 178 x 218"
CACHE_HELP = "where decoded images are kept"
PRETRAINED = Path(__file__).resolve().parent / "pretrained"  # models that come with the repository
DEFAULT_MODEL = "celeba64"  # of those, what manipulate.py draws with if no --checkpoint is given
FEWEST_SAMPLES = 32  # of which a distance says anything
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
    default_text: str = ""  # the default in words, where it depends on other settings
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
    """A number of 0 or more."""
    return flag(default, help, low=0, **facts)


def composed(value: Any) -> Any:
    """A name, or each of a tuple of names, in Unicode's composed form (NFC). macOS writes 'é' as two
    characters, other systems as one. Other values are not changed."""
    if isinstance(value, tuple):
        return tuple(composed(each) if isinstance(each, str) else each for each in value)
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


TYPES: dict[type, dict[str, Any]] = {}


def types_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    if kind not in TYPES:
        TYPES[kind] = typing.get_type_hints(kind)
    return TYPES[kind]


def is_config(hint: Any) -> bool:
    """Whether a field holds another configuration."""
    return isinstance(hint, type) and issubclass(hint, Config)


def is_optional(hint: Any) -> bool:
    """Whether None is among the values."""
    return isinstance(hint, types.UnionType) and type(None) in hint.__args__


def plain_type(hint: Any) -> Any:
    """int for ``int | None``, and so on."""
    return next(a for a in hint.__args__ if a is not type(None)) if is_optional(hint) else hint


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
    if limits.high is not None and limits.high < 10**9:
        bounds.append(f"at most {limits.high:g}")
    return " ".join([noun, " and ".join(bounds)]).strip()


def fits(value: Any, hint: Any, limits: Flag) -> bool:
    """Whether one value is of a field's type, and within its limits."""
    kind = item_type(hint)
    right_type = type(value) is kind or (kind is float and type(value) is int)
    if not right_type or (limits.choices and value not in limits.choices):
        return False
    if kind not in (int, float):
        return True
    inside = math.isfinite(value)
    inside &= limits.low is None or value >= limits.low
    inside &= limits.above is None or value > limits.above
    return inside and (limits.high is None or value <= limits.high)


def check(owner: Config, each: Field) -> None:
    """Raise ValueError unless a field's value has its type and keeps its limits."""
    value, hint = getattr(owner, each.name), types_of(type(owner))[each.name]
    limits = each.metadata.get("flag", Flag())
    if (value is None and is_optional(hint)) or plain_type(hint) in (dict, Any):
        return
    if is_config(plain_type(hint)):
        good = isinstance(value, plain_type(hint))
    elif typing.get_origin(plain_type(hint)) is tuple:
        lengths = plain_type(hint).__args__
        exact = len(lengths) if Ellipsis not in lengths else None
        good = isinstance(value, tuple) and exact in (None, len(value))
        good = good and all(fits(item, hint, limits) for item in value)
    else:
        good = fits(value, hint, limits)
    if not good:
        name, values = limits.name or each.name, expected(hint, limits)
        raise ValueError(f"{name} must be {values}, got {reprlib.repr(value)}")


@dataclass(frozen=True)
class Config:
    """A configuration: plain values that never change. ValueError for one that breaks its limits."""

    gone: ClassVar[tuple[str, ...]] = ()  # old flags; a YAML file may still name them

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, list | range):
                object.__setattr__(self, each.name, tuple(value))
            if each.metadata.get("flag", Flag()).metavar in (NAME, REQUEST):
                object.__setattr__(self, each.name, composed(getattr(self, each.name)))
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
    channels: tuple[int, ...] = count(
        (64, 128, 256, 512), "width of each level, finest first", high=8192
    )
    blocks_per_level: int = count(2, "residual blocks down, and again up", high=32)
    self_attention_levels: tuple[int, ...] | None = count(
        None, "0 is the finest", default_text="the last 2", low=0, high=11
    )
    cross_attention_levels: tuple[int, ...] | None = count(
        None, "likewise", default_text="all but the finest", low=0, high=11
    )
    num_heads: int = count(4, high=256)  # of attention
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
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError("zero_terminal_snr leaves no image at the last timestep: predict v or x0")
        if self.zero_terminal_snr and self.schedule == "flow":
            raise ValueError("schedule flow ends in pure noise by itself: leave zero_terminal_snr out")
        if self.prediction in ("eps", "v") and self.schedule == "flow":
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

    @property
    def one_of_two(self) -> bool:
        """Whether the model has one attribute alone, and some pictures of its training set lack it.
        Then there are two classes. A model of unlabelled pictures has one attribute that none lacks."""
        return len(self.attribute_names) == 1 and self.prior_rows != 1

    def sampling_scale(self, asked: float | None, default: float) -> float:
        """The cfg_scale to draw with: what was asked for, or the default.

        Raises:
            ValueError: for another than 1 where training never dropped the condition.
        """
        if self.guidable:
            return default if asked is None else asked
        if asked not in (None, 1):
            what = f"cfg_scale {asked:g}" if asked else "drawing without any request"
            raise ValueError(
                f"{what} is for models trained without condition, too, and this one "
                "was trained with --cfg_dropout 0: draw under requests, at cfg_scale 1"
            )
        return 1.0


@dataclass(frozen=True)
class LossConfig(Config):
    """Weights of the joint loss, and the rates at which conditions are dropped in training."""

    ae_weight: float = weight(0.1, "weight of the VAE's losses")
    kl_weight: float = weight(0.01)  # of the KL divergence within them
    attr_weight: float = weight(0.1)  # of the attribute loss within them
    free_bits: float = weight(0.02)  # nats that each latent dimension may keep at no cost
    loss_weighting: str = flag("clamped_v", "weight of each timestep", choices=LOSS_WEIGHTINGS)
    snr_gamma: float = flag(
        20.0, "most weight of an error of x0: more for longer runs and finer texture", above=0
    )
    cfg_dropout: float = share(0.1, "share of rows trained without any attribute")
    attr_dropout: float = share(0.3, "share of rows trained with some of their attributes only")
    latent_dropout: float = share(0.5, "share trained without the latent")


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
    latent_channels: int = count(4, high=1024)
    vae_blocks: int = count(1, high=32)  # residual blocks of each level

    def network(self) -> dict:
        """The arguments of ``SpatialVAE``."""
        return {
            "channels": list(self.vae_channels),
            "latent_channels": self.latent_channels,
            "blocks_per_level": self.vae_blocks,
            "num_attributes": len(self.attribute_names),
        }


@dataclass(frozen=True)
class FirstStageLossConfig(Config):
    """Weights of the first stage's loss, and when in a run its parts set in."""

    perceptual_weight: float = weight(0.2, "weight of the perceptual distance; 0: needs no judge")
    latent_kl_weight: float = weight(1e-4)  # of the KL divergence
    kl_warmup: float = share(0.1)  # share of the run in which that weight grows
    latent_attr_weight: float = weight(0.01)  # of the attribute loss
    adversarial_weight: float = weight(0.1)  # of the discriminator's gradient; 0: none
    adversarial_start: float = share(0.5)  # share of the run before that begins


# -------------------------------------------------------------------- sampling and editing


@dataclass(frozen=True)
class SamplingConfig(Config):
    """How images are drawn. Fields without help have no flag: no trial was won with them."""

    sampler: str = flag("dpm_solver", "solver of the reverse chain", choices=SAMPLERS)
    num_inference_steps: int | None = count(
        None, "network evaluations; none given: 20, all T with ddpm; 25 for edits"
    )
    spacing: str | None = flag(
        None, "how timesteps are spread; none given: as suits the sampler", choices=SPACINGS
    )
    eta: float = share(0.0, "noise of each step: 0 deterministic, 1 as much as ddpm")
    cfg_scale: float | None = weight(
        None, f"classifier-free guidance of new faces, 1 is off; none given: {CFG_SCALE:g}"
    )  # 0 is unconditional; None is CFG_SCALE, or 1 for a model that was never without condition
    guide_scale: float = weight(0.0)  # of a guide's gradient
    guide_on: str = flag("x_t", choices=GUIDE_ON)
    rescale: float = share(0.0)  # of guidance, against over-exposure
    guidance_interval: tuple[float, float] = share((0.0, 1.0))  # shares of T in which guidance acts
    dynamic_threshold: float | None = flag(None, above=0, high=1)  # quantile of |x0_hat|

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(f"guidance_interval must rise within 0 ... 1, got {low} and {high}")


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
    """How photographs are edited."""

    num_inference_steps: int = count(25, "steps")
    depth: float | None = flag(
        None,
        "share of the timesteps from which edits start: less keeps more; none given: what suits the "
        "attributes named",
        above=0,
        high=1,
    )
    cfg_scale: float | None = weight(
        None,
        "strength of edits, from the source's prediction to the target's; none given: "
        f"{STEERED_SCALE:g} where a guide steers, otherwise {EDIT_CFG_SCALE:g}",
        name="edit_cfg_scale",
    )
    guide_scale: float = weight(
        5.0,
        "weight of the guide's gradient in edits; 0: it does not steer",
        name="edit_guide_scale",
    )
    hold: float = weight(
        5.0, "how firmly the guide holds what was not named in an edit", name="edit_hold"
    )
    margin: float | None = weight(
        None,
        "log odds at which the guide is content with an edit; none given: as suits the attributes named",
        name="edit_margin",
    )
    oppose: bool = True  # take what is named to be otherwise in the source, whatever was read
    localise: float = share(0.2, "share of the largest change below which the source stays; 0: off")


# -------------------------------------------------------------------- scripts

REPORT_TO = ("tensorboard", "wandb", "none")  # metrics.jsonl is written in any case


@dataclass(frozen=True)
class DeviceConfig(Config):
    """Where and how precisely a script computes."""

    device: str = flag(
        "auto",
        "where to compute; auto: cuda where there is one",
        choices=("auto", "cpu", "cuda", "mps"),
        resume=FREE,
    )
    mixed_precision: str = flag(
        "auto",
        "auto: bf16 where the processor has it",
        choices=("auto", "no", "bf16", "fp16"),
        resume=ADJUSTABLE,  # what it comes to is recorded
    )


@dataclass(frozen=True)
class TrainConfig(DeviceConfig):
    """Flags of train.py."""

    stage: str = flag(
        "diffusion", "the model; a first stage for latents; a guide", choices=STAGES, resume=FREE
    )
    data_root: str | None = flag(
        None, "folder of labelled images; none given: draws synthetic faces", resume=FREE
    )
    dataset: str | None = flag(None, DATASET_HELP, choices=(*DATASETS, "synthetic"), resume=FREE)
    download: bool = flag(False, "fetch CelebA into --data_root first", resume=FREE)
    data_fraction: float = flag(1.0, "share of the training images to use", above=0, high=1, resume=FREE)
    flip: bool = flag(True, "mirror images at random")
    latents: str | None = flag(None, "folder of encode_latents.py: train in those latents", resume=FREE)
    attribute: tuple[str, ...] = flag(
        (), "learn these alone, one or several; none given: all", metavar=NAME, resume=FREE
    )
    judge: str = flag(
        "./checkpoints/judge.pth", "judge of a first stage's likeness, in place of VGG16", resume=FREE
    )
    cache_dir: str = flag("data/cache", CACHE_HELP, resume=FREE)
    num_workers: int = count(0, "threads that read ahead; 0: none", low=0, resume=FREE)
    batch_size: int = count(16, "images of a process in one forward pass")
    grad_accum: int = count(1, "batches of an optimiser step", resume=FREE)
    epochs: int = count(100, "passes over the training images", resume=ADJUSTABLE)
    max_steps: int | None = count(None, "end after this many optimiser steps", resume=ADJUSTABLE)
    max_minutes: float | None = flag(
        None, "end after this time, the learning rate annealed", above=0, resume=ADJUSTABLE
    )
    optimizer: str = flag("muon", "what moves the weights", choices=OPTIMIZERS)
    lr: float = flag(1e-3, "learning rate after the warm-up", above=0, resume=ADJUSTABLE)
    warmup_steps: int = count(200, "steps of linear warm-up", low=0, resume=ADJUSTABLE)
    weight_decay: float = weight(0.01, "share of the learning rate by which weights shrink in a step")
    grad_clip: float = flag(
        1.0, "largest norm of the gradient; a longer one is shortened", above=0, resume=ADJUSTABLE
    )
    ema_decay: float = share(0.9999, "decay of the averaged weights")
    compile: bool = flag(False, "torch.compile the UNet; pays on long runs", resume=FREE)
    gradient_checkpointing: bool = flag(False, "less memory, a third more time", resume=FREE)
    save_dir: str = flag("./checkpoints", "folder of checkpoints", resume=FREE)
    log_dir: str = flag("./logs", "folder of logs", resume=FREE)
    report_to: str = flag(
        "tensorboard", "who shows curves and pictures; wandb is extra", choices=REPORT_TO, resume=FREE
    )
    save_interval: int = count(10, "epochs between kept checkpoints", resume=FREE)
    keep_last: int | None = count(None, "kept checkpoints; none given: all", resume=FREE)
    sample_interval: int = count(5, "epochs between sample grids", resume=FREE)
    val_images: int = count(1024, "images of a validation pass", resume=ADJUSTABLE)
    init_from: str | None = flag(
        None,
        "start from what fits of this model's weights; a path, or a name in pretrained/",
        resume=FREE,
    )
    resume: str | None = flag(
        None, "go on from SAVE_DIR's latest checkpoint, or from this file", resume=FREE, bare=""
    )
    seed: int = count(0, "another seed, another run", low=0)
    dry_run: bool = flag(False, "two steps, timed: no checkpoint, no log", resume=FREE)
    model: ModelConfig = nested(ModelConfig)
    loss: LossConfig = nested(LossConfig)
    first_stage: FirstStageConfig = nested(FirstStageConfig)
    first_stage_loss: FirstStageLossConfig = nested(FirstStageLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for wrong, message in (
            (
                self.dataset == "synthetic" and self.data_root,
                "--dataset synthetic draws its own faces: leave --data_root out",
            ),
            (
                self.dataset not in (None, "synthetic") and not self.data_root,
                f"--dataset {self.dataset} needs --data_root, the folder that holds it",
            ),
            (
                self.download and self.dataset not in (None, "celeba"),
                f"--download fetches CelebA, not {self.dataset}: fetch that by hand",
            ),
            (
                self.download and not self.data_root,
                "--download needs --data_root, the folder to download into",
            ),
            (
                self.latents
                and (self.data_root or self.stage == "first_stage" or self.data_fraction < 1),
                "--latents is a dataset of its own: no --data_root, no --data_fraction, and no "
                "--stage first_stage",
            ),
            (
                self.init_from and self.stage == "first_stage",
                "--init_from is for the model and the guide: leave it out with --stage first_stage",
            ),
            (
                self.compile and self.stage != "diffusion",
                f"--compile is for the UNet: leave it out with --stage {self.stage}",
            ),
            (
                self.gradient_checkpointing and self.stage != "diffusion",
                f"--gradient_checkpointing is for the UNet: leave it out with --stage {self.stage}",
            ),
        ):
            if wrong:
                raise ValueError(message)

    @property
    def data_folder(self) -> str:
        """The folder of images: that of synthetic faces, if none is given."""
        return self.data_root or f"data/synthetic_faces_{self.model.image_size}"


MODES = ("generate", "interpolate", "edit", "counterfactual", "all")
GUIDANCE = ("free", "guide", "both")


@dataclass(frozen=True)
class ManipulateConfig(DeviceConfig):
    """Flags of manipulate.py."""

    checkpoint: str = flag(DEFAULT_MODEL, "a model of train.py, or one of pretrained/ by its name")
    mode: str = flag("all", "what to make", choices=MODES)
    output_dir: str = flag("./outputs", "folder to write to")
    data_root: str | None = flag(None, "folder of images: its first test image is edited by default")
    dataset: str | None = flag(None, DATASET_HELP, choices=DATASETS)
    source_image: str | None = flag(None, "photograph to edit")
    target_image: str | None = flag(None, "photograph to interpolate to, from --source_image")
    landmarks: tuple[float, ...] | None = flag(
        None,
        "x y of left eye, right eye, nose, left and right mouth corner of --source_image, in pixels: "
        "aligns it as CelebA's are",
        metavar="XY",
    )
    face: int = count(
        1, "which face of --source_image, 1 the largest; 0: no search, cropped at the centre", low=0
    )
    paste_back: bool = flag(False, "also write edits in the whole --source_image")
    attributes: tuple[str, ...] = flag(
        (), "what to ask for, such as Smiling=1 Male=0: 1 there, 0 not, 0.5 open", metavar=REQUEST
    )
    start: tuple[str, ...] = flag(
        (), "where an interpolation starts, such as Smiling=0", name="from", metavar=REQUEST
    )
    end: tuple[str, ...] = flag((), "where it ends, such as Smiling=1", name="to", metavar=REQUEST)
    open: bool = flag(False, "leave what is not named to the network: often shapeless")
    unconditional: bool = flag(False, "new faces without any request")
    num_samples: int | None = count(
        None, "new faces of each request or class; none given: 8 of each class, else 8 in all"
    )
    guidance: str = flag(
        "free", "what steers new faces: classifier-free guidance, --guide, or both", choices=GUIDANCE
    )
    guide: str | None = flag(
        None, "classifier of train.py --stage guide: it steers, and reads photographs"
    )
    guide_scale: float = weight(3.0, "weight of the guide's gradient in new faces")
    manipulation_strength: float = share(1.0, "0 the source, 1 the full edit")
    interpolation_steps: int = count(10, "frames of a strip", low=2)
    seed: int = count(0, "another seed, other faces", low=0)
    sampling: SamplingConfig = nested(SamplingConfig)
    editing: EditConfig = nested(EditConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.start) != bool(self.end):
            raise ValueError("--from and --to go together: name the attributes at both ends")
        if self.target_image and self.mode not in ("interpolate", "all"):
            raise ValueError(f"--target_image is for --mode interpolate, and this is {self.mode}")
        if self.landmarks and not self.source_image:
            raise ValueError("--landmarks are those of --source_image: give it, too")
        if self.face > 1 and (self.landmarks or not self.source_image):
            raise ValueError(
                f"--face {self.face} is searched for in --source_image: give it, and no --landmarks"
            )
        if self.mode == "counterfactual" and not self.attributes:
            raise ValueError("--mode counterfactual needs --attributes: what is to flip: Smiling=0")
        if self.editing.cfg_scale == 0:
            raise ValueError("--edit_cfg_scale 0 ignores every request; no guidance is 1")
        if self.sampling.cfg_scale is not None and self.mode in ("edit", "counterfactual"):
            raise ValueError(
                f"--cfg_scale is of new faces, and this is --mode {self.mode}: use --edit_cfg_scale"
            )
        if self.unconditional and self.mode not in ("generate", "all"):
            raise ValueError(f"--unconditional draws new faces, and this is --mode {self.mode}")
        if self.unconditional and self.guidance != "free":
            raise ValueError("--unconditional guides towards nothing: leave --guidance out")
        asked = {"attributes": self.attributes, "from": self.start, "open": self.open}
        refuse_ignored_requests(self.sampling, self.unconditional, asked)
        if self.guidance == "guide" and self.guide_scale == 0:
            raise ValueError("--guidance guide --guide_scale 0 asks for nothing: use --unconditional")

    def makes(self, mode: str) -> bool:
        """Whether this mode is asked for. "all" leaves out counterfactuals, which must be told what to
        flip."""
        if self.mode != "all":
            return mode == self.mode
        return mode == "generate" or (mode != "counterfactual" and not self.unconditional)

    @property
    def guide_file(self) -> str | None:
        """The guide's file: the one given, or that of a pretrained model, or the usual one if a guide is
        needed."""
        own = f"{self.checkpoint}_guide"
        if self.guide is None and (PRETRAINED / f"{own}.safetensors").is_file():
            return own
        needed = self.guidance != "free" or self.mode == "counterfactual"
        return self.guide or ("./checkpoints/guide_best.pth" if needed else None)


@dataclass(frozen=True)
class AppConfig(DeviceConfig):
    """Flags of app.py."""

    checkpoint: str = flag(DEFAULT_MODEL, "a model of train.py, or one of pretrained/ by its name")
    guide: str | None = flag(None, "of train.py --stage guide: steers edits, and reads photographs")
    judge: str | None = flag(
        None,
        "of evaluate.py --train_judge: says what edits changed; none given: a pretrained model's probe",
    )
    host: str = flag("127.0.0.1", "who may visit: 127.0.0.1 this machine alone, 0.0.0.0 every machine")
    port: int = count(7860, "of the page", low=0, high=65535)
    max_upload: float = flag(20.0, "largest file that a visitor may send, in MB", above=0)

    @property
    def script(self) -> ManipulateConfig:
        """The flags with which manipulate.py does what the page does."""
        shared = {name: getattr(self, name) for name in ("checkpoint", "guide", "device")}
        return ManipulateConfig(mixed_precision=self.mixed_precision, **shared)


@dataclass(frozen=True)
class EvaluateConfig(DeviceConfig):
    """Flags of evaluate.py."""

    checkpoint: str = flag("./checkpoints/best_model.pth", "model of train.py")
    data_root: str = flag("", "folder of labelled images", required=True)
    dataset: str | None = flag(None, DATASET_HELP, choices=DATASETS)
    judge: str = flag("./checkpoints/judge.pth", "the classifier that measures")
    train_judge: bool = flag(False, "train the judge and write it there")
    judge_epochs: int = count(12, "passes over the training images")
    inception_weights: str | None = flag(None, "torch-fidelity's file, or 'download': its features, too")
    num_samples: int | None = count(
        None,
        "images for each setting and kind of request; none given: 1000, or what the split has",
        low=FEWEST_SAMPLES,
    )
    requests: tuple[str, ...] = flag(REQUESTS, "what is asked for", choices=REQUESTS)
    open: bool = flag(False, "leave what is not named to the network: often shapeless")
    cfg_scale: tuple[float, ...] | None = weight(
        None, "scales to compare; none given: 1, 1.5, 2 and 3 as far as it was trained for"
    )
    sampler: tuple[str, ...] = flag(("dpm_solver",), "solvers to compare", choices=SAMPLERS)
    num_inference_steps: tuple[int, ...] | None = count(
        None, "numbers to compare; none given: 20, all T with ddpm; 25 for edits"
    )
    guide: str | None = flag(
        None, "classifier of train.py --stage guide: it steers, reads sources of edits, is explained"
    )
    guide_scale: tuple[float, ...] = weight((0.0,), "weights of the guide's gradient to compare")
    attribute_split: str = flag(
        "val", "whose attribute rows are asked for; whose photographs are explained", choices=SPLITS
    )
    reference_split: str = flag("test", "whose images are compared with", choices=SPLITS)
    batch_size: int = count(50, "images drawn at once")
    output_dir: str = flag("./outputs/evaluation", "folder to write to")
    cache_dir: str = flag("data/cache", CACHE_HELP)
    seed: int = count(0, "another seed, other samples", low=0)
    edit: bool = flag(False, "judge edits instead of new faces")
    edit_attributes: tuple[str, ...] = flag(
        (), "what to edit; none given: every attribute", metavar=NAME
    )
    edit_cfg_scale: tuple[float, ...] = weight((), "strengths of guidance of edits to compare")
    edit_sources: int = count(32, "faces for each attribute and direction", low=2)
    strengths: tuple[float, ...] = share((0.5, 1.0), "strengths of each edit; the last is judged")
    counterfactual: tuple[str, ...] = flag(
        (), "edit each photograph against what --guide reads, as papers on explanations do", metavar=NAME
    )
    face_network: str | None = flag(
        None,
        "TorchScript file, RGB (B, 3, S, S) in [-1, 1] -> embeddings (B, D): its features, and FVA, FS",
    )
    sampling: SamplingConfig = nested(SamplingConfig, only=("spacing", "eta"))
    editing: EditConfig = nested(EditConfig, only=("depth", "guide_scale", "hold", "margin", "localise"))

    def __post_init__(self) -> None:
        super().__post_init__()
        edits = "--counterfactual" if self.counterfactual else "--edit" if self.edit else None
        if edits and len(self.num_inference_steps or ()) > 1:
            raise ValueError(f"{edits} takes one number of steps, got {self.num_inference_steps}")
        if edits and self.cfg_scale:
            raise ValueError(f"--cfg_scale is of new faces: with {edits} use --edit_cfg_scale")
        if self.counterfactual and not self.guide:
            raise ValueError(
                "--counterfactual needs --guide, the classifier that is explained, such as "
                f"{DEFAULT_MODEL}_guide"
            )
        if any(self.guide_scale) and not self.guide:
            raise ValueError("--guide_scale needs --guide, the classifier that steers")
        if edits and any(self.guide_scale):
            raise ValueError(f"--guide_scale is of new faces: with {edits} use --edit_guide_scale")
        if self.attribute_split == self.reference_split:
            split = self.reference_split
            raise ValueError(f"--attribute_split and --reference_split are both {split}: they differ")


@dataclass(frozen=True)
class VisualizeConfig(DeviceConfig):
    """Flags of visualize.py."""

    what: str = flag(
        "all", "the figure, or all that the flags allow", choices=(*FIGURES, "all"), positional=True
    )
    checkpoint: str | None = flag(None, "model of train.py")
    data_root: str | None = flag(None, "folder of labelled images")
    dataset: str | None = flag(None, DATASET_HELP, choices=DATASETS)
    log_dir: str | None = flag(
        None, "logs of train.py: of the last run in this folder, or of the run whose folder it is"
    )
    output_dir: str = flag("./outputs/figures", "folder to write to")
    attributes: tuple[str, ...] = flag(
        (), "what is varied, coloured by or asked for, each alone: NAME or NAME=VALUE", metavar=REQUEST
    )
    unconditional: bool = flag(False, "denoising and animation without any request")
    num_samples: int = count(8, "images in a row")
    num_points: int = count(1000, "points of the latent space", low=50)
    cache_dir: str = flag("data/cache", CACHE_HELP)
    seed: int = count(0, "another seed, other samples", low=0)
    sampling: SamplingConfig = nested(SamplingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unconditional and self.what not in ("denoising", "animation"):
            raise ValueError(f"--unconditional is for denoising and animation, and this is {self.what}")
        refuse_ignored_requests(self.sampling, self.unconditional, {"attributes": self.attributes})


@dataclass(frozen=True)
class EncodeConfig(DeviceConfig):
    """Flags of encode_latents.py."""

    data_root: str = flag("", "folder of labelled images", required=True)
    dataset: str | None = flag(None, DATASET_HELP, choices=DATASETS)
    first_stage: str = flag(
        "./checkpoints/first_stage.pth", "of train.py --stage first_stage, or an AutoencoderKL"
    )
    own_scale: bool = flag(
        False, "scale latents as the AutoencoderKL's configuration says, not as they are measured"
    )
    output_dir: str = flag("./latents", "folder to write, or to go on with")
    image_size: int = count(128, "side of the square images", high=4096)
    crop: int = flag(178, CROP_HELP, choices=CROPS)
    batch_size: int = count(32, "images encoded at once")
    cache_dir: str = flag("data/cache", CACHE_HELP)


@dataclass(frozen=True)
class ExportConfig(Config):
    """Flags of export.py."""

    checkpoint: str = flag("./checkpoints/best_model.pth", "model of train.py")
    out: str = flag("", "a .safetensors or .pth file, or a folder", required=True)
    hub: bool = flag(False, "the folder is for the Hugging Face hub, not for diffusers")
    half: bool = flag(False, "write the weights in half precision")


@dataclass(frozen=True)
class SyntheticFacesConfig(Config):
    """Flags of ``python -m synthetic_faces``."""

    out: str = flag("data/synthetic_faces", "folder to create")
    num_images: int = count(6000, "faces to draw", high=999_999)
    image_size: int = count(64, "side of the square images", low=16)
    seed: int = count(0, "another seed, other faces", low=0)
    balanced: bool = flag(False, "every attribute about half the time, not as in CelebA")
    floor: float = flag(0.0, "raise the frequency of rare attributes to about this", low=0, high=0.5)
    num_workers: int | None = count(None, "processes; none given: one for each processor")


EDIT_BENCHMARK = "data/edit_benchmark"  # where it is made and looked for


@dataclass(frozen=True)
class MakeBenchmarkConfig(Config):
    """Flags of ``python -m synthetic_faces.benchmark make``."""

    out: str = flag(EDIT_BENCHMARK, "folder to create")
    sources: int = count(5, "faces for each attribute and direction")
    image_size: int = count(64, "side of the square images", low=32, high=4096)
    seed: int = count(0, "another seed, other faces", low=0)


@dataclass(frozen=True)
class ScoreEditsConfig(Config):
    """Flags of ``python -m synthetic_faces.benchmark score``."""

    edits: str = flag("", "folder of edited pictures, 000.png, 001.png, ...", required=True)
    benchmark: str = flag(EDIT_BENCHMARK, "folder of the benchmark")
    judge: str | None = flag(None, "of evaluate.py --train_judge; none given: the probe in pretrained/")
