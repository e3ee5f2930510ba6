"""A Python function becomes a command whose options are its parameters; `--config FILE` gives the
options that the command line does not."""

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer import Context, Option
from typer.core import TyperCommand, TyperOption

from zephyr import progress
from zephyr.config import NOT_YAML, ConfigError, expand_variables, read_yaml

ConfigFile = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="YAML file with options of this command by their long names; it is not the config of "
        "a training run. An option on the command line replaces that of the file; an option that "
        "can be repeated adds to it.",
    ),
]


Quiet = Annotated[
    bool,
    Option("--quiet", help="Show no progress and no notes: only results, warnings and errors."),
]


class Command(TyperCommand):
    """A command whose `--config FILE` gives the options that the command line does not."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:  # type: ignore[override]  # typer's own Context is a subclass
        if not ctx.resilient_parsing:  # it is set while the shell asks for completions
            args = apply_config(self, ctx, args)
        return super().parse_args(ctx, args)


def add_command(app: typer.Typer, function: Callable[..., int | None]) -> None:
    """Add the command that is named after the function (`self_instruct` is `self-instruct`).

    A parameter that is a dataclass stands for one option per field: `Asking` gives its options to
    every command that has a parameter of this type. The docstring is the command's help.
    """
    # not get_type_hints: on Python 3.10 it hides Annotated in Optional where the default is None
    types = inspect.get_annotations(function, eval_str=True)
    groups = {name: of for name, of in types.items() if isinstance(of, type) and is_dataclass(of)}

    @functools.wraps(function)
    def run(**values: object) -> int | None:
        del values["config"]  # `Command` has read it
        is_quiet = bool(values.pop("quiet"))
        for name, group in groups.items():
            of_group = {field.name: values.pop(field.name) for field in fields(group)}
            values[name] = group(**of_group)
        with progress.quiet(is_quiet):
            return function(**values)

    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in groups:
            parameters += group_parameters(groups[name])
        else:
            parameters.append(keyword(name, types[name], parameter.default))
    parameters.append(keyword("quiet", Quiet, False))
    parameters.append(keyword("config", ConfigFile, None))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by typer
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(function.__name__.replace("_", "-"), cls=Command)(run)


def group_parameters(group: type) -> list[inspect.Parameter]:
    """One parameter for each field of a dataclass of options."""
    types = get_type_hints(group, include_extras=True)
    signature = inspect.signature(group)
    return [
        keyword(f.name, types[f.name], signature.parameters[f.name].default) for f in fields(group)
    ]


def keyword(name: str, annotation: object, default: object) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def apply_config(command: TyperCommand, context: Context, arguments: Sequence[str]) -> list[str]:
    """The arguments with the options of `--config FILE`; null in the file means "not given".

    Options that can be repeated, and positional lists that the command line does not give, become
    arguments. All others become the context's defaults, so that none of them is required.

    Raises: ConfigError naming file and key: an unknown option, a value of another type, a file that
    can't be read."""
    arguments = list(arguments)
    given, _, _ = command.make_parser(context).parse_args(args=list(arguments))
    if given.get("config") is None:
        return arguments
    path = Path(given["config"])
    params = {
        param.name.replace("_", "-"): param
        for param in command.params
        if param.name not in ("help", "config")
    }
    defaults: dict[str, object] = {}
    repeated: list[str] = []
    positional: list[str] = []
    for key, value in read_options(path).items():
        where = f"config {path}: {key}"
        if key not in params:
            nearest = difflib.get_close_matches(key, params, n=1, cutoff=0.0)
            raise ConfigError(f"{where}: unknown option; the nearest is {nearest[0]}")
        if value is None:
            continue
        param = params[key]
        typed = as_on_the_line(param, context, value, where)
        if isinstance(param, TyperOption) and param.multiple:
            repeated += [f"--{key}={text}" for text in typed]
        elif param.nargs == -1:
            positional += [] if given.get(param.name) else typed
        else:
            defaults[param.name] = typed
    context.default_map = defaults
    if positional and "--" not in arguments:
        arguments.append("--")
    return [*repeated, *arguments, *positional]


def read_options(path: Path) -> dict[str, object]:
    """The options of a `--config` file by their long names. Raises: ConfigError naming the file."""
    try:
        tree = read_yaml(path)
    except OSError as error:
        raise ConfigError(f"config {path}: {error.strerror or error}") from None
    except NOT_YAML as error:
        raise ConfigError(f"config {path}: not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"config {path}: expected a mapping of options, got {type(tree).__name__}"
        )
    return {str(key): value for key, value in tree.items()}


def as_on_the_line(param: Any, context: Context, value: object, where: str) -> Any:
    """The texts (True or False for a flag) that would give this value on the command line.

    A list is repeated where the option can be, and else joined by commas; a mapping becomes
    NAME=VALUE. Raises: ConfigError where the option does not take the value."""
    if getattr(param, "is_flag", False):
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: expected true or false, got {value!r}")
        return value
    if isinstance(value, dict):
        value = [f"{name}={joined(of)}" for name, of in value.items()]
    many = param.nargs == -1 or getattr(param, "multiple", False)
    items = value if isinstance(value, list) and many else [joined(value)]
    texts = [expand_variables(str(item), where) for item in items]
    typed = texts if many else texts[0]
    try:
        param.process_value(context, typed)
    except typer.TyperException as error:
        raise ConfigError(
            f"{where}: expected {param.metavar or param.name}, got {value!r}: {error}"
        ) from None
    return typed


def joined(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
