"""The command line: flags made from a configuration's fields, YAML, one-line errors."""

from __future__ import annotations

import argparse
import difflib
import functools
import os
import re
import shlex
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

OLDEST_PYTHON = (3, 10)
if sys.version_info < OLDEST_PYTHON:  # before what an older one cannot read
    this, oldest = (".".join(map(str, each)) for each in (sys.version_info[:3], OLDEST_PYTHON))
    print(f"Python {oldest} or newer is needed, and {sys.executable} is {this}", file=sys.stderr)
    sys.exit(2)

import devices  # noqa: E402
from config import (  # noqa: E402
    Config,
    Flag,
    check_local,
    expected,
    fits,
    is_config,
    is_optional,
    is_path,
    item_type,
    plain_type,
    types_of,
)

Kind = TypeVar("Kind", bound=Config)
if not sys.stderr.isatty():  # progress bars write a line into a log about every ten seconds
    os.environ.setdefault("TQDM_MININTERVAL", "10")


MOST_YAML = 20_000  # bytes of a file of flags; the reader takes much longer for longer ones
CONFIG_HELP = "YAML of flags; a later file overrides an earlier one, the command line all"
# YAML's words, in any case. Python's word for nothing is one of them, where it is not a choice.
YES, NO, NOTHING = ("true", "yes", "on"), ("false", "no", "off"), ("", "none", "null", "~")


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a wrong flag in one line, with exit code 2. What starts with one
    dash and has a = is a value: -1=1 asks for a class named -1. If it ``raises``, it answers with a
    ValueError."""

    raises = False

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._negative_number_matcher = re.compile(r"-\.?\d|-[^-].*=")

    def print_help(self, file: Any = None) -> None:
        if self.raises:
            raise ValueError("-h is no value")
        super().print_help(file)

    def error(self, message: str) -> typing.NoReturn:
        if self.raises:
            raise ValueError(message)
        if message.startswith("unrecognized arguments"):
            names = re.findall(r"(?<!\S)--([\w-]+)", message)
            near = [f"--{each}" for name in names for each in self.nearest(name)]
            message += did_you_mean(near) or "; docs/coming_from.md has those of other programs"
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def nearest(self, name: str) -> list[str]:
        """The flags whose names are most like this one, or share a word with it."""
        options = self._option_string_actions.items()
        names = [word[2:] for word, action in options if action.help != argparse.SUPPRESS]
        plain = name.replace("-", "_")
        if plain in names:
            return [plain]
        words = {each: {*each.split("_")} for each in names}
        longer = [each for each in names if plain in words[each]]
        alike = [each for each in names if words[each] & {*plain.split("_")}]
        return longer[:3] or difflib.get_close_matches(plain, names, n=2) or alike[:3]


def did_you_mean(names: list[str]) -> str:
    return f": did you mean {' or '.join(dict.fromkeys(names))}?" if names else ""


@dataclass(frozen=True)
class Setting:
    """A field that has a flag: of a configuration, or of one nested in it."""

    path: tuple[str, ...]  # the names of the fields that lead to it
    hint: Any
    facts: Flag
    default: Any


def settings(kind: type[Config], path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every field that has a flag, in order."""
    for each in fields(kind):
        here, hint = (*path, each.name), types_of(kind)[each.name]
        if is_config(hint):
            only = each.metadata.get("only", ())
            for setting in settings(hint, here):
                if not only or setting.path[-1] in only:
                    yield setting
        facts = each.metadata.get("flag", Flag())
        if facts.help:
            yield Setting(here, hint, facts, each.default)


def by_flag(kind: type[Config]) -> dict[str, list[Setting]]:
    """The fields behind each flag. One flag may fill several: sampling and editing both have steps."""
    flags: dict[str, list[Setting]] = {}
    for setting in settings(kind):
        flags.setdefault(setting.facts.name or setting.path[-1], []).append(setting)
    return flags


