"""The import graph is the one that docs/design.md draws."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| `([\w/]+)\.py` \|", re.MULTILINE)
FOLDERS = ("image_data", "synthetic_faces", "classifiers", "training", "evaluation", "figures", "page")
# Of the folders, the core may import these: what is behind CelebADataset.
FOR_CELEBA = {f"image_data.{name}" for name in ("picture", "files", "cached", "labelled", "celeba")}
IN_MODEL = {"classifiers.guide"}  # a part of the model
MODEL = {"unet_model", "autoencoder_model", "diffusion_model", "checkpoint", "editing"}


@cache
def drawn() -> list[str]:
    """The modules of the table, in its order."""
    return [row.replace("/", ".") for row in ROW.findall((ROOT / "docs" / "design.md").read_text())]


@cache
def modules() -> dict[str, Path]:
    """Every module of the project, under its dotted name."""
    files = [*ROOT.glob("*.py"), *(f for name in FOLDERS for f in (ROOT / name).glob("*.py"))]
    files = [path for path in files if not path.name.startswith("__")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


@cache
def imported(path: Path) -> set[str]:
    """The modules that a file imports at its head or later; not those that only its types need."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & modules().keys()


@cache
def scripts() -> set[str]:
    return {name for name, path in modules().items() if 'if __name__ == "__main__"' in path.read_text()}


def test_the_table_has_every_module():
    assert sorted(drawn()) == sorted(modules())


def test_imports_go_up_the_table_only():
    order = drawn()
    for name, path in modules().items():
        below = [other for other in imported(path) if order.index(other) >= order.index(name)]
        assert not below, f"{name} imports {below}, which stand below it in docs/design.md"


def test_scripts_never_import_scripts_and_the_core_no_folder():
    for name, path in modules().items():
        names = imported(path)
        assert not names & scripts(), f"{name} imports a script: {names & scripts()}"
        if "." not in name and name not in {*scripts(), "studio"}:  # which stands above the core
            folders = {other for other in names if "." in other} - FOR_CELEBA - IN_MODEL
            assert not folders, f"{name} is core, and imports {folders}"


def between_folders() -> dict[str, set[str]]:
    """The imports between folders; a file at the top level counts as a folder of its own."""
    graph: dict[str, set[str]] = {}
    for name, path in modules().items():
        folder = name.partition(".")[0]
        others = {other.partition(".")[0] for other in imported(path)}
        graph.setdefault(folder, set()).update(others - {folder})
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes that import each other in a circle; empty if there are none."""
    remaining = dict(graph)
    while remaining:
        leaves = [node for node, others in remaining.items() if not others & remaining.keys()]
        if not leaves:
            break
        for node in leaves:
            del remaining[node]
    path: list[str] = []
    node = min(remaining, default="")
    while node and node not in path:  # each of them imports another one
        path.append(node)
        node = min(remaining[node] & remaining.keys())
    return path[path.index(node) :] if path else []


def test_no_circle_between_folders():
    assert not circle(between_folders())


def test_a_planted_circle_is_caught():
    graph = {"train": {"page", "core"}, "page": {"data"}, "data": {"core"}, "core": set()}
    assert not circle(graph)
    graph["core"] = {"page"}
    assert sorted(circle(graph)) == ["core", "data", "page"]
    assert circle({"a": {"b"}, "b": {"a"}}) == ["a", "b"]


def test_image_data_knows_no_model():
    reached = {name for name in modules() if name.startswith("image_data.")}
    size = 0
    while len(reached) > size:
        size = len(reached)
        reached = reached.union(*(imported(modules()[name]) for name in reached))
    assert not reached & MODEL


def test_text_files_name_their_encoding():
    """Windows would take cp1252."""
    for path in (*modules().values(), *(ROOT / "benchmarks").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))
            reads = isinstance(call.func, ast.Attribute) and name in ("read_text", "write_text")
            opens = isinstance(call.func, ast.Name) and name == "open"
            if opens and any("b" in str(getattr(mode, "value", "")) for mode in call.args[1:2]):
                continue
            named = any(keyword.arg == "encoding" for keyword in call.keywords)
            assert named or not (reads or opens), f"{path}:{call.lineno} names no encoding"


def test_nothing_is_imported_that_windows_lacks():
    lacking = re.compile(r"^\s*(?:import|from) (fcntl|resource|pwd|grp|termios)\b", re.MULTILINE)
    found = {name for name, path in modules().items() if lacking.search(path.read_text())}
    assert not found, found
