"""A command's options come from its line, and from the YAML file of `--config` where the line does
not give them."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from zephyr.config import NOT_YAML, ConfigError, expand_variables, read_yaml

Commands = "argparse._SubParsersAction[argparse.ArgumentParser]"
DECLARED = yaml.safe_load(Path(__file__).with_name("options.yaml").read_text(encoding="utf-8"))


def count(text: str) -> int:
    """A whole number from 1."""
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def price(text: str) -> tuple[str, tuple[float, float]]:
    """`MODEL=PROMPT,COMPLETION` as its parts."""
    model, _, both = text.rpartition("=")
    prompt, completion = (float(part) for part in both.split(","))
    if not model or min(prompt, completion) < 0:
        raise ValueError(text)
    return model, (prompt, completion)


TYPES = {
    "int": int,
    "float": float,
    "path": Path,
    "list": lambda text: text.split(","),
    "count": count,
    "price": price,
}


def declared(
    commands: Commands,
    run: Callable[[argparse.Namespace], int | None],
    **types: Callable[[str], object],
) -> None:
    """The command that `run_<name>` carries out, as `options.yaml` declares it. Args: types: what
    reads a value, beside `TYPES`."""
    of = DECLARED[name_of(run)]
    parser = command(commands, run, of["help"], of["example"])
    for options in (of["options"], *(DECLARED["shared"][group] for group in of.get("shared", ()))):
        for key, settings in options.items():
            name, _, metavar = key.partition(" ")
            reads = {"type": (TYPES | types)[settings["type"]]} if "type" in settings else {}
            parser.add_argument(
                name, **settings | reads, **({"metavar": metavar} if metavar else {})
            )


def name_of(run: Callable[[argparse.Namespace], int | None]) -> str:
    return run.__name__.removeprefix("run_").replace("_", "-")


def command(
    commands: Commands, run: Callable[[argparse.Namespace], int | None], text: str, example: str
) -> argparse.ArgumentParser:
    """A parser for the command that `run_<name>` carries out; its `--help` ends with the
    example."""
    parser = commands.add_parser(
        name_of(run), help=text, description=text, epilog=f"example: {example}", allow_abbrev=False
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML of options by their long names; the command line goes first, what is repeated adds up",
    )
    parser.set_defaults(carry_out=run)
    return parser


def apply_config(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Make the keys of the YAML file of `--config` the parser's defaults, so that none of them is
    required on the line; null: not given.

    Raises: ConfigError naming file and key: no such option, a value of another type, a file that
    can't be read."""
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only.add_argument("--config")
    path = only.parse_known_args(arguments)[0].config
    if path is None:
        return
    try:
        tree = read_yaml(Path(path))
    except (OSError, *NOT_YAML) as error:
        raise ConfigError(
            f"config {path}: {getattr(error, 'strerror', None) or f'not YAML: {error}'}"
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"config {path}: a mapping of options is wanted, got {type(tree).__name__}"
        )
    options = {
        action.dest.replace("_", "-"): action
        for action in parser._actions
        if action.dest not in ("help", "config")
    }
    for key, value in ((key, value) for key, value in tree.items() if value is not None):
        if key not in options:
            nearest = difflib.get_close_matches(str(key), options, n=1, cutoff=0.0)
            raise ConfigError(f"config {path}: {key}: unknown option; the nearest is {nearest[0]}")
        action = options[key]
        action.default, action.required = typed(action, value, f"config {path}: {key}"), False
        if not action.option_strings:
            action.nargs = "*" if action.nargs in ("+", "*") else "?"


def typed(action: argparse.Action, value: object, where: str) -> object:
    """The value as the command line would have read it: lists for what is repeated or joined by
    commas, mappings as NAME=VALUE."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: true or false is wanted, got {value!r}")
        return action.const if value else action.default
    if isinstance(value, dict):
        value = [
            f"{name}={','.join(map(str, of)) if isinstance(of, list) else of}"
            for name, of in value.items()
        ]
    many = isinstance(action, argparse._AppendAction) or action.nargs in ("+", "*")
    if isinstance(value, list) and not many:
        value = ",".join(map(str, value))
    try:
        texts = [
            expand_variables(str(item), where)
            for item in (value if isinstance(value, list) else [value])
        ]
        read = [(action.type or str)(text) for text in texts]
    except ConfigError:  # a ValueError too
        raise
    except (ValueError, argparse.ArgumentTypeError):
        raise ConfigError(
            f"{where}: {action.metavar or action.dest} is wanted, got {value!r}"
        ) from None
    if action.choices and not set(read) <= set(action.choices):
        raise ConfigError(
            f"{where}: one of {', '.join(map(str, action.choices))} is wanted, got {value!r}"
        )
    return read if many else read[0]
