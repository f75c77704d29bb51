"""Make pairs of photographs and their edits, from which train.py --stage editor learns.

The model and its guide edit every photograph, and the guide and a judge read the edit. Where one of them
does not see what was asked for, it is tried once more with more guidance. If it is stopped, in any way,
the same command goes on where it was. The judge may not judge the editor: train another one for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import devices
import flags
from config import NAME, SEED, DataConfig, EditConfig, ModelFiles, count, flag, nested


@dataclass(frozen=True)
class PairsConfig(DataConfig):
    """Flags of make_pairs.py."""

    data_root: str = flag("", "folder of labelled images", required=True)
    checkpoint: str = flag("celeba64", "the model that edits, in pixels")
    guide: str | None = flag(None, "of train.py --stage guide; none given: the model's own")
    judge: str = flag("./checkpoints/judge.pth", "of evaluate.py judge: it reads the edits, too")
    attribute: tuple[str, ...] = flag((), "edit only these", metavar=NAME)
    number: int = count(150, "photographs to which an attribute is added, and from which it is removed")
    output_dir: str = flag("./pairs", "folder to write, or to go on with")
    batch_size: int = count(8, "photographs edited at once")
    seed: int = count(0, "other photographs, and another noise", **SEED)
    editing: EditConfig = nested(EditConfig, only=("num_inference_steps",))


def parse_args(argv: list[str] | None = None) -> PairsConfig:
    return flags.parse(PairsConfig, __doc__, argv)


def make_pairs(config: PairsConfig) -> None:
    """Make what is missing. Several processes share it."""
    from accelerate import PartialState
    from tqdm import tqdm

    from attributes import columns_of
    from classifiers.probe import load_reader
    from diffusion_model import load_model
    from image_data.datasets import find_dataset
    from studio import load_guide_of
    from training.pairs import PairMaker, edits_to_make

    flags.check_writable(config.output_dir)
    device = devices.choose_device(config.device)
    processes = PartialState(cpu=device == "cpu")
    is_main, number = processes.is_main_process, processes.num_processes
    model = load_model(config.checkpoint, device)
    files = ModelFiles(checkpoint=config.checkpoint, guide=config.guide)
    guide = load_guide_of(files, model, is_needed=True)
    assert guide is not None  # as it is needed
    judge = load_reader(config.judge, model.config.attribute_names, model.config.crop, device)
    columns = columns_of(model.config.attribute_names, config.attribute or model.config.attribute_names)
    labelled = find_dataset(config.data_root, config.dataset, config.unspecified)
    size, crop = model.config.image_size, model.config.crop
    data = labelled.open("train", size, crop, cache_dir=config.cache_dir)
    edits = edits_to_make(data, columns, config.number, config.batch_size, config.seed)
    facts = {"attributes": columns, "number": config.number, "seed": config.seed, "flips": data.flips}
    with processes.main_process_first():  # it makes the folder, and the others find it
        maker = PairMaker(model, guide, judge, config.editing, config.output_dir, facts)
    todo = [(i, each) for i, each in enumerate(edits) if not maker.file(i).is_file()]
    total = sum(len(each.indices) for each in edits)
    present = total - sum(len(each.indices) for _, each in todo)
    processes.wait_for_everyone()  # every process has the same list before one of them writes
    made = convinced = 0
    with tqdm(total=total, initial=present, unit="pair", disable=not is_main) as bar:
        for i, each in todo[processes.process_index :: number]:
            with devices.autocast(config.mixed_precision, device):
                convinced += maker.make(data, each, i, config.seed)
            made += len(each.indices)
            bar.update(len(each.indices) * number)
            bar.set_postfix_str(f"{convinced / made:.2f} convince both readers")
    processes.wait_for_everyone()
    if is_main:
        print(f"{total} pairs in {config.output_dir}, {present} of them from before")
    processes.destroy_process_group()


if __name__ == "__main__":
    flags.run(lambda: make_pairs(parse_args()))
