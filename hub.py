"""Models as folders and on the Hugging Face hub: saved, uploaded, with a model card."""

from __future__ import annotations

import inspect
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, ModelCard, ModelCardData

from attributes import CELEBA_ATTRIBUTES
from checkpoint import IN_FOLDER, save_model
from config import CFG_SCALE, ModelConfig

if TYPE_CHECKING:
    from diffusion_model import ConditionalDiffusion

TEXT = """---
{metadata}
---

# {title}

It draws and edits pictures by named attributes. This card is written from what the weights' file says.

| | |
|---|---|
{table}

In the folder of the code that wrote this, with what its requirements.txt names:

```python
from diffusion_model import ConditionalDiffusion

model = ConditionalDiffusion.from_pretrained("PATH OR USER/NAME OF THIS")
pictures = model.sample(4, attributes={request})  # uint8 (4, {side}, {side}, 3)
```

The weights are safetensors, with the configuration inside. Nothing is pickled.

The {what}: {names}.

It draws well only at {side} x {side} pixels, and what went together in its training set goes together in
its pictures. This card does not say how good these are: `evaluate.py` measures that.

The code is Apache-2.0. The weights carry the terms of the pictures that they were trained on, which
their file does not name.{celeba}
"""
CELEBA = """

The attributes are CelebA's. If the pictures were CelebA's photographs, the weights are for
non-commercial research only. Drawn faces, which have the same attributes, bring no such terms.
*Attractive* or *Male* say how annotators labelled a picture, not who a person is. Faces are sensitive
data: do not use the model to deceive, or to judge people."""


def model_card(config: ModelConfig, facts: dict[str, float], num_parameters: int) -> ModelCard:
    """The card of a model.

    Args:
        config: of the model.
        facts: about its training: ``step`` and ``validation_loss``, as far as they are known.
        num_parameters: all of them, those of a frozen first stage, too.
    """
    names, side = config.attribute_names, config.image_size
    what = "classes" if config.one_hot else "attributes"
    rows = {
        "image size": f"{side} x {side}",
        what: str(len(names)),
        "parameters": f"{num_parameters / 1e6:.2f} M",
        "first stage": config.first_stage,
        "noise schedule": f"{config.schedule}, {config.num_timesteps} timesteps",
        "predicts": config.prediction,
        "guidance": f"cfg_scale {CFG_SCALE:g} by default" if config.guidable else "cfg_scale is 1",
    }
    if "step" in facts:
        rows["training"] = f"{facts['step']:,} steps"
    if "validation_loss" in facts:
        rows["validation loss"] = f"{facts['validation_loss']:.4f}"
    metadata = ModelCardData(
        tags=["diffusion", "image-generation", "attribute-conditioned"],
        license="other",
        license_name="terms-of-the-training-data",
    )
    example = "Smiling" if "Smiling" in names else names[0]
    text = TEXT.format(
        metadata=metadata.to_yaml(),
        title=f"Attribute-conditioned diffusion, {len(names)} {what}, {side} x {side} pixels",
        table="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        request=json.dumps({example: 1}, ensure_ascii=False),
        side=side,
        what=what,
        names=", ".join(f"`{name}`" for name in names),
        celeba=CELEBA if set(names) <= set(CELEBA_ATTRIBUTES) else "",
    )
    return ModelCard(text)


def save(model: ConditionalDiffusion, folder: str | Path) -> None:
    """Write the weights' file and a model card into a folder. A README.md that is there is kept."""
    folder = Path(folder)
    save_model(model, folder / IN_FOLDER, **model.facts)
    readme = folder / "README.md"
    if not readme.exists():
        parameters = sum(parameter.numel() for parameter in model.parameters())
        model_card(model.config, model.facts, parameters).save(readme)


def push(
    model: ConditionalDiffusion,
    name: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    **upload: Any,
) -> str:
    """Upload what ``save`` writes to the hub, under "user/name". Returns the address.

    Args:
        private: whether a new repository is private; by default as the account's settings say.
        token: of the account; by default the one stored by ``hf auth login``.
        upload: ``commit_message``, ``revision`` and so on, as ``HfApi.upload_folder`` takes them.
    """
    api = HfApi(token=token)
    inspect.signature(api.upload_folder).bind(repo_id=name, folder_path="", **upload)  # or TypeError
    repository = api.create_repo(name, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        return api.upload_folder(repo_id=repository, folder_path=folder, **upload)
