"""Encode a dataset once, for training in latents without decoding an image again.

Writes both moments of every image and of its mirror image in half precision, shard by shard, and the
first stage with the mean and standard deviation of its latents. The same command goes on where it was
stopped, however it was stopped. Then: train.py --latents OUT.
"""

from __future__ import annotations

import argparse

import cli
import processes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--data_root", required=True, help="folder of labelled images")
    add(
        "--first_stage",
        default="./checkpoints/first_stage.pth",
        help="of train.py --stage autoencoder (.pth); or an AutoencoderKL: a folder, a name on the hub",
    )
    add("--out", default="./latents", help="folder to write, or to go on with")
    add("--image_size", type=cli.positive_int, default=128, help="side of the square images")
    add("--crop", type=int, default=178, choices=(178, 148, 140, 128), help="before resizing")
    add("--batch_size", type=cli.positive_int, default=32)
    add("--cache_dir", default="data/cache")
    cli.add_device_flags(parser)
    return parser.parse_args(argv)


def encode_images(stage, autocast, images, batch_size: int, device: str, bar):
    """uint8 (N, H, W, 3) -> float16 (N, 2, 2 C, h, w): moments of the images and of their mirror
    images."""
    import numpy as np
    import torch

    parts = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(images[start : start + batch_size].copy()).to(device)
        with autocast:
            both = stage.moments(torch.cat([batch, batch.flip(2)]))
        parts.append(torch.stack(both.chunk(2), dim=1).half().cpu().numpy())
        bar.update(len(batch) * processes.number())
    return np.concatenate(parts)


def encode(args: argparse.Namespace) -> None:
    """Encode what is missing, then measure and write the first stage."""
    import numpy as np
    from tqdm import tqdm

    from autoencoder_model import build_first_stage
    from checkpoint import load_first_stage, load_weights, weights_hash
    from image_dataset import SPLITS
    from labelled_images import open_dataset
    from latent_dataset import LatentWriter, names_hash

    device = cli.choose_device(args.device)
    processes.join(device)
    kind, config, weights, judge = load_first_stage(args.first_stage)
    stage = build_first_stage(kind, config)
    load_weights(stage.autoencoder, weights, args.first_stage)
    stage.to(device)
    common = {"image_size": args.image_size, "crop": args.crop, "cache_dir": args.cache_dir}
    sets = {split: open_dataset(args.data_root, split, **common) for split in SPLITS}
    facts = {"kind": kind, "config": config, "hash": weights_hash(weights), "judge": judge}
    manifest = {
        "first_stage": facts,
        "image_size": args.image_size,
        "crop": args.crop,
        "attribute_names": list(sets["train"].attribute_names),
        "flips": sets["train"].flips,
        "one_hot": sets["train"].one_hot,
        "splits": {
            split: {"count": len(data), "images": names_hash(data.filenames)}
            for split, data in sets.items()
        },
    }
    for turn in range(processes.number()):  # the first makes the folder, the others find it
        if turn == processes.rank():
            writer = LatentWriter(args.out, manifest)
        processes.wait_for_all()
    todo = [(split, *shard) for split in SPLITS for shard in writer.missing(split)]
    total = sum(map(len, sets.values()))
    done = total - sum(len(rows) for _, _, rows in todo)
    processes.wait_for_all()  # all have seen the same before any goes on
    autocast = cli.autocast(args.mixed_precision, device)
    with tqdm(total=total, initial=done, desc=f"encoding to {args.out}", unit="img") as bar:
        for split, name, rows in todo[processes.rank() :: processes.number()]:
            images = sets[split].images[rows.start : rows.stop]
            writer.write(name, encode_images(stage, autocast, images, args.batch_size, device, bar))
    processes.wait_for_all()
    if processes.rank():
        return
    for split, data in sets.items():
        writer.write(f"{split}_attributes.npy", data.attributes.numpy().astype(np.int8))
    stage.mean, stage.std = (value.to(device) for value in writer.statistics())
    writer.finish({"first_stage": stage.state_dict()})
    size = sum(file.stat().st_size for file in writer.folder.iterdir()) / 2**20
    print(f"{total} images, {total - done} of them now, {size:.0f} MiB in {args.out}")


if __name__ == "__main__":
    cli.run(lambda: encode(parse_args()))
    processes.leave()
