"""What a model and its loss are made of, as plain values: the defaults of train.py's flags and what
travels in checkpoints. Imports nothing heavy."""

from __future__ import annotations

import reprlib
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields

SCHEDULES = ("linear", "cosine")
PREDICTIONS = ("eps", "x0", "v")
FIRST_STAGES = ("pixels", "vae", "sd-vae")
LOSS_WEIGHTINGS = ("none", "min_snr")
SAMPLERS = ("ddim", "ddpm", "dpm_solver")
SPACINGS = ("leading", "trailing", "linspace", "quadratic", "log_snr")
CLASSIFIER_ON = ("x_t", "x0")
FEWEST_SAMPLES = 32  # that anything can be said of
REQUESTS = ("whole", "three", "none")  # kinds of requests that evaluate.py draws under
EDIT_METHODS = ("ddim", "ddpm")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


LIMITS = {  # of a model's whole numbers: what no file of ours exceeds
    "image_size": 4096,
    "channels": 8192,
    "blocks_per_level": 32,
    "self_attention_levels": 12,
    "cross_attention_levels": 12,
    "num_heads": 256,
    "patch_size": 64,
    "latent_dim": 65_536,
    "num_timesteps": 1_000_000,
    "prior_rows": 100_000_000,
}
MOST_LEVELS, MOST_ATTRIBUTES = 12, 10_000


def check_attribute_names(names: Sequence[str]) -> None:
    """Raise ValueError unless these can be names: not too many, each once, and fit to be part of a
    file's name."""
    if not isinstance(names, list | tuple) or not 1 <= len(names) <= MOST_ATTRIBUTES:
        raise ValueError(f"attribute_names must be 1 to {MOST_ATTRIBUTES}, got {reprlib.repr(names)}")
    for name in names:
        good = isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable()
        if not good or {*name} & {*"/\\="} or name.startswith("."):
            raise ValueError(f"{str(name)[:100]!r} cannot name an attribute: no /, \\, = or leading dot")
    if len({*names}) < len(names):
        raise ValueError(f"an attribute is named twice: {max(names, key=list(names).count)}")


def check_first_stage_config(config: dict) -> None:
    """Raise ValueError unless a first stage's configuration holds plain values of bearable size."""
    values = [each for v in config.values() for each in (v if isinstance(v, list | tuple) else [v])]
    plain = all(isinstance(value, int | float | str | None) for value in values)
    if not plain or len(values) > 100 or any(isinstance(v, int) and abs(v) > 65_536 for v in values):
        raise ValueError(f"first_stage_config asks for too much: {reprlib.repr(config)}")
    for name in ("blocks_per_level", "layers_per_block"):
        blocks = config.get(name, 1)
        if not isinstance(blocks, int) or blocks > LIMITS["blocks_per_level"]:
            raise ValueError(f"first_stage_config has {name} = {reprlib.repr(blocks)}: too much")


def check_types(config) -> None:
    """Raise ValueError unless every field that has a plain default is of its type."""
    for each in fields(config):
        value, kind = getattr(config, each.name), type(each.default)
        if kind in (bool, int, float, str) and type(value) not in (kind, int if kind is float else kind):
            raise ValueError(f"{each.name} must be of type {kind.__name__}, got {reprlib.repr(value)}")


def check_whole_numbers(config) -> None:
    """Raise ValueError unless every field of LIMITS holds whole numbers up to its limit."""
    for name, limit in LIMITS.items():
        value = getattr(config, name)
        several = value if isinstance(value, tuple) else (value,)
        least = 0 if name.endswith("levels") or name in ("latent_dim", "prior_rows") else 1
        single = isinstance(getattr(type(config), name), int)
        whole = all(type(each) is int and least <= each <= limit for each in several)
        if not whole or single == isinstance(value, tuple):
            kind = "a whole number" if single else "whole numbers"
            raise ValueError(f"{name} must be {kind} from {least} to {limit}, got {reprlib.repr(value)}")
    if not 1 <= len(config.channels) <= MOST_LEVELS:
        raise ValueError(f"channels must be 1 to {MOST_LEVELS} widths, got {len(config.channels)}")


