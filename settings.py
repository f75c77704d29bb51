"""Settings of what people do: new faces, interpolations, edits of photographs. Each is part of a command
line and what a function of studio.py takes.

They are apart from studio.py so that --help need not wait for torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from config import (
    DEFAULT_MODEL,
    GUIDANCE,
    PRETRAINED,
    REQUEST,
    Config,
    EditConfig,
    SamplingConfig,
    count,
    flag,
    nested,
    refuse_ignored_requests,
    share,
    weight,
)
from devices import DeviceConfig

USUAL_GUIDE = "./checkpoints/guide_best.pth"  # where train.py writes one


def attributes_flag() -> Any:
    return flag(
        (), "what to ask for, such as Smiling=1 Male=0: 1 present, 0 absent, 0.5 open", metavar=REQUEST
    )


def guidance_flag() -> Any:
    return flag(
        "free", "what steers new faces: classifier-free guidance, --guide, or both", choices=GUIDANCE
    )


def seed_flag() -> Any:
    return count(0, "another seed, other faces", low=0)


@dataclass(frozen=True)
class ModelFiles(DeviceConfig):
    """The model and its guide, and where they compute."""

    checkpoint: str = flag(DEFAULT_MODEL, "a model of train.py, or one of pretrained/ by its name")
    guide: str | None = flag(
        None, "classifier of train.py --stage guide: it steers, and reads photographs"
    )

    def guide_file(self, is_needed: bool = False) -> str | None:
        """The guide's file: the one given, or that of a pretrained model, or the usual one if a guide is
        needed."""
        own = f"{self.checkpoint}_guide"
        if self.guide is None and (PRETRAINED / f"{own}.safetensors").is_file():
            return own
        return self.guide or (USUAL_GUIDE if is_needed else None)


@dataclass(frozen=True)
class DrawSettings(Config):
    """How new faces are drawn."""

    open: bool = flag(False, "leave what is not named to the network: often shapeless")
    guidance: str = guidance_flag()
    guide_scale: float = weight(3.0, "weight of the guide's gradient in new faces")
    seed: int = seed_flag()
    sampling: SamplingConfig = nested(SamplingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance == "guide" and self.guide_scale == 0:
            raise ValueError("--guidance guide --guide_scale 0 asks for nothing: use --unconditional")


@dataclass(frozen=True)
class GenerateSettings(DrawSettings):
    """New faces."""

    attributes: tuple[str, ...] = attributes_flag()
    unconditional: bool = flag(False, "new faces without any request")
    num_samples: int | None = count(
        None,
        "new faces of each request or class",
        default_text="8 of each class, else 8 in all",
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

    start: tuple[str, ...] = flag(
        (), "where an interpolation starts, such as Smiling=0", name="from", metavar=REQUEST
    )
    end: tuple[str, ...] = flag((), "where it ends, such as Smiling=1", name="to", metavar=REQUEST)
    target_image: str | None = flag(None, "photograph to interpolate to, from --source_image")
    interpolation_steps: int = count(10, "frames of a strip", low=2)
    editing: EditConfig = nested(EditConfig, only=("num_inference_steps",))  # of photographs

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.start) != bool(self.end):
            raise ValueError("--from and --to go together: name the attributes at both ends")


@dataclass(frozen=True)
class PhotographSettings(Config):
    """A photograph, and where the face is in it."""

    source_image: str | None = flag(None, "photograph to edit")
    landmarks: tuple[float, ...] | None = flag(
        None,
        "x y of left eye, right eye, nose, left and right mouth corner of --source_image, in pixels: "
        "aligns it as CelebA's are",
        metavar="XY",
    )
    face: int = count(
        1, "which face of --source_image, 1 the largest; 0: no search, cropped at the centre", low=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.landmarks and not self.source_image:
            raise ValueError("--landmarks are those of --source_image: give it, too")
        if self.face > 1 and (self.landmarks or not self.source_image):
            raise ValueError(
                f"--face {self.face} is searched for in --source_image: give it, and no --landmarks"
            )


@dataclass(frozen=True)
class EditSettings(Config):
    """An edit of a photograph, or a counterfactual of it."""

    attributes: tuple[str, ...] = attributes_flag()
    manipulation_strength: float = share(1.0, "0 the source, 1 the full edit")
    guidance: str = guidance_flag()  # "guide": edits, too, are by the guide alone
    seed: int = seed_flag()
    editing: EditConfig = nested(EditConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.editing.cfg_scale == 0:
            raise ValueError("--edit_cfg_scale 0 ignores every request; no guidance is 1")
