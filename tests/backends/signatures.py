"""The classes and signatures of a TensorRT binding, as pybind11 documents them, without its libraries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Known:
    """An expression whose value is known, such as trt.BuilderFlag.REFIT."""

    value: Any


@dataclass(frozen=True)
class Instance:
    """An object of a class of the binding."""

    cls: type


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str
    required: bool


@dataclass(frozen=True)
class Signature:
    """A signature in the docstring of a bound function."""

    parameters: tuple[Parameter, ...]
    returns: str

    def mismatch(self, trt: Any, positional: list[Any], keywords: dict[str, Any]) -> str:
        """Why a call does not fit, or an empty string."""
        if any(parameter.name.startswith("*") for parameter in self.parameters):
            return ""
        if len(positional) > len(self.parameters):
            return f"takes {len(self.parameters)} arguments, received {len(positional)}"
        given = dict(zip(self.parameters, positional, strict=False))
        named = {parameter.name: parameter for parameter in self.parameters[len(positional):]}
        for name, value in keywords.items():
            if name not in named:
                return f"has no argument {name}"
            given[named[name]] = value
        if missing := [one.name for one in self.parameters if one.required and one not in given]:
            return f"needs {', '.join(missing)}"
        for parameter, value in given.items():
            wanted, have = class_named(trt, parameter.kind), class_of(value)
            if wanted and have and not issubclass(have, wanted):
                return f"takes a {wanted.__name__} as {parameter.name}, received a {have.__name__}"
        return ""


def class_named(trt: Any, text: str) -> type | None:
    """The binding's class that a docstring names, such as tensorrt_bindings.tensorrt.ITensor or nvinfer1::ITensor."""
    found = getattr(trt, re.split(r"\.|::", text.strip())[-1], None)
    return found if isinstance(found, type) else None


def class_of(value: Any) -> type | None:
    if isinstance(value, Instance):
        return value.cls
    if isinstance(value, Known) and hasattr(type(value.value), "__members__"):
        return type(value.value)
    return None


def signatures(documented: Any, drop_self: bool) -> list[Signature]:
    """The signatures in a docstring, one for each overload."""
    found = []
    for arguments, returns in re.findall(r"^(?:\d+\. )?\w*\((.*)\) -> (.+)$", documented.__doc__ or "", re.MULTILINE):
        parameters = []
        for text in split(arguments)[1 if drop_self else 0:]:
            name, _, kind = text.partition(":")
            kind, _, default = kind.partition(" = ")
            parameters.append(Parameter(name.strip(), kind.strip(), not default))
        found.append(Signature(tuple(parameters), returns.strip()))
    return found


def split(arguments: str) -> list[str]:
    """Split at commas that are outside of brackets."""
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "[(<{") - (character in "])>}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


class Hollow:
    """An object with the attributes and signatures of a class of the binding, and no implementation."""

    def __init__(self, trt: Any, cls: type) -> None:
        self.__dict__.update(_trt=trt, _cls=cls)

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._cls, name)
        if isinstance(member, property):
            return 0 if name == "num_errors" else self._result(signatures(member.fget, False)[0].returns)
        offered = signatures(member, True)

        def call(*positional: Any, **keywords: Any) -> Any:
            values = [describe(value) for value in positional]
            reasons = [one.mismatch(self._trt, values, {key: describe(value) for key, value in keywords.items()})
                       for one in offered]
            if not offered or all(reasons):
                raise TypeError(f"{self._cls.__name__}.{name} {(reasons or ['documents no signature'])[0]}")
            return self._result(offered[0].returns)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        member = getattr(self._cls, name)
        reasons = [one.mismatch(self._trt, [describe(value)], {}) for one in signatures(member.fset, True)]
        if reasons and all(reasons):
            raise TypeError(f"{self._cls.__name__}.{name} {reasons[0]}")

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __bytes__(self) -> bytes:
        return b"plan"

    def _result(self, kind: str) -> Any:
        plain = {"bool": True, "int": 1, "str": "frame", "None": None}
        if kind in plain:
            return plain[kind]
        cls = class_named(self._trt, kind)
        if cls is not None and cls.__name__ == "Dims":
            return (-1, -1, -1, 3)
        return None if cls is None else Hollow(self._trt, cls)


def describe(value: Any) -> Any:
    return Instance(value._cls) if isinstance(value, Hollow) else Known(value)