@dataclass(frozen=True)
class Plain:
    """A dataclass that can travel in a checkpoint."""

    def to_dict(self) -> dict:
        """The configuration as plain lists, strings and numbers."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class ModelConfig(Plain):
    """Everything needed to build the model again; plain types only, so it travels in checkpoints."""

    attribute_names: tuple[str, ...]
    _: KW_ONLY
    one_hot: bool = False  # the attributes are classes that exclude each other
    guidable: bool = True  # trained without condition, too; else cfg_scale is 1
    image_size: int = 64
    crop: int = 178  # how photographs were cropped for training, and are for editing
    channels: tuple[int, ...] = (64, 128, 256, 512)
    blocks_per_level: int = 2
    self_attention_levels: tuple[int, ...] = None  # type: ignore[assignment]  # 0 is the finest; None: the two coarsest
    cross_attention_levels: tuple[int, ...] = None  # type: ignore[assignment]  # None: all but the finest
    num_heads: int = 4
    patch_size: int = 1
    attribute_maps: bool = True  # learn where each attribute shows; pays where faces are aligned
    bottleneck_attention: bool = True
    shared_film: bool = False
    dropout: float = 0.0
    latent_dim: int = 512
    schedule: str = "cosine"
    num_timesteps: int = 1000
    zero_terminal_snr: bool = False
    prediction: str = "v"
    first_stage: str = "pixels"
    first_stage_config: dict = field(default_factory=dict)  # what rebuilds it
    first_stage_judge: str = ""  # of likeness, when it was trained
    prior_rows: int = 0  # distinct attribute rows of the training set, which complete requests

    def __post_init__(self):
        levels = range(len(self.channels))
        if self.self_attention_levels is None:
            object.__setattr__(self, "self_attention_levels", levels[-2:])
        if self.cross_attention_levels is None:
            object.__setattr__(self, "cross_attention_levels", levels[1:] or levels)
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, (list, range)):
                object.__setattr__(self, each.name, tuple(value))
        check_types(self)
        check_whole_numbers(self)
        check_first_stage_config(self.first_stage_config)
        check_attribute_names(self.attribute_names)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_choice("first_stage", self.first_stage, FIRST_STAGES)
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError("zero_terminal_snr leaves no image at the last timestep: predict v or x0")

    def sampling_scale(self, asked: float | None, default: float) -> float:
        """The cfg_scale to draw with: what was asked for, or the default.

        Raises:
            ValueError: for another than 1 where training never dropped the condition.
        """
        if self.guidable:
            return default if asked is None else asked
        if asked not in (None, 1):
            raise ValueError(
                f"cfg_scale {asked:g} is for models trained without condition, too, and this one "
                "was trained with --cfg_dropout 0: draw at 1"
            )
        return 1.0


@dataclass(frozen=True)
class LossConfig:
    """Weights of the joint loss and the rates at which conditions are dropped in training."""

    ae_weight: float = 0.1
    kl_weight: float = 0.01
    attr_weight: float = 0.1
    free_bits: float = 0.02  # nats per latent dimension
    loss_weighting: str = "none"
    cfg_dropout: float = 0.1
    attr_dropout: float = 0.3
    latent_dropout: float = 0.5

    def __post_init__(self):
        check_choice("loss_weighting", self.loss_weighting, LOSS_WEIGHTINGS)
        for name in ("cfg_dropout", "attr_dropout", "latent_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class AutoencoderConfig(Plain):
    """What rebuilds a first stage of our own, and what it was trained on."""

    attribute_names: tuple[str, ...]
    image_size: int = 64
    crop: int = 178
    judge: str = ""  # of likeness: the perceptual network
    vae_channels: tuple[int, ...] = (64, 128)  # halves the side once for each
    latent_channels: int = 4
    vae_blocks: int = 1  # of each level, in the encoder and again in the decoder

    def network(self) -> dict:
        """The arguments of ``SpatialVAE``."""
        return {
            "channels": list(self.vae_channels),
            "latent_channels": self.latent_channels,
            "blocks_per_level": self.vae_blocks,
            "num_attributes": len(self.attribute_names),
        }


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """Weights of the first stage's loss, and when in a run its parts set in."""

    perceptual_weight: float = 0.2
    latent_kl_weight: float = 1e-4
    kl_warmup: float = 0.1  # share of the run
    latent_attr_weight: float = 0.01
    adversarial_weight: float = 0.1
    adversarial_start: float = 0.5  # share of the run


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn: what a report needs to be compared with another."""

    sampler: str = "dpm_solver"
    num_inference_steps: int = 20  # network evaluations
    spacing: str = ""  # of the timesteps; empty or None: what suits the sampler
    eta: float = 0.0  # 0 deterministic, 1 as noisy as DDPM
    cfg_scale: float = 2.0  # 0 unconditional, 1 no guidance
    classifier_scale: float = 0.0  # where a classifier guides
    classifier_on: str = "x_t"  # what it reads; x0: what the network predicts
    rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # of t / T, where guidance acts
    dynamic_threshold: float | None = None  # quantile of |x0_hat|

    def __post_init__(self):
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        check_choice("sampler", self.sampler, SAMPLERS)
        if not self.spacing:
            object.__setattr__(
                self, "spacing", "log_snr" if self.sampler == "dpm_solver" else "trailing"
            )
        check_choice("spacing", self.spacing, SPACINGS)
        check_choice("classifier_on", self.classifier_on, CLASSIFIER_ON)
        if self.eta != 0 and self.sampler == "ddpm":
            raise ValueError(f"eta is for ddim and dpm_solver, got eta {self.eta} with ddpm")
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance_interval must rise within 0 ... 1, got {low} and {high}")
        if self.dynamic_threshold is not None and not 0 < self.dynamic_threshold <= 1:
            raise ValueError(f"dynamic_threshold is a quantile in (0, 1], got {self.dynamic_threshold}")


@dataclass(frozen=True)
class EditConfig:
    """How photographs are edited."""

    method: str = "ddim"
    num_inference_steps: int = 25
    depth: float = 0.8  # share of the timesteps up to which the source is inverted, and edited from
    cfg_scale: float = 4.0  # of the full edit, from the source's prediction towards the target's
    classifier_scale: float = 0.0  # of the full edit, where a classifier guides
    classifier_on: str = "x_t"
    oppose: bool = True  # take what is named to be otherwise in the source, whatever was read
    localise: float = 0.2  # share of the largest change below which the source stays; 0: no bound
    keep_detail: bool = True  # give back what the reconstruction lost

    def __post_init__(self):
        check_choice("method", self.method, EDIT_METHODS)
        check_choice("classifier_on", self.classifier_on, CLASSIFIER_ON)
        if not 0 < self.depth <= 1 or not 0 <= self.localise <= 1:
            raise ValueError(
                f"depth lies in (0, 1] and localise in [0, 1], got {self.depth} and {self.localise}"
            )


def configure(kind: type, args: Namespace, **others):
    """A configuration of this dataclass, its fields taken from the flags of the same names."""
    given = vars(args) | others
    return kind(**{each.name: given[each.name] for each in fields(kind) if each.name in given})
