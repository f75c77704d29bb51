"""The model card: what a model's file says of it, for people who find it on the Hugging Face hub."""

from __future__ import annotations

import json

from huggingface_hub import ModelCard, ModelCardData

from attributes import CELEBA_ATTRIBUTES
from config import CFG_SCALE, ModelConfig

TEXT = """---
{metadata}
---

# {title}

It draws and edits pictures by named attributes. This card is written from what the weights' file says.

| | |
|---|---|
{table}

## Use

In the folder of the code that wrote this, with what its requirements.txt names:

```python
from diffusion_model import ConditionalDiffusion

model = ConditionalDiffusion.from_pretrained("PATH OR USER/NAME OF THIS")
pictures = model.sample(4, attributes={request})  # uint8 (4, {side}, {side}, 3)
```

`python manipulate.py --checkpoint FOLDER` draws from a folder of it. The weights are safetensors,
with the configuration inside. Nothing is pickled.

The {what}: {names}.

## Limits

- It was trained at {pixels}, and draws well at that size alone.
- It knows its training set: what went together there goes together in its pictures.
- What its pictures are worth is not said here: `evaluate.py` measures it.{limits}

## Licence

The code is Apache-2.0. The weights carry the terms of the pictures that they were trained on, which
their file does not name.{celeba}
"""
CELEBA_LIMITS = """
- Attributes such as *Attractive* or *Male* say how annotators labelled a picture, not who a person is.
- Faces are sensitive data: do not use it to deceive, or to judge people."""
CELEBA_LICENCE = """ The attributes are CelebA's. If the pictures were
CelebA's photographs, the weights are for non-commercial research only. Drawn faces, which have the
same attributes, bring no such terms."""


def model_card(config: ModelConfig, facts: dict[str, float], num_parameters: int) -> ModelCard:
    """The card of a model.

    Args:
        config: of the model.
        facts: about its training: ``step`` and ``validation_loss``, as far as they are known.
        num_parameters: all of them, those of a frozen first stage, too.
    """
    names, side = config.attribute_names, config.image_size
    what = "classes" if config.one_hot else "attributes"
    title = f"Attribute-conditioned diffusion, {len(names)} {what}, {side} x {side} pixels"
    schedule = f"{config.schedule}, {config.num_timesteps} timesteps"
    scale = f"cfg_scale {CFG_SCALE:g} by default" if config.guidable else "none: cfg_scale is 1"
    rows = {
        "image size": f"{side} x {side}",
        what: str(len(names)),
        "parameters": f"{num_parameters / 1e6:.2f} M",
        "UNet": f"channels {' '.join(map(str, config.channels))}, patch_size {config.patch_size}",
        "first stage": config.first_stage,
        "noise schedule": schedule + (", zero terminal SNR" if config.zero_terminal_snr else ""),
        "predicts": config.prediction,
        "classifier-free guidance": scale,
        "distinct attribute rows inside": f"{config.prior_rows:,}",
    }
    if "step" in facts:
        rows["training"] = f"{facts['step']:,} steps"
    if "validation_loss" in facts:
        rows["validation loss"] = f"{facts['validation_loss']:.4f}"
    like_celeba = set(names) <= set(CELEBA_ATTRIBUTES)
    example = "Smiling" if "Smiling" in names else names[0]
    metadata = ModelCardData(
        tags=["diffusion", "image-generation", "attribute-conditioned", "model_hub_mixin"],
        license="other",
        license_name="terms-of-the-training-data",
    )
    text = TEXT.format(
        metadata=metadata.to_yaml(),
        title=title,
        pixels=f"{side} x {side} pixels",
        table="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        request=json.dumps({example: 1}, ensure_ascii=False),
        side=side,
        what=what,
        names=", ".join(f"`{name}`" for name in names),
        limits=CELEBA_LIMITS if like_celeba else "",
        celeba=CELEBA_LICENCE if like_celeba else "",
    )
    return ModelCard(text)
