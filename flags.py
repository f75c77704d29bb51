"""The command line: flags made from a configuration's fields, YAML, one-line errors."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

OLDEST_PYTHON = (3, 10)
if sys.version_info < OLDEST_PYTHON:  # before what an older one cannot read
    found, wanted = (".".join(map(str, each)) for each in (sys.version_info[:3], OLDEST_PYTHON))
    print(f"Python {wanted} or newer is needed, and {sys.executable} is {found}", file=sys.stderr)
    sys.exit(2)

from config import (  # noqa: E402
    Config,
    Flag,
    expected,
    fits,
    is_optional,
    item_type,
    plain_type,
    types_of,
)

Kind = TypeVar("Kind", bound=Config)


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a wrong flag in one line, with exit code 2."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


@dataclass(frozen=True)
class Place:
    """Where a flag's value goes: a field of the configuration, or of one nested in it."""

    path: tuple[str, ...]
    hint: Any
    facts: Flag
    default: Any
    group: str


def places(kind: type[Config], path: tuple[str, ...] = (), group: str = "") -> Iterator[Place]:
    """Every field that has a flag, in order."""
    hints = types_of(kind)
    for each in fields(kind):
        here, hint = (*path, each.name), hints[each.name]
        if isinstance(hint, type) and issubclass(hint, Config):
            only = each.metadata.get("only", ())
            for place in places(hint, here, each.name.replace("_", " ")):
                if not only or place.path[-1] in only:
                    yield place
        facts = each.metadata.get("flag", Flag())
        if facts.help:
            yield Place(here, hint, facts, each.default, group)


def by_flag(kind: type[Config]) -> dict[str, list[Place]]:
    """The fields behind each flag. One flag may fill several: sampling and editing both have steps."""
    found: dict[str, list[Place]] = {}
    for place in places(kind):
        found.setdefault(place.facts.name or place.path[-1], []).append(place)
    return found


def value_parser(place: Place) -> Callable[[str], Any]:
    """An argparse type: text to one value of the field, within its limits."""
    kind, limits = item_type(place.hint), place.facts

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if not fits(value, place.hint, limits):
            wanted = expected(place.hint, limits)
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return parse


