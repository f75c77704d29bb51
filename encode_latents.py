"""Encode a dataset once, to train in latents without decoding an image again.

Writes both moments of every image and of its mirror image in half precision, shard by shard. Then writes
the first stage with the mean and standard deviation of its latents, measured or its own. If it is
stopped, in any way, the same command goes on where it was. Train on the result with train.py
--data_root OUTPUT_DIR.
"""

from __future__ import annotations

from dataclasses import dataclass

import devices
import flags
from config import CROP_HELP, CROPS, SPLITS, DataConfig, count, flag


@dataclass(frozen=True)
class EncodeConfig(DataConfig):
    """Flags of encode_latents.py."""

    data_root: str = flag("", "folder of labelled images", required=True)
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


def parse_args(argv: list[str] | None = None) -> EncodeConfig:
    return flags.parse(EncodeConfig, __doc__, argv)


def encode(config: EncodeConfig) -> None:
    """Encode what is missing, then measure the latents and write the first stage."""
    import numpy as np
    from accelerate import PartialState
    from tqdm import tqdm

    from checkpoint import load_first_stage, weights_hash
    from image_data.datasets import find_dataset
    from training.encoding import LatentWriter, describe, encode_images

    flags.check_writable(config.output_dir)
    device = devices.choose_device(config.device)
    processes = PartialState(cpu=device == "cpu")
    is_main, number = processes.is_main_process, processes.num_processes
    if is_main and number > 1:
        print(f"{number} processes")
    stored = load_first_stage(config.first_stage)
    if config.own_scale and stored.kind != "sd-vae":
        raise ValueError(
            f"--own_scale is for an AutoencoderKL, and {config.first_stage} is of train.py: leave it out"
        )
    stage = stored.module.to(device)
    labelled = find_dataset(config.data_root, config.dataset, config.unspecified)
    if is_main:
        print(labelled)
    sets = {
        split: labelled.open(split, config.image_size, config.crop, cache_dir=config.cache_dir)
        for split in SPLITS
    }
    train_set = sets["train"]
    manifest = {
        "first_stage": {
            "kind": stored.kind,
            "config": stored.config,
            "hash": weights_hash(stage.autoencoder.state_dict()),
            "judge": stored.judge,
        },
        "image_size": config.image_size,
        "crop": config.crop,
        "attribute_names": list(train_set.attribute_names),
        "flips": train_set.flips,
        "splits": {split: describe(data) for split, data in sets.items()},
    }
    with processes.main_process_first():  # it makes the folder, and the others find it
        writer = LatentWriter(config.output_dir, manifest)
    todo = [(split, *shard) for split in SPLITS for shard in writer.missing(split)]
    total = sum(map(len, sets.values()))
    present = total - sum(len(rows) for _, _, rows in todo)
    processes.wait_for_everyone()  # every process has the same list before one of them writes
    autocast = devices.autocast(config.mixed_precision, device)
    title = f"encoding to {config.output_dir}"
    with tqdm(total=total, initial=present, desc=title, unit="img", disable=not is_main) as bar:
        for split, name, rows in todo[processes.process_index :: number]:
            images = sets[split].images[rows.start : rows.stop]
            parts = []
            for moments in encode_images(stage, autocast, images, config.batch_size, device):
                parts.append(moments)
                bar.update(len(moments) * number)
            writer.write(name, np.concatenate(parts))
    processes.wait_for_everyone()
    if is_main:
        for split, data in sets.items():
            writer.write(f"{split}_attributes.npy", data.attributes.numpy().astype(np.int8))
        if config.own_scale:
            scale, mean = 1 / stage.autoencoder.latent_std, stage.autoencoder.latent_mean
            print(f"the VAE's own scale: x0 = {scale:g} (z - {mean:g})")
        else:
            stage.mean, stage.std = (value.to(device) for value in writer.statistics())
        writer.finish({"first_stage": stage.state_dict()})
        mib = sum(file.stat().st_size for file in writer.folder.iterdir()) / 2**20
        print(f"{total} images, {total - present} of them now, {mib:.0f} MiB in {config.output_dir}")
    processes.wait_for_everyone()  # a process that leaves early would abort the others
    processes.destroy_process_group()


if __name__ == "__main__":
    flags.run(lambda: encode(parse_args()))
