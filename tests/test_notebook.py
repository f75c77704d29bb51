"""The notebook: it runs from its first cell to its last, and is kept without outputs."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "tour.ipynb"
nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat: requirements-dev.txt")
QUICK = """
STEPS, FACES = 2, 60
TRAINING = ["--max_steps", "2", "--batch_size", "4", "--val_images", "4", "--report_to", "none"]
OUT = Path({out!r})
"""


def test_it_is_kept_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code and not [cell.id for cell in code if cell.outputs or cell.execution_count is not None]


@pytest.mark.slow
def test_it_runs_to_its_end_and_shows_pictures(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="notebooks need nbclient: requirements-dev.txt")
    pytest.importorskip("ipykernel", reason="notebooks need ipykernel: requirements-dev.txt")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = [i for i, cell in enumerate(notebook.cells) if cell.id == "parameters"]
    quick = nbformat.v4.new_code_cell(QUICK.format(out=str(tmp_path)))
    notebook.cells.insert(settings + 1, quick)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    shown = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                png = base64.b64decode(output.data["image/png"])
                shown[cell.id] = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    with_pictures = ("generate", "interpolate", "edit", "leak", "inside", "where", "trained", "curves")
    assert [*shown] == [*with_pictures]
    assert all(picture.std() > 5 for picture in shown.values()), "none is blank"