def shown(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def help_of(found: list[Place]) -> str:
    """The flag's help, with the default of each field behind it."""
    text, defaults = found[0].facts.help, {place.group: place.default for place in found}
    facts, default = found[0].facts, found[0].default
    if (
        facts.required
        or facts.positional
        or "none given" in text
        or default is False
        or default in ((), None)
    ):
        return text
    if len({shown(value) for value in defaults.values()}) == 1:
        return f"{text} (default: {shown(found[0].default)})"
    each = ", ".join(f"{shown(value)} for {group}" for group, value in defaults.items())
    return f"{text} (default: {each})"


def add_flag(add: Callable[..., Any], name: str, found: list[Place]) -> None:
    """The flag of one or several fields. Only flags that are given appear in the result."""
    place, facts = found[0], found[0].facts
    how: dict[str, Any] = {"help": help_of(found).replace("%", "%%"), "default": argparse.SUPPRESS}
    hint = plain_type(place.hint)
    if hint is bool:
        on = argparse.BooleanOptionalAction if place.default else "store_true"
        add(f"--{name}", action=on, **how)
        return
    how["type"] = value_parser(place)
    how["metavar"] = {int: "N", float: "X"}.get(item_type(place.hint), "PATH")
    if facts.choices:
        how |= {"choices": facts.choices, "metavar": None}
        if len(facts.choices) > 6:
            how["metavar"] = name.upper()
            how["help"] += f": {', '.join(map(str, facts.choices))}"
    if facts.metavar:
        how["metavar"] = facts.metavar
    if typing.get_origin(hint) is tuple:
        lengths = hint.__args__
        many = "*" if is_optional(place.hint) and item_type(hint) is int else "+"
        how["nargs"] = many if Ellipsis in lengths else len(lengths)
    if facts.bare is not None:
        how |= {"nargs": "?", "const": facts.bare}
    if facts.positional:
        add(name, **how)
    else:
        add(f"--{name}", required=facts.required, **how)


def make_parser(kind: type[Config], description: str | None) -> Parser:
    """The parser of a configuration's flags, in groups by the configuration they belong to."""
    summary = (description or "").strip().split("\n\n")[0]
    parser = Parser(description=summary, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML of flags; the command line overrides it")
    groups: dict[str, Any] = {"": parser}
    usage = ["%(prog)s"]  # without the many flags that may be left out
    for name, found in by_flag(kind).items():
        facts = found[0].facts
        if facts.required or facts.positional:
            usage.append(name.upper() if facts.positional else f"--{name} PATH")
        group = found[0].group
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        add_flag(groups[group].add_argument, name, found)
    parser.usage = " ".join([*usage, "[--FLAG VALUE ...]"])
    return parser


def build(kind: type[Kind], given: dict[str, Any]) -> Kind:
    """A configuration from the flags that were given. The rest keeps its defaults."""
    values: dict[tuple[str, ...], Any] = {}
    for name, found in by_flag(kind).items():
        if name in given:
            value = tuple(given[name]) if isinstance(given[name], list) else given[name]
            values |= {place.path: value for place in found}

    def make(part: type[Config], path: tuple[str, ...]) -> Config:
        own = {place[-1]: value for place, value in values.items() if place[:-1] == path}
        for each in fields(part):
            hint = types_of(part)[each.name]
            if isinstance(hint, type) and issubclass(hint, Config):
                own[each.name] = make(hint, (*path, each.name))
        return part(**own)

    return typing.cast(Kind, make(kind, ()))


def parse(kind: type[Kind], description: str | None, argv: Sequence[str] | None = None) -> Kind:
    """A script's configuration from its command line. A wrong flag ends the program in one line."""
    parser = make_parser(kind, description)
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config")
        path = first.parse_known_args(argv)[0].config
        flags = [] if path is None else config_flags(path, parser)
        given = vars(parser.parse_args([*flags, *argv]))
        return build(kind, given)
    except ValueError as error:
        parser.error(str(error))


def config_flags(path: str, parser: Parser) -> list[str]:
    """The flags that a YAML file of flag names and values stands for.

    Raises:
        ValueError: where it is no such file, or names a flag that there is not.
    """
    values = plain_yaml(path)
    actions, flags = {action.dest: action for action in parser._actions}, []
    for name, value in values.items():
        if name not in actions or name in ("help", "config"):
            near = difflib.get_close_matches(str(name), actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{path} sets {name}, which is no flag{hint}")
        if actions[name].nargs == 0:
            off = [f for f in actions[name].option_strings if f.startswith("--no-")]
            if value not in ("true", "false"):
                raise ValueError(f"{path} sets {name} to {value}: use true or false")
            flags += [f"--{name}"] if value == "true" else off
        elif value not in ("null", ""):
            flags += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return flags


def plain_yaml(path: str) -> dict[str, str | list[str]]:
    """A YAML file that maps names to scalars or flat lists of them, as they are written.

    Raises:
        ValueError: for any other. Tags and aliases, which make small files large, are refused.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
                raise ValueError(f"a tag or an alias {event.start_mark}")
        values = yaml.load(text, yaml.BaseLoader) or {}
    except OSError as error:
        raise ValueError(f"no configuration at {path} ({error.strerror}): check --config") from None
    except Exception as error:  # the reader raises anything
        raise ValueError(f"{path} is not plain YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must map flag names to values, and holds a {type(values).__name__}")
    for name, value in values.items():
        if not all(isinstance(v, str) for v in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{path} sets {name} to what is neither a value nor a list of values")
    return values


def flags_of(config: Config) -> dict[str, Any]:
    """Every flag's value in a configuration, as YAML takes it. Where several fields share a flag and
    differ, it was not given and is left out."""
    found = {}
    for name, behind in by_flag(type(config)).items():
        values = []
        for place in behind:
            owner: Any = config
            for part in place.path:
                owner = getattr(owner, part)
            values.append(list(owner) if isinstance(owner, tuple) else owner)
        nothing = values[0] is None or (values[0] == [] and behind[0].default == ())
        if not nothing and all(value == values[0] for value in values):
            found[name] = values[0]
    return found


def typed(kind: type[Config], name: str, value: Any) -> str:
    """A flag as one types it to give this value."""
    default = by_flag(kind)[name][0].default if name in by_flag(kind) else None
    if value is True:
        return f"--{name}"
    if value is False and default:
        return f"--no-{name}"
    if value is None or value is False:
        return f"no --{name}"
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join([f"--{name}", *(shlex.quote(shown(each)) for each in values)])


def command(script: str, config: Config) -> str:
    """The command that runs a script with this configuration. Flags at their defaults are left out."""
    defaults = flags_of(type(config)())
    options = [
        typed(type(config), name, value)
        for name, value in flags_of(config).items()
        if value != defaults.get(name)
    ]
    return " ".join([f"python {script}", *options])


# -------------------------------------------------------------------- errors in one line


def check_writable(folder: str | Path, flag: str = "--output_dir") -> None:
    """Try whether files can be written into a folder that may not exist yet. Nothing is left behind.

    Raises:
        OSError: if not, with the flag that names the folder.
    """
    folder = Path(folder)
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({there}: {error.strerror}): choose another {flag}"
        ) from None


# What says that memory does not suffice, where the type of an error does not.
FULL = re.compile(
    r"DefaultCPUAllocator.* allocate (?P<bytes>\d+) bytes|bad_alloc|ALLOC_FAILED|error: out of memory"
)
# What helps then, for a script that has flags for it.
LESS = {
    "train.py": "lower --batch_size, or train with --gradient_checkpointing, --mixed_precision bf16 and "
    "--grad_accum for what the batch lacks"
}


def in_one_line(error: Exception, prog: str) -> str | None:
    """What a script says of an error that is no bug: a wrong value, a file that cannot be used, memory
    that does not suffice, a package that is missing. None for any other."""
    text = str(error) or "out of memory"
    full = FULL.search(text)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError) or full:
        text = text.splitlines()[0].split(". ")[0]
        if full and full["bytes"]:
            text = f"out of memory, {int(full['bytes']) / 2**30:.2f} GiB more were needed"
        return f"{text}: {LESS.get(prog, 'lower --batch_size or --num_samples')}"
    if isinstance(error, ModuleNotFoundError):
        way_out = "source .venv/bin/activate, or pip install -r requirements.txt"
        return f"{text}, for {sys.executable}: {way_out}"
    return str(error) if isinstance(error, ValueError | OSError) else None


def run(main: Callable[[], None]) -> None:
    """Call ``main``. What ``in_one_line`` has words for becomes one line on stderr and exit code 2;
    Ctrl-C exit code 130. Anything else is a bug and keeps its traceback."""
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Apple's GPU lacks, on the CPU
    os.environ["MPLBACKEND"] = "agg"  # figures are files; a notebook's backend may not be installed here
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack a class's letters
    prog = Path(sys.argv[0]).name
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        text = in_one_line(error, prog)
        if text is None:
            raise
        print(f"{prog}: error: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)
