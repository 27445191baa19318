"""The command line of a dataclass, with a help page that reads well in a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
import textwrap
import types
import typing
from typing import Annotated, Any

import docstring_parser
import tyro
from tyro.constructors import (
    MISSING,
    MISSING_NONPROP,
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
    UnsupportedTypeAnnotationError,
)

from ..core.errors import BadInput

MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalMetavarFromFieldName)
REGISTRY = ConstructorRegistry()


def parse(config: type, prog: str, default: Any = None, arguments: list[str] | None = None) -> Any:
    """The command line as an instance of the dataclass `config`; exits with status 2 if it cannot be understood."""
    values = {} if default is None else {"default": default}
    width = min(shutil.get_terminal_size().columns, 100)
    # tyro joins lines, unless they begin with a space.
    description = "\n\n".join(textwrap.fill(part, width, initial_indent=" ", subsequent_indent=" ")
                              for part in paragraph(config.__doc__ or "").split("\n\n"))
    return tyro.cli(config, prog=prog, description=description, args=arguments, config=MARKERS, registry=REGISTRY,
                    **values)


def completion_script(commands: dict[str, tuple[str, type]], shell: str) -> str:
    """The script that completes `dpt COMMAND --option` in a shell.

    Args:
        commands: Command -> its one-line help, and the dataclass of its options.
        shell: bash or zsh.
    """
    kinds = [Annotated[config, tyro.conf.subcommand(name, description=text)]
             for name, (text, config) in commands.items()]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):  # tyro prints the script and exits
        tyro.cli(typing.Union[tuple(kinds)], prog="dpt", args=["--tyro-print-completion", shell],  # noqa: UP007
                 config=MARKERS, registry=REGISTRY)
    return printed.getvalue()


def paragraph(text: str) -> str:
    """Text without the line breaks and the indentation of a docstring; blank lines stay."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


@REGISTRY.primitive_rule
def optional_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | UnsupportedTypeAnnotationError | None:
    """`X | None` reads as X: None is what an option is that was left out, and no value of the command line."""
    if info.type_origin not in (typing.Union, types.UnionType):
        return None
    others = [one for one in typing.get_args(info.type) if one is not type(None)]
    if len(others) != 1:
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(others[0], info.markers))
    if isinstance(spec, UnsupportedTypeAnnotationError):
        return spec

    def read(arguments: list[str]) -> Any:
        if arguments == ["None"]:
            raise ValueError("expected a value, received 'None'; leave the option out")
        return spec.instance_from_str(arguments)

    return dataclasses.replace(
        spec, instance_from_str=read, is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: [] if value is None else spec.str_from_instance(value),
    )


@REGISTRY.struct_rule
def dataclass_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """As tyro's own rule, but with help texts in one piece and without "(default: None)" and "(default: False)"."""
    if not (isinstance(info.type, type) and dataclasses.is_dataclass(info.type)):
        return None
    if info.type.__module__.startswith("tyro."):  # its wrapper around the union of all commands
        return None
    texts = _docstrings(info.type)
    hints = typing.get_type_hints(info.type, include_extras=True)
    fields = []
    for field in dataclasses.fields(info.type):
        if not field.init:
            continue
        default = _default(field, info.default)
        kind = _naming(hints[field.name], "--" + field.name.replace("_", "-"))
        if default is None or default == ():
            kind = Annotated[kind, tyro.conf.arg(help_behavior_hint="")]
        elif default is False:
            kind = Annotated[kind, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
        elif default is True:
            kind = Annotated[kind, tyro.conf.arg(help_behavior_hint="(default: on)")]
        fields.append(StructFieldSpec(field.name, kind, default, texts.get(field.name)))
    return StructConstructorSpec(info.type, tuple(fields))


def _naming(kind: Any, option: str) -> Any:
    """A type whose errors name the option, if it is one of `options.py`."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.Union[tuple(_naming(one, option) for one in typing.get_args(kind))]  # noqa: UP007
    specs = [one for one in getattr(kind, "__metadata__", ()) if isinstance(one, PrimitiveConstructorSpec)]
    if not specs:
        return kind
    others = [one for one in kind.__metadata__ if one not in specs]

    def read(arguments: list[str]) -> Any:
        try:
            return specs[0].instance_from_str(arguments)
        except ValueError as error:
            raise BadInput(f"{option}: {error}.") from error

    return Annotated[(kind.__origin__, dataclasses.replace(specs[0], instance_from_str=read), *others)]


def _docstrings(config: type) -> dict[str, str]:
    """Field -> the docstring below it, in this class or the one it inherits from."""
    texts = {}
    for one in reversed(config.__mro__[:-1]):
        for entry in docstring_parser.parse_from_object(one).params:
            texts[entry.arg_name] = paragraph(entry.description or "")
    return texts


def _default(field: dataclasses.Field, instance: Any) -> Any:
    if instance is MISSING:
        return MISSING
    if instance is not MISSING_NONPROP and hasattr(instance, field.name):
        return getattr(instance, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return MISSING_NONPROP if isinstance(field.default_factory, type) and \
            dataclasses.is_dataclass(field.default_factory) else field.default_factory()
    return MISSING_NONPROP if field.default is dataclasses.MISSING else field.default
