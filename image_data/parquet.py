"""Pictures inside Parquet files, as Hugging Face exports datasets, read through its library datasets."""

from __future__ import annotations

import io
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_data.files import refusing_damaged
from image_data.labelled import LabelledImages, split_named
from image_data.tables import Row, in_brackets, read_labels


@dataclass(frozen=True)
class Embedded:
    """A picture inside a table, with the members of `image_data.files.Picture`.

    name: its split and its number in the table; table: that of ``datasets``; column: with the pictures.
    """

    name: str
    table: Any
    column: str
    row: int

    @property
    def path(self) -> str:
        """Where the picture is. No file has this name."""
        return f"{self.table.cache_files[0]['filename']}#{self.row}"

    def stat(self) -> os.stat_result:
        """The size and date of the table's file."""
        return os.stat(self.table.cache_files[0]["filename"])

    def file(self) -> io.BytesIO:
        """The content of the picture's file."""
        data = self.table[self.row][self.column]["bytes"]
        if data is None:
            raise ValueError(f"{self.name} holds the name of a picture, and not the picture: give files")
        return io.BytesIO(data)


def read_parquet(root: Path, unspecified: int | None = None) -> LabelledImages:
    """The pictures of a folder of Parquet files, with their labels.

    A column of class labels names classes, columns of 1 and 0 are attributes, others are passed over.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{root} holds Parquet files: pip install datasets, or export them as picture files and "
            "give --dataset folder"
        ) from None
    passed_over: Counter = Counter()
    pictures, rows = list[Embedded](), list[Row]()
    with refusing_damaged(root, "dataset in Parquet"):
        tables = datasets.load_dataset(str(root))
        for part, table in tables.items():
            split = split_named(part) or ("" if len(tables) == 1 else None)
            if split is None:
                passed_over[f"in {part}, which is no split"] += len(table)
                continue
            kinds = table.features
            column = next(
                (name for name, kind in kinds.items() if isinstance(kind, datasets.Image)), None
            )
            if column is None:
                raise ValueError(f"it has no column of pictures, but {', '.join(kinds)}")
            images = table.select_columns(column).cast_column(column, datasets.Image(decode=False))
            for number, values in enumerate(table.remove_columns(column)):
                for name, value in values.items():
                    if isinstance(kinds[name], datasets.ClassLabel) and value is not None:
                        values[name] = kinds[name].int2str(value)
                name = f"{part}/{number}"
                pictures.append(Embedded(name, images, column, number))
                rows.append(Row(f"{root} {name}", name, split, values))
    notes: Counter = Counter()
    labels = read_labels(root, rows, True, passed_over, notes, unspecified)
    form = f"Parquet files{in_brackets(notes)}"
    return LabelledImages(root, form, pictures, *labels, passed_over)
