"""What the scripts share at the command line: one-line errors, number types, a clean Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields

from model_config import (
    CLASSIFIER_ON,
    LOSS_WEIGHTINGS,
    PREDICTIONS,
    SCHEDULES,
    SPACINGS,
    AutoencoderConfig,
    AutoencoderLossConfig,
    EditConfig,
    LossConfig,
    ModelConfig,
    SamplingConfig,
)


class Parser(argparse.ArgumentParser):
    """An argument parser that shows every default and answers a wrong flag in one line, exit code 2."""

    def __init__(self, description: str | None):
        summary = (description or "").strip().split("\n\n")[0]
        super().__init__(
            description=summary,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def config_flags(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """The flags that a YAML file of flag names and values stands for.

    Raises:
        ValueError: where it is no such file, or names a flag that there is not.
    """
    import difflib

    values = plain_yaml(path)
    actions, flags = {action.dest: action for action in parser._actions}, []
    for name, value in values.items():
        if name not in actions or name in ("help", "config"):
            near = difflib.get_close_matches(str(name), actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{path} sets {name}, which is no flag{hint}")
        if actions[name].nargs == 0:
            off = [f for f in actions[name].option_strings if f.startswith("--no-")]
            if value not in ("true", "false"):
                raise ValueError(f"{path} sets {name} to {value}: use true or false")
            flags += [f"--{name}"] if value == "true" else off
        elif value not in ("null", ""):
            flags += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return flags


def plain_yaml(path: str) -> dict[str, str | list[str]]:
    """A YAML file that maps names to scalars or flat lists of them, as they are written.

    Raises:
        ValueError: for any other; tags and aliases, which make small files large, are none of it.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
                raise ValueError(f"a tag or an alias {event.start_mark}")
        values = yaml.load(text, yaml.BaseLoader) or {}
    except OSError as error:
        raise ValueError(f"no configuration at {path} ({error.strerror}): check --config") from None
    except Exception as error:  # the reader raises anything
        raise ValueError(f"{path} is not plain YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must map flag names to values, and holds a {type(values).__name__}")
    for name, value in values.items():
        if not all(isinstance(v, str) for v in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{path} sets {name} to what is neither a value nor a list of values")
    return values


def number(
    kind: type, low: float, high: float = float("inf"), exclusive_low: bool = False
) -> Callable[[str], float]:
    """An argparse type: a finite int or float in [low, high], or in (low, high]."""
    bounds = f"{'more than' if exclusive_low else 'at least'} {low}"
    bounds += f" and at most {high}" if high != float("inf") else ""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        fits = value is not None and low <= value <= high and value != float("inf")
        if not fits or (exclusive_low and value == low):
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {noun} {bounds}, got {text!r}")
        return value

    return parse


positive_int = number(int, 1)
count = number(int, 0)
positive = number(float, 0, exclusive_low=True)
non_negative = number(float, 0)
fraction = number(float, 0, 1)


def choose_device(name: str) -> str:
    """'cpu' or 'cuda' for a flag's 'auto', 'cpu' or 'cuda'; ValueError without such a device."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but torch sees no CUDA device here: use --device cpu")
    if name != "cpu" and torch.cuda.is_available():
        return "cuda"
    return "cpu"


def choose_precision(name: str, device: str) -> str:
    """'no', 'bf16' or 'fp16' for the flag's value: 'auto' is bf16 where the processor has it, else fp16
    on a GPU."""
    import torch

    if name == "fp16" and device == "cpu":
        raise ValueError("--mixed_precision fp16 needs a GPU: use bf16 or no on the CPU")
    if name != "auto":
        return name
    if device == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(name: str, device: str):
    """torch.autocast for the flag's value of mixed precision."""
    import torch

    precision = choose_precision(name, device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device, dtype, enabled=precision != "no")


def run(main: Callable[[], None]) -> None:
    """Call ``main``; a wrong value, a file that cannot be used (ValueError, OSError) or a full GPU
    becomes one line on stderr and exit code 2, Ctrl-C exit code 130. Anything else is a bug and keeps
    its traceback."""
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        text = str(error)
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported yet
            text = f"{text.split('.')[0]}: lower --batch_size, or train with --gradient_checkpointing, "
            text += "--mixed_precision bf16 and --grad_accum for what the batch lacks"
        elif not isinstance(error, ValueError | OSError):
            raise
        prog = sys.argv[0].rsplit("/", 1)[-1]
        print(f"{prog}: error: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """--device and --mixed_precision, for ``choose_device`` and ``choose_precision``."""
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    precisions = ("auto", "no", "bf16", "fp16")
    parser.add_argument("--mixed_precision", default="auto", choices=precisions)


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of SamplingConfig's fields that most runs leave alone; their defaults are the class's."""
    add = parser.add_argument_group("sampling").add_argument
    add("--spacing", choices=SPACINGS, help="of timesteps; None: log_snr for dpm_solver, else trailing")
    add("--eta", type=fraction, help="noise of ddim and dpm_solver: 1 as much as ddpm")
    add("--rescale", type=fraction, help="of guidance, against over-exposure")
    acts = "share of the timesteps, 0 clean ... 1 noise, in which guidance acts"
    add("--guidance_interval", type=fraction, nargs=2, metavar=("LOW", "HIGH"), help=acts)
    add("--dynamic_threshold", type=fraction, help="quantile of |x0| to clip at; 0.995 is usual")
    on = "what a guiding classifier reads: x_t, or x0 as predicted, at twice the cost"
    add("--classifier_on", choices=CLASSIFIER_ON, help=on)
    names = ("spacing", "eta", "rescale", "guidance_interval", "dynamic_threshold", "classifier_on")
    parser.set_defaults(**{name: getattr(SamplingConfig, name) for name in names})


def add_edit_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of EditConfig's fields that most edits leave alone; their defaults are the class's."""
    add = parser.add_argument_group("edits").add_argument
    deep = "share of the timesteps from which edits are made: less keeps more of the source"
    add("--depth", type=number(float, 0, 1, exclusive_low=True), default=EditConfig.depth, help=deep)
    local = "share of an edit's largest change below which the source stays; 0: no bound"
    add("--localise", type=fraction, default=EditConfig.localise, help=local)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the fields of models' and losses' configurations; their defaults are the classes'."""
    model = parser.add_argument_group("model").add_argument
    model("--image_size", type=positive_int, help="side of the square images")
    model("--crop", type=int, choices=(178, 148, 140, 128), help="of photographs, before resizing")
    model("--channels", type=positive_int, nargs="+", help="width of each level, finest first")
    model("--blocks_per_level", type=positive_int, help="residual blocks down, and again up")
    model("--self_attention_levels", type=count, nargs="*", help="0 is the finest; None: the last 2")
    model("--cross_attention_levels", type=count, nargs="*", help="None: all but the finest")
    model("--num_heads", type=positive_int, help="attention heads")
    model("--patch_size", type=positive_int, help="pixel-unshuffle before the UNet")
    maps = "learn where each attribute shows"
    model("--attribute_maps", action=argparse.BooleanOptionalAction, help=maps)
    bottom = "self- and cross-attention at the coarsest"
    model("--bottleneck_attention", action=argparse.BooleanOptionalAction, help=bottom)
    model("--shared_film", action="store_true", help="one time projection for all blocks of a width")
    model("--dropout", type=fraction, help="inside the residual blocks")
    model("--latent_dim", type=positive_int, help="size of the semantic latent")
    model("--schedule", choices=SCHEDULES, help="noise schedule")
    model("--num_timesteps", type=positive_int, help="length of the noise schedule")
    zero = "end the noise schedule in pure noise"
    model("--zero_terminal_snr", action="store_true", help=zero)
    model("--prediction", choices=PREDICTIONS, help="what the UNet predicts")
    loss = parser.add_argument_group("loss").add_argument
    loss("--loss_weighting", choices=LOSS_WEIGHTINGS, help="weight of each timestep")
    loss("--ae_weight", type=non_negative, help="weight of the VAE's losses")
    loss("--kl_weight", type=non_negative, help="weight of the KL divergence within them")
    loss("--attr_weight", type=non_negative, help="weight of the attribute loss within them")
    loss("--free_bits", type=non_negative, help="nats each latent dimension may keep at no cost")
    loss("--cfg_dropout", type=fraction, help="share of rows trained unconditionally")
    loss("--attr_dropout", type=fraction, help="share of single attributes dropped")
    loss("--latent_dropout", type=fraction, help="share trained without the latent")
    first = parser.add_argument_group("first stage, with --stage autoencoder").add_argument
    first("--vae_channels", type=positive_int, nargs="+", help="each level halves the side")
    first("--latent_channels", type=positive_int, help="of the latent")
    first("--vae_blocks", type=positive_int, help="residual blocks of each level")
    first("--perceptual_weight", type=non_negative, help="of the perceptual distance")
    first("--latent_kl_weight", type=non_negative, help="of the KL divergence")
    first("--kl_warmup", type=fraction, help="share of the run in which that weight grows")
    first("--latent_attr_weight", type=non_negative, help="of the attribute loss")
    first("--adversarial_weight", type=non_negative, help="of the discriminator's gradient; 0: none")
    first("--adversarial_start", type=fraction, help="share of the run before that sets in")
    configurations = (AutoencoderConfig, AutoencoderLossConfig, ModelConfig, LossConfig)
    flags = {action.dest for action in parser._actions}
    own = [each for configuration in configurations for each in fields(configuration)]
    parser.set_defaults(**{f.name: f.default for f in own if f.name in flags})
