"""What the documents name exists: links, headings, files, flags, papers; and sizes are true."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from helpers import SCRIPTS

from attributes import CELEBA_ATTRIBUTES
from config import ModelConfig
from diffusion_model import ConditionalDiffusion

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "pretrained" / "README.md"]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
HISTORY = ROOT / "docs" / "log.md"  # it names files and flags that are gone
OTHERS = ROOT / "docs" / "coming_from.md"  # its left column is of other programs
# Flags that are no settings, and those of accelerate, Slurm and TensorBoard
OF_OTHERS = ["help", "config", "logdir", "cpu", "multi_gpu", "num_processes", "num_machines"]
OF_OTHERS += ["machine_rank", "main_process_ip", "main_process_port", "signal"]
CODE = [*ROOT.glob("*.py"), *(path for path in ROOT.glob("[a-z]*/*.py") if path.parent.name != "tests")]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", TEXT[page], flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT[page]):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


@cache
def flags() -> set[str]:
    """Every flag of the project: fields of configurations, and what is added by hand."""
    names = set(OF_OTHERS)
    for path in CODE:
        code = path.read_text(encoding="utf-8")
        names |= {*re.findall(r"^    (\w+): .*= (?:flag|count|share|weight)\(", code, re.MULTILINE)}
        names |= {*re.findall(r"(?:name|old)=\"(\w+)\"", code), *re.findall(r"\"--([\w-]+)", code)}
    return names


def test_files_and_flags_that_are_named_exist():
    files = {path.relative_to(ROOT).as_posix() for path in CODE}
    files |= {path.name for path in CODE} | {f"tests/{path.name}" for path in ROOT.glob("tests/*.py")}
    for page in set(PAGES) - {HISTORY, OTHERS}:
        for name in {*re.findall(r"(?<![\w-])--(?:no-)?([a-z]\w+)", TEXT[page])} - flags():
            pytest.fail(f"{page.name} names --{name}")
        for name in {*re.findall(r"`([\w/]+\.py)`", TEXT[page])} - files:
            pytest.fail(f"{page.name} names {name}")


def test_what_stands_beside_another_programs_flags_exists():
    code = "\n".join(path.read_text(encoding="utf-8") for path in CODE)
    for ours in re.findall(r"^\|.+\| (.+) \|$", TEXT[OTHERS], re.MULTILINE):
        assert {*re.findall(r"--([a-z]\w+)", ours)} <= flags(), ours
        for name in re.findall(r"`(?:[\w()]+\.)?(\w+)`", ours):
            assert re.search(rf"\b{name}\b", code), name


def test_papers_are_cited_where_the_list_says():
    text = TEXT[ROOT / "docs" / "references.md"]
    for row in re.split(r"\n- ", text)[1:]:
        author, words = re.split(r"[ ,]", row)[0], re.findall(r"\(([^)]+)\)|(arXiv:[\d.]+\d)", row)
        signs = [author, *(sign for pair in words for sign in pair if sign)]
        for name in re.findall(r"`([\w/]+\.py)`", row):
            code = (ROOT / name).read_text(encoding="utf-8")
            assert any(sign.lower() in code.lower() for sign in signs), f"{name} does not cite {signs}"
    for path in CODE:
        for number in re.findall(r"arXiv:\d{4}\.\d{5}", path.read_text(encoding="utf-8")):
            assert number in text, f"{path.name} cites {number}, and docs/references.md does not"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_complete(page, capsys):
    """Each is parsed: its flags are there, and none is missing."""
    text = "" if page == HISTORY else TEXT[page].replace("\\\n", " ")
    lines = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).splitlines()
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += [command.replace("\n", " ") for command in re.findall(r"`(python [^`]+)`", text)]
    pattern = re.compile(rf".*(?:python|launch .*) ({'|'.join(SCRIPTS)})\.py\b(.*)")
    for match in filter(None, map(pattern.match, lines)):
        name, line = match.groups()
        words = shlex.split(line, comments=True)
        if "..." in line or not words:
            continue
        try:
            SCRIPTS[name].parse_args(words)
        except SystemExit as stopped:
            assert stopped.code in (0, None), f"{page.name}: {line}: {capsys.readouterr().err}"


def parameters(recipe: str) -> float:
    """Millions of parameters of a recipe's model: of ten classes for CIFAR-10, else of CelebA's
    attributes. Nothing is computed."""
    settings = yaml.safe_load((ROOT / "configs" / recipe).read_text(encoding="utf-8"))
    own = {field.name for field in fields(ModelConfig)} & settings.keys()
    with torch.device("meta"):
        names = CELEBA_ATTRIBUTES[: 10 if recipe == "cifar10.yaml" else 40]
        config = ModelConfig(attribute_names=names, **{name: settings[name] for name in own})
        model = ConditionalDiffusion(config)
    return sum(p.numel() for p in model.parameters()) / 1e6


def test_numbers_of_parameters():
    rows = re.findall(
        r"^\| `(\w+\.yaml)`[^|]* \| ([\d.]+) M \|", TEXT[ROOT / "docs" / "scaling.md"], re.MULTILINE
    )
    assert len(rows) >= 4
    for recipe, millions in rows:
        assert f"{parameters(recipe):.1f}" == millions, recipe
    (card,) = re.findall(
        r"`celeba64` \|.* ([\d.]+) M parameters", TEXT[ROOT / "pretrained" / "README.md"]
    )
    assert card == dict(rows)["celeba64.yaml"]
    weights = (ROOT / "pretrained" / "celeba64_probe.safetensors").stat().st_size
    assert f"{weights / 2e6:.1f} M weights" in TEXT[ROOT / "pretrained" / "README.md"]  # half precision


def test_what_is_installed_is_all_of_it_and_the_workflow_runs_the_makefile():
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    modules, packages = (
        {
            *re.findall(
                r'"(\w+)"', re.search(rf"^{name} = \[(.*?)\]", settings, re.DOTALL | re.MULTILINE)[1]
            )
        }
        for name in ("py-modules", "packages")
    )
    assert modules == {path.stem for path in ROOT.glob("*.py")}
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == folders - {"tests"} | {"pretrained"}
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for step in job["steps"]:
        words = step.get("run", "make lint PYTHON=python").split()
        assert words[0] == "make" and words[1] in targets and words[2:] == ["PYTHON=python"]
    oldest, newest = job["strategy"]["matrix"]["python"]
    beyond = f"3.{int(newest[2:]) + 1}"
    assert f'requires-python = ">={oldest},<{beyond}"' in settings
