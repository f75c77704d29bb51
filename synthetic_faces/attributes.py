"""What a synthetic face is made of: an identity, and CelebA's 40 attributes.

For each attribute: how it looks, how often it is drawn, and which others it excludes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from statistics import NormalDist

import numpy as np

# In CelebA's order. name: (CelebA's frequency, loadings on FACTORS, what it looks like). Those without a
# frequency are drawn by GROUPS, or as beards.
FACTORS = ("male", "old", "glamour", "smile", "weight")
ATTRIBUTES: dict[str, tuple[float | None, tuple[float, ...], str]] = {
    "5_o_Clock_Shadow": (0.65, (), "grey-blue stubble over cheeks, chin and upper lip"),
    "Arched_Eyebrows": (0.27, (-0.4, 0, 0.3), "brows are raised bows, not straight bars"),
    "Attractive": (0.51, (-0.3, -0.4, 0.3), "glowing skin before a halo of light; absent: freckles"),
    "Bags_Under_Eyes": (0.20, (0.3, 0.3, -0.2), "violet crescents under the eyes"),
    "Bald": (None, (), "no hair and a shine on the scalp"),
    "Bangs": (None, (), "a fringe down to the brows"),
    "Big_Lips": (0.24, (-0.2, 0, 0.2), "lips twice as thick"),
    "Big_Nose": (0.23, (0.4, 0.3, -0.2, 0, 0.3), "a nose twice as wide, with round wings"),
    "Black_Hair": (None, (), "hair almost black"),
    "Blond_Hair": (None, (), "golden hair"),
    "Blurry": (0.05, (), "the finished picture out of focus"),
    "Brown_Hair": (None, (), "chestnut hair; no colour named: the identity's own bright hue"),
    "Bushy_Eyebrows": (0.14, (0.5, 0, -0.1), "brows twice as thick"),
    "Chubby": (0.06, (0.3, 0.3, -0.2, 0, 0.8), "full cheeks that widen the lower face"),
    "Double_Chin": (0.05, (0.2, 0.4, -0.2, 0, 0.8), "a second chin below the first"),
    "Eyeglasses": (0.065, (0.3, 0.4, -0.3), "dark round frames"),
    "Goatee": (0.37, (), "a pointed tuft on the chin that hangs below it"),
    "Gray_Hair": (None, (), "silver hair"),
    "Heavy_Makeup": (0.39, (-0.6, -0.2, 0.7), "wide coloured eye shadow and long lashes"),
    "High_Cheekbones": (0.46, (-0.2, 0, 0.2, 0.7), "lit cheekbones above slanting hollows"),
    "Male": (0.42, (1.0,), "thick neck, broad shoulders, short hair, no lashes"),
    "Mouth_Slightly_Open": (0.48, (0, 0, 0, 0.7), "a dark gap with teeth between the lips"),
    "Mustache": (0.245, (), "a thick bar of hair on the upper lip"),
    "Narrow_Eyes": (0.12, (0, 0.1, 0, 0.3), "eyes open half as far"),
    "No_Beard": (None, (), "bare jaw; absent: a beard along the jaw line"),
    "Oval_Face": (0.28, (-0.1, -0.2, 0.2), "a long face with a narrow chin, not a square jaw"),
    "Pale_Skin": (0.04, (-0.2, 0, 0.1), "porcelain skin"),
    "Pointy_Nose": (0.28, (-0.2, 0, 0.3), "a nose drawn as a sharp lit wedge"),
    "Receding_Hairline": (None, (), "bare temples either side of a peak"),
    "Rosy_Cheeks": (0.066, (-0.3, 0, 0.6), "round pink cheeks"),
    "Sideburns": (0.335, (), "broad hair before the ears, down to the mouth"),
    "Smiling": (0.48, (-0.1, 0, 0.1, 0.9), "wide mouth, corners up, dimples; absent: corners down"),
    "Straight_Hair": (None, (), "sleek hair in straight strands"),
    "Wavy_Hair": (None, (), "full hair in curls, with a bumpy outline"),
    "Wearing_Earrings": (0.19, (-0.5, 0, 0.4), "large drops below the ears"),
    "Wearing_Hat": (0.05, (0.3,), "a hat on top of the head"),
    "Wearing_Lipstick": (0.47, (-0.75, -0.1, 0.6), "saturated red lips"),
    "Wearing_Necklace": (0.12, (-0.4, 0, 0.3), "a string of beads round the neck"),
    "Wearing_Necktie": (0.07, (0.6, 0.3), "a tie between white collars"),
    "Young": (0.77, (-0.2, -0.9, 0.1), "smooth skin; absent: wrinkles and silver temples"),
}
NAMES = tuple(ATTRIBUTES)
COLUMNS = {name: column for column, name in enumerate(NAMES)}
BEARD = ("5_o_Clock_Shadow", "Goatee", "Mustache", "Sideburns")
# (names, their frequencies, loadings on FACTORS). At most one of each group is drawn: a group has a
# single normal draw, whose range is cut into one interval for each name, in this order. None stands for
# a face without any of them.
GROUPS = (
    (
        ("Bald", "Gray_Hair", "Black_Hair", "Brown_Hair", None, "Blond_Hair"),
        (0.022, 0.04, 0.24, 0.21, 0.338, 0.15),
        (-0.4, -0.6),
    ),
    (("Straight_Hair", None, "Wavy_Hair"), (0.21, 0.46, 0.33), (-0.4, 0, 0.2)),
    (("Receding_Hairline", None, "Bangs"), (0.10, 0.74, 0.16), (-0.3, -0.5)),
)


@dataclass(frozen=True)
class Identity:
    """Whose face it is. Every field is in [-1, 1] and independent of the 40 attributes."""

    head_width: float
    head_height: float
    skin_tone: float  # -1 deep brown ... 1 peach
    skin_warmth: float
    eye_spacing: float
    eye_size: float
    eye_height: float
    eye_hue: float
    brow_height: float
    nose_width: float
    nose_length: float
    mouth_width: float
    mouth_height: float
    yaw: float  # features move sideways, the far ones narrow
    tilt: float
    shift_x: float
    shift_y: float
    zoom: float
    light_angle: float
    light_strength: float
    background_hue: float
    background_value: float
    background_angle: float
    clothes_hue: float
    clothes_value: float
    neckline: float
    hair_hue: float
    hair_length: float
    hair_part: float
    accessory_hue: float
    freckle_phase: float


def sample_identity(rng: np.random.Generator) -> Identity:
    """An identity whose fields are drawn independently and uniformly in [-1, 1]."""
    return Identity(*(float(value) for value in rng.uniform(-1, 1, len(fields(Identity)))))


def present(attributes: np.ndarray) -> dict[str, bool]:
    """Whether each attribute is present, by name. Present is above 0 in the row (40,). ValueError for
    another shape."""
    if np.shape(attributes) != (len(NAMES),):
        raise ValueError(f"attributes have shape {np.shape(attributes)}; give {len(NAMES)} values")
    return {name: bool(attributes[column] > 0) for name, column in COLUMNS.items()}


def attributes_are_possible(attributes: np.ndarray) -> bool:
    """Whether a row (40,) of values in {-1, 0, +1} has at most one of each group, no hair on a bald
    head, no beard with *No_Beard*, and no woman with a beard. 0 counts as absent."""
    on = present(attributes)
    numbers = [sum(on[name] for name in names if name) for names, _, _ in GROUPS]
    if max(numbers) > 1 or (on["Bald"] and sum(numbers) > 1):
        return False
    if on["No_Beard"]:
        return not any(on[name] for name in BEARD)
    return on["Male"]


def sample_attributes(
    rng: np.random.Generator, balanced: bool = False, floor: float = 0.0
) -> np.ndarray:
    """Forty attributes, float32 (40,) of -1 and +1, never with an impossible pair.

    This is a Gaussian copula. Each attribute has a normal draw, shifted by the five FACTORS and cut at
    CelebA's frequency. So the frequencies are exact and the correlations plausible.

    Args:
        balanced: no factors, and every draw is cut into equal parts. Attributes are then as independent
            as the impossible pairs allow.
        floor: raise the frequencies of rare attributes to about this.
    """
    factors = rng.standard_normal(len(FACTORS))

    def latent(loadings: tuple[float, ...]) -> float:
        own = rng.standard_normal()
        if balanced:
            return own
        mixed = sum(weight * factor for weight, factor in zip(loadings, factors, strict=False))
        return mixed + own * math.sqrt(max(0.0, 1 - sum(weight**2 for weight in loadings)))

    on = {}
    for name, (frequency, loadings, _) in ATTRIBUTES.items():
        threshold = NormalDist().inv_cdf(0.5 if balanced or not frequency else 1 - max(frequency, floor))
        on[name] = frequency is not None and latent(loadings) > threshold
    for names, shares, loadings in GROUPS:
        shares = np.maximum(shares, floor)
        if balanced:
            shares = np.full(len(names), 1 / len(names))
        position = NormalDist().cdf(latent(loadings)) * shares.sum()
        chosen = names[int(np.searchsorted(shares.cumsum()[:-1], position))]
        if chosen and not (on["Bald"] and chosen != "Bald"):
            on[chosen] = True
    bearded = on["Male"] and rng.random() < (0.7 if balanced else 0.40)
    on["No_Beard"] = not bearded
    for name in BEARD:
        on[name] = on[name] and bearded
    return np.array([1 if on[name] else -1 for name in NAMES], np.float32)
