"""The import graph is the one that docs/design.md draws."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| `(\w+)\.py` \| .* \| (.*) \|$", re.MULTILINE)


def drawn() -> dict[str, list[str]]:
    """What each file imports by the table, in its order."""
    rows = ROW.findall((ROOT / "docs" / "design.md").read_text())
    return {name: [] if cell == "nothing local" else cell.split(", ") for name, cell in rows}


def imported(path: Path, local: set[str]) -> set[str]:
    """The project's modules that a file imports, at its head or later."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found & local


def test_the_table_has_every_module_and_what_it_imports():
    table = drawn()
    files = {path.stem: path for path in ROOT.glob("*.py")}
    assert set(table) == set(files)
    for name, path in files.items():
        assert set(table[name]) == imported(path, set(files)), name


def test_imports_go_up_the_table_only():
    order = list(drawn())
    for name, names in drawn().items():
        below = [other for other in names if order.index(other) >= order.index(name)]
        assert not below, f"{name} imports {below}"
