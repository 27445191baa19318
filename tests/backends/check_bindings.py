"""python -m tests.backends.check_bindings MODULE ROOT: whether a TensorRT binding has what the sources under ROOT use.

Nothing is executed on a device. The sources are read as syntax trees, and the types of their expressions are followed
through the signatures that the binding documents. Polygraphy's part is executed, on objects that have the binding's
attributes and signatures and no implementation. Prints one line of JSON: version, checked, problems.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from tests.backends.signatures import Hollow, Instance, Known, Signature, class_named, signatures

INSTANCES = {
    "dpt_deploy/backends/stream_worker.py": dict.fromkeys(
        ("context", "slot.context", "self._shared.context"), "IExecutionContext"),
    "dpt_deploy/build/builder_process.py": {
        "builder": "Builder", "network": "INetworkDefinition", "config": "IBuilderConfig",
    },
}
"""Classes of expressions whose origin is outside the binding, by file: arguments, and what Polygraphy returns."""
GUARDS = {"dpt_deploy/backends/stream_worker.py": ("self._captures_internally", "IRuntimeCache")}
"""Expressions that are true if the binding has an attribute, other than `hasattr(trt, ...)`."""


@dataclass(frozen=True)
class Method:
    name: str
    member: Any


@dataclass(frozen=True)
class Many:
    """A list or another iterable of one type."""

    element: Any


class Checker(ast.NodeVisitor):
    """Follows the types of one source file's expressions. Branches whose guard does not hold are left out."""

    def __init__(self, trt: Any, file: str, source: str) -> None:
        self.trt, self.file, self.tree = trt, file, ast.parse(source)
        self.seeds: dict[str, Any] = {"trt": Known(trt)}
        for expression, name in INSTANCES.get(file, {}).items():
            self.seeds[expression] = Instance(getattr(trt, name))
        if file in GUARDS:
            expression, attribute = GUARDS[file]
            self.seeds[expression] = Known(hasattr(trt, attribute))
        self.types, self.problems, self.checked = dict(self.seeds), {}, set()
        self.visited: set[ast.AST] = set()
        self.excluded: set[ast.AST] = set()

    def run(self) -> None:
        for _ in range(2):  # attributes of self are known after the first time
            self.problems.clear()
            self.visit(self.tree)
        for node in ast.walk(self.tree):
            of_trt = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trt"
            if of_trt and node not in self.visited and node not in self.excluded:
                self.problem(node, f"{ast.unparse(node)} was not checked")

    def problem(self, node: ast.AST, text: str) -> None:
        self.problems[f"{self.file}:{node.lineno}: {text}"] = None

    # Statements

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = self.types
        own = {name: value for name, value in outer.items() if "." in name}
        self.types = self.seeds | own
        self.block(node.body)
        for name, value in self.types.items():
            if name.startswith("self."):
                outer[name] = value
        self.types = outer

    def block(self, body: list[ast.stmt]) -> None:
        """Visit statements up to one after which a guard excludes the rest."""
        for i, statement in enumerate(body):
            self.visit(statement)
            if isinstance(statement, ast.If):
                holds = self.truth(statement.test)
                taken = statement.body if holds else statement.orelse
                if holds is not None and taken and isinstance(taken[-1], ast.Return | ast.Raise):
                    self.exclude(body[i + 1:])
                    return

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        holds = self.truth(node.test)
        for taken, body in ((True, node.body), (False, node.orelse)):
            if holds in (None, taken):
                self.block(body)
            else:
                self.exclude(body)

    def exclude(self, body: list[ast.stmt]) -> None:
        self.excluded.update(node for statement in body for node in ast.walk(statement))

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.visit(item.context_expr)
        self.block(node.body)

    def visit_For(self, node: ast.For) -> None:
        self.bind(node.target, self.element(self.visit(node.iter)))
        self.block(node.body)

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self.visit(node.value)
        for target in node.targets:
            self.bind(target, value)

    def bind(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Tuple):
            values = value if isinstance(value, tuple) else (None,) * len(target.elts)
            for one, its in zip(target.elts, values, strict=True):
                self.bind(one, its)
            return
        text = ast.unparse(target)
        if isinstance(target, ast.Attribute) and (owner := self.visit(target.value)) is not None:
            self.assign(target, owner, value)
        elif value is not None or (text not in self.seeds and not text.startswith("self.")):
            self.types[text] = value

    def assign(self, target: ast.Attribute, owner: Any, value: Any) -> None:
        """Check an assignment to an attribute of an object of the binding."""
        if target.attr == "__class__":
            if not issubclass(value.value, owner.cls):
                self.problem(target, f"{value.value.__name__} is no subclass of {owner.cls.__name__}")
            self.types[ast.unparse(target.value)] = Instance(value.value)
            return
        member = getattr(owner.cls, target.attr, None)
        self.checked.add(f"{owner.cls.__name__}.{target.attr} = ")
        if not isinstance(member, property) or member.fset is None:
            self.problem(target, f"{owner.cls.__name__}.{target.attr} cannot be set")
        elif offered := signatures(member.fset, True):
            self.fits(target, f"{owner.cls.__name__}.{target.attr}", offered, [value], {})

    # Expressions

    def truth(self, test: ast.expr) -> bool | None:
        """The value of a guard, or None if it depends on more than the binding."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.truth(test.operand)
            return None if inner is None else not inner
        value = self.visit(test)
        return value.value if isinstance(value, Known) and isinstance(value.value, bool) else None

    def visit_Name(self, node: ast.Name) -> Any:
        return self.types.get(node.id)

    def visit_Constant(self, node: ast.Constant) -> Any:
        return None

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        if (known := self.types.get(ast.unparse(node))) is not None:
            self.visit(node.value)
            return known
        owner = self.visit(node.value)
        self.visited.add(node)
        if isinstance(owner, Known):
            if owner.value is self.trt or isinstance(owner.value, type):
                self.checked.add(ast.unparse(node))
                if not hasattr(owner.value, node.attr):
                    self.problem(node, f"{ast.unparse(node)} does not exist")
                    return None
            return Known(getattr(owner.value, node.attr, None))
        if not isinstance(owner, Instance):
            return None
        name = f"{owner.cls.__name__}.{node.attr}"
        self.checked.add(name)
        if not hasattr(owner.cls, node.attr):
            self.problem(node, f"{name} does not exist")
            return None
        member = getattr(owner.cls, node.attr)
        if isinstance(member, property):
            return self.returned(signatures(member.fget, False))
        return Method(name, member)

    def visit_Call(self, node: ast.Call) -> Any:
        function = self.visit(node.func)
        positional = [self.visit(one) for one in node.args]
        keywords = {one.arg: self.visit(one.value) for one in node.keywords}
        if isinstance(node.func, ast.Name) and node.func.id == "hasattr" and isinstance(positional[0], Known):
            return Known(hasattr(positional[0].value, node.args[1].value))
        if isinstance(function, Known) and isinstance(function.value, type):
            cls = function.value
            self.fits(node, cls.__name__, signatures(cls.__init__, True), positional, keywords)
            return Instance(cls)
        if isinstance(function, Known) and inspect.isfunction(function.value):
            try:
                inspect.signature(function.value).bind(*positional, **keywords)
            except TypeError as error:
                self.problem(node, f"{ast.unparse(node.func)}: {error}")
        if isinstance(function, Method):
            offered = signatures(function.member, True)
            self.fits(node, function.name, offered, positional, keywords)
            return self.returned(offered)
        return None

    def fits(self, node: ast.AST, name: str, offered: list[Signature], positional: list[Any],
             keywords: dict[str, Any]) -> None:
        reasons = [one.mismatch(self.trt, positional, keywords) for one in offered]
        if not offered:
            self.problem(node, f"{name} documents no signature")
        elif all(reasons):
            self.problem(node, f"{name} {reasons[0]}")
        else:
            self.checked.add(f"{name}()")

    def returned(self, offered: list[Signature]) -> Any:
        cls = class_named(self.trt, offered[0].returns) if offered else None
        return None if cls is None else Instance(cls)

    def visit_Tuple(self, node: ast.Tuple) -> Any:
        return tuple(self.visit(one) for one in node.elts)

    def visit_List(self, node: ast.List) -> Any:
        values = [self.visit(one) for one in node.elts]
        return Many(values[0]) if values else None

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        self.visit(node.slice)
        return self.element(self.visit(node.value))

    @staticmethod
    def element(value: Any) -> Any:
        return value.element if isinstance(value, Many) else None

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> Any:
        for generator in node.generators:
            self.bind(generator.target, self.element(self.visit(generator.iter)))
            for condition in generator.ifs:
                self.visit(condition)
        return Many(self.visit(node.elt))

    visit_SetComp = visit_GeneratorExp = visit_ListComp

    def visit_NamedExpr(self, node: ast.NamedExpr) -> Any:
        value = self.visit(node.value)
        self.bind(node.target, value)
        return value


def check_polygraphy(trt: Any, problems: list[str]) -> int:
    """Let Polygraphy parse, configure and build every kind of engine. Returns how many."""
    from polygraphy.backend.trt import CreateConfig, Profile, engine_bytes_from_network, network_from_onnx_path

    from dpt_deploy.build import builder_process

    profile = Profile().add("frame", min=(1, 64, 64, 3), opt=(1, 720, 1280, 3), max=(8, 2160, 3840, 3))
    variants = [dict(one) for one in itertools.product(
        [("weights", weights) for weights in ("fixed", "refittable", "stripped")],
        [("version_compatible", value) for value in (False, True)],
        [("hardware_compatible", value) for value in (False, True)],
    )]
    builder, parser = Hollow(trt, trt.Builder), Hollow(trt, trt.OnnxParser)
    hollow = {"Builder": lambda logger: builder, "OnnxParser": lambda network, logger: parser}
    with tempfile.NamedTemporaryFile() as file, mock.patch.multiple(trt, **hollow):
        for variant in variants:
            try:
                _, network, _ = parsed = network_from_onnx_path(file.name, strongly_typed=True)
                arguments = builder_process._config_arguments(trt, {"variant": variant, "old_timings": file.name})
                config = CreateConfig(profiles=[profile], profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
                                      **arguments)(builder, network)
                builder_process._leave_memory_to_the_caller(trt, config)
                builder_process._flags(trt, network, config)
                if bytes(engine_bytes_from_network(parsed, config, save_timing_cache=None)) != b"plan":
                    problems.append(f"Polygraphy, {variant}: returned another plan")
            except Exception as error:
                problems.append(f"Polygraphy, {variant}: {type(error).__name__}: {error}")
    return len(variants)


def main(module: str, root: Path) -> dict[str, Any]:
    trt = import_module(module)
    problems: dict[str, None] = {}
    checked: set[str] = set()
    for path in sorted([*root.glob("dpt_deploy/**/*.py"), *root.glob("benchmarks/*.py")]):
        file, source = path.relative_to(root).as_posix(), path.read_text()
        if re.search(r"\btrt\.", source) or file in INSTANCES:
            checker = Checker(trt, file, source)
            checker.run()
            problems |= checker.problems
            checked |= checker.checked
    found = list(problems)
    configured = check_polygraphy(trt, found)
    return {"version": trt.__version__, "checked": sorted(checked), "configured": configured, "problems": found}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