def value_parser(setting: Setting) -> Callable[[str], Any]:
    """An argparse type: text to one value of the field, within its limits."""
    kind, limits = item_type(setting.hint), setting.facts

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if not fits(value, setting.hint, limits):
            values = expected(setting.hint, limits)
            raise argparse.ArgumentTypeError(f"expected {values}, got {text!r}")
        return value

    return parse


def as_text(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def help_text(setting: Setting) -> str:
    """The help of a flag, with its default."""
    facts, default = setting.facts, setting.default
    if facts.required or facts.positional or default is None or default is False or default == ():
        return facts.help
    return f"{facts.help} (default: {as_text(default)})"


def add_flag(add: Callable[..., Any], name: str, behind: list[Setting]) -> None:
    """Add a flag to a parser. Only flags that are given appear in what it parses."""
    setting, facts = behind[0], behind[0].facts
    hint = plain_type(setting.hint)
    options: dict[str, Any] = {"help": help_text(setting).replace("%", "%%")}
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction if setting.default else "store_true"
    else:
        metavar = {int: "N", float: "X"}.get(item_type(setting.hint), "PATH")
        options |= {"type": value_parser(setting), "metavar": facts.metavar or metavar}
    if facts.choices:
        options |= {"choices": facts.choices, "metavar": facts.metavar}
    if typing.get_origin(hint) is tuple:
        may_be_empty = is_optional(setting.hint) and item_type(hint) is int
        options["nargs"] = "*" if may_be_empty else "+"
    if facts.bare is not None:
        options |= {"nargs": "?", "const": facts.bare}
    if facts.positional:
        add(name, default=argparse.SUPPRESS, **options)
        return
    add(f"--{name}", required=facts.required, default=argparse.SUPPRESS, **options)
    options["help"] = argparse.SUPPRESS
    if hint is bool and not setting.default:  # so that a config's true can be overridden
        off = {"action": "store_false", "help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        add(f"--no-{name}", dest=name, **off)
    for setting in behind:
        if setting.facts.old:  # it fills this field only
            dest = setting.facts.old if len(behind) > 1 else name
            add(f"--{setting.facts.old}", dest=dest, default=argparse.SUPPRESS, **options)


def make_parser(kind: type[Config], description: str | None) -> Parser:
    """The parser of a configuration's flags, in groups by the configuration they belong to."""
    summary = (description or "").strip().split("\n\n")[0]
    parser = Parser(description=summary, usage="%(prog)s [--FLAG VALUE ...]", allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    groups: dict[str, Any] = {}
    for name, behind in by_flag(kind).items():
        path = behind[0].path
        group = path[-2].replace("_", " ") if len(path) > 1 else "options"
        if group not in groups:
            groups[group] = parser.add_argument_group(group) if len(path) > 1 else parser
        add_flag(groups[group].add_argument, name, behind)
    return parser


def build(kind: type[Kind], values: dict[tuple[str, ...], Any], path: tuple[str, ...] = ()) -> Kind:
    """A configuration from the values of its fields, nested ones by their path. The rest keeps its
    defaults."""
    own = {}
    for each in fields(kind):
        here, hint = (*path, each.name), types_of(kind)[each.name]
        if is_config(hint):
            own[each.name] = build(hint, values, here)
        elif here in values:
            own[each.name] = values[here]
    return kind(**own)


def from_values(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """A configuration from values of its flags, as ``flags_of`` gives them. ValueError for what is no
    flag, or no value of it."""
    return build(kind, by_path(kind, values))


def by_path(kind: type[Config], values: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Values of flags as values of the fields behind them."""
    flags = by_flag(kind)
    for name in values:
        if name not in flags:
            raise ValueError(f"{name[:100]!r} is no flag")
    return {setting.path: value for name, value in values.items() for setting in flags[name]}


def parse(
    kind: type[Kind],
    description: str | None,
    argv: Sequence[str] | None = None,
    usual: Mapping[str, Any] | None = None,
    raises: bool = False,
) -> Kind:
    """A script's configuration from its command line, which overrides the ``usual`` values of its flags.
    A wrong flag ends the program in one line, or ``raises`` a ValueError."""
    parser = make_parser(kind, description)
    parser.raises = raises
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        first = Parser(add_help=False, allow_abbrev=False)
        first.add_argument("--config", action="append", default=[])
        flags: dict[str, list[str]] = {}
        for path in first.parse_known_args(argv)[0].config:
            flags |= config_flags(path, parser)
        parsed = vars(parser.parse_args([*chain.from_iterable(flags.values()), *argv]))
        values = by_path(kind, usual or {})
        for name, behind in by_flag(kind).items():
            for setting in behind:
                for each in (name, setting.facts.old):
                    if each in parsed:
                        values[setting.path] = parsed[each]
        config = build(kind, values)
    except ValueError as error:
        parser.error(str(error))
    return config


def config_flags(path: str, parser: Parser) -> dict[str, list[str]]:
    """The words of a command line that a YAML file of flag names and values stands for, by flag. Null
    is a flag that is not given.

    Raises:
        ValueError: if it is no such file, or sets what is no flag.
    """
    flags: dict[str, list[str]] = {}
    for name, value in plain_yaml(path).items():
        action = parser._option_string_actions.get(f"--{name}")
        if action is None or name in ("help", "config") or name.startswith("no-"):
            raise ValueError(f"{path} sets {name}, which is no flag{did_you_mean(parser.nearest(name))}")
        if any(each.startswith("--") for each in (value if isinstance(value, list) else [value or ""])):
            raise ValueError(f"{path} sets {name} to {value}: no value starts with --")
        word, choices = value.lower() if isinstance(value, str) else value, action.choices or ()
        if word in NOTHING and value not in choices:
            flags[name] = []
        elif action.nargs == 0:
            if word not in (*YES, *NO):
                raise ValueError(f"{path} sets {name} to {value}: use true or false")
            flags[name] = [f"--{name}" if word in YES else f"--no-{name}"]
        elif action.nargs == "?" and word in (*YES, *NO):
            flags[name] = [f"--{name}"] if word in YES else []
        elif action.metavar == "PATH" and word in (*YES, *NO):
            raise ValueError(f"{path} sets {name} to {value}: use null for none, ./{value} for a file")
        else:
            flags[name] = [f"--{name}", *(value if isinstance(value, list) else [value])]
    return flags


def plain_yaml(path: str) -> dict[str, str | list[str]]:
    """A YAML file that maps names to scalars or flat lists of them, as they are written.

    Raises:
        ValueError: for any other, or a name that stands there twice.
    """
    import yaml

    file = Path(os.path.expanduser(path))
    if file.is_file() and file.stat().st_size > MOST_YAML:
        raise ValueError(f"{path} has more than {MOST_YAML:,} bytes, and so is no file of flags")
    try:
        text = file.read_text(encoding="utf-8")
        values = yaml.load(text, yaml.BaseLoader) or {}  # this loader makes nothing but texts
        root = yaml.compose(text, yaml.BaseLoader)
    except OSError as error:
        raise ValueError(f"no configuration at {path} ({error.strerror}): check --config") from None
    except Exception as error:  # the reader raises anything
        raise ValueError(f"{path} is not plain YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must map flag names to values, and holds a {root.id}")
    names = set()
    for key, _ in root.value if values else ():
        if key.value in names:
            raise ValueError(f"{path} sets {key.value} twice, again in line {key.start_mark.line + 1}")
        names.add(key.value)
    for name, value in values.items():
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"{path} sets {name} to what is neither a value nor a list of values")
    return values


def write_yaml(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write values of flags, such as those of ``portable``, to a file that --config reads."""
    import yaml

    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")


def read_yaml(kind: type[Kind], path: str | Path) -> Kind:
    """The configuration that such a file sets. Of a stranger's file, do not open the paths it names.

    Raises:
        ValueError: for a file that sets what is no flag of the configuration.
    """
    return parse(kind, None, ["--config", str(path)], raises=True)


def flags_of(config: Config) -> dict[str, Any]:
    """Every flag's value in a configuration, as YAML takes it. Where several fields share a flag and
    differ, those at their defaults do not count. Where the rest differs, too, the flag is left out."""
    flags = {}
    for name, behind in by_flag(type(config)).items():
        values = {setting: functools.reduce(getattr, setting.path, config) for setting in behind}
        distinct = {*values.values()}
        if len(distinct) > 1:
            distinct = {value for setting, value in values.items() if value != setting.default}
        if len(distinct) != 1:
            continue
        (value,) = distinct
        if value is None or value == behind[0].default == ():  # given by leaving the flag out
            continue
        flags[name] = list(value) if isinstance(value, tuple) else value
    return flags


def portable(*configs: Config) -> dict[str, Any]:
    """``flags_of``, without what belongs to a machine: its device, and paths of files and folders."""
    values: dict[str, Any] = {}
    for config in configs:
        kept = portable_names(type(config))
        values |= {name: value for name, value in flags_of(config).items() if name in kept}
    return values


def portable_names(kind: type[Config]) -> set[str]:
    """The flags that ``portable`` keeps."""
    flags = {name: behind[0] for name, behind in by_flag(kind).items()}
    return {name for name, each in flags.items() if not is_path(each.hint, each.facts)} - {"device"}


def command(script: str, *configs: Config) -> str:
    """The command that runs a script with these configurations. Flags at their defaults are left out."""
    words = ["python", *script.split()]
    for config in configs:
        defaults = flags_of(type(config)())
        for name, value in flags_of(config).items():
            if value == defaults.get(name):
                continue
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            else:
                values = value if isinstance(value, list) else [value]
                words += [f"--{name}", *map(as_text, values)]
    return shlex.join(words)


# -------------------------------------------------------------------- errors in one line


def check_writable(folder: str | Path, flag: str = "--output_dir") -> None:
    """Try whether files can be written into a folder that may not exist yet. Nothing is left behind.

    Raises:
        OSError: if not, with the flag that names the folder.
        ValueError: for an address.
    """
    check_local(folder)
    folder = Path(folder)
    parent = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({parent}: {error.strerror}): choose another {flag}"
        ) from None


# Messages of errors that mean too little memory, where their type does not say so.
OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator.* allocate (?P<bytes>\d+) bytes|bad_alloc|ALLOC_FAILED|error: out of memory"
)
LESS_MEMORY = "lower --batch_size or --num_samples"
LESS_IN_TRAINING = (
    "lower --batch_size, or train with --gradient_checkpointing, --mixed_precision bf16 and --grad_accum"
)


def in_one_line(error: Exception, prog: str) -> str | None:
    """The line for an error that is no bug: a wrong value, an unusable file, too little memory,
    a missing package. None for any other."""
    text = str(error) or "out of memory"
    full = OUT_OF_MEMORY.search(text)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError) or full:
        text = text.splitlines()[0].split(". ")[0]
        if full and full["bytes"]:
            text = f"out of memory, {int(full['bytes']) / 2**30:.2f} GiB more were needed"
        return f"{text}: {LESS_IN_TRAINING if prog == 'train.py' else LESS_MEMORY}"
    if isinstance(error, ModuleNotFoundError):
        way_out = "source .venv/bin/activate, or pip install -r requirements.txt"
        return f"{text}, for {sys.executable}: {way_out}"
    return str(error) if isinstance(error, ValueError | OSError) else None


def run(main: Callable[[], None]) -> None:
    """Call ``main``. An error that ``in_one_line`` knows becomes one line on stderr and exit code 2.
    Ctrl-C ends with exit code 130. Any other error is a bug and keeps its traceback."""
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Apple's GPU lacks, on the CPU
    os.environ["MPLBACKEND"] = "agg"  # figures are files; a notebook's backend may not be installed here
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack letters of a name
    prog = Path(sys.argv[0]).name
    try:
        if not {"-h", "--help"} & {*sys.argv}:  # which answers at once
            devices.share_processors()
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
