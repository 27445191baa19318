"""The architecture holds as drawn: imports run one way, the light parts stay light, and modules stay readable.

Read from the import statements themselves, wherever they stand: at the top, inside functions, or for
type checkers only. The checker is tested too, on small trees that break each rule.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dpt_deploy"
MOST_LINES = 400

# What each part of the package may import from the others, from the ground up. A part's `__main__`, which is the
# command around it, may import the command line and the report besides.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "geometry": {"core"},
    "model": {"core"},
    "backends": {"core"},
    "foreign": {"core"},
    "hub": {"core"},
    "runtime": {"core", "backends", "foreign", "geometry", "hub"},
    "steady": {"core", "runtime"},
    "parity": {"core", "backends", "runtime", "client"},
    "build": {"core", "backends", "cli"},
    "report": {"core", "geometry", "runtime"},
    "export": {"core", "cli", "model", "backends", "foreign", "hub", "runtime", "parity", "build", "report"},
    "doctor": {"core", "backends"},
    "predict": {"core", "geometry", "runtime", "report", "steady"},
    "view": {"core", "geometry", "runtime", "report"},
    "client": {"core", "runtime"},
    "serve": {"core", "backends", "runtime"},
    "pytest_plugin": {"core", "parity"},
    "cli": {"core", "backends"},
    "__init__": {"core"},  # and anything inside its functions: names are loaded when asked for
    "__main__": {"cli"},
    "train": {"core", "cli", "geometry", "model", "report"},
}
ABOVE_ALL = {"cli", "report", "parity"}  # what the `__main__` of a part may import besides
# Parts that a machine without torch runs. Backends load their own library inside functions.
WITHOUT_TORCH = set(ALLOWED) - {"model", "export", "train"}
TORCH = {"torch", "torchvision", "timm"}
# Parts of the base install: its dependencies are all they may need in order to be imported.
BASE_PARTS = {"__init__", "core", "geometry", "backends", "runtime", "steady", "client"}
BASE_DEPENDENCIES = {"numpy", "cv2", "pydantic", "packaging", PACKAGE}


class Import(NamedTuple):
    """One imported name: `module` and, for `from module import name`, the name."""

    module: str
    name: str | None
    line: int
    eager: bool  # runs when the module is imported: not inside a function, not for type checkers only
    absolute: bool = False


def imports(tree: ast.AST, package: str, eager: bool = True) -> Iterator[Import]:
    """Every import under `tree`; relative ones are resolved against `package`, e.g. "dpt_deploy.model"."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, node.lineno, eager, True) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(module, alias.name, node.lineno, eager, not node.level) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(ast.Module(node.body, []), package, eager=False)
            yield from imports(ast.Module(node.orelse, []), package, eager)
        else:
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield Import(_absolute(name.value, package), None, node.lineno, eager)
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, package, eager and not inside)


def _absolute(name: str, package: str) -> str:
    level = len(name) - len(name.lstrip("."))
    return name if not level else ".".join([*package.split(".")[: len(package.split(".")) - level + 1], name[level:]])


def part_of(path: Path) -> str | None:
    """The part a file belongs to, a key of ALLOWED; None for files outside the package and train/."""
    first, *rest = path.with_suffix("").parts
    return "train" if first == "train" else rest[0] if first == PACKAGE and rest else None


def target_of(found: Import, root: Path) -> str | None:
    """The part an import reaches into, "face" for names of dpt_deploy itself, "train", or None for others."""
    first, *rest = found.module.split(".")
    if first == "train":
        return "train"
    if first != PACKAGE:
        return None
    if not rest and found.name:
        inside = root / PACKAGE / found.name
        return found.name if inside.is_dir() or inside.with_suffix(".py").is_file() else "face"
    return rest[0] if rest else None


def sources(root: Path) -> list[Path]:
    """Python files of the code, relative to `root`; tests and environments are not among them."""
    folders = [PACKAGE, "train", "demo", "benchmarks"]
    found = [path for folder in folders for path in (root / folder).rglob("*.py")] + list(root.glob("*.py"))
    return sorted(path.relative_to(root) for path in found)


def complaints(root: Path) -> list[str]:
    """One sentence for each import or file that breaks a rule; empty when the architecture holds."""
    found = []
    modules: dict[str, set[str]] = {}
    for path in sources(root):
        text = (root / path).read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MOST_LINES:
            found.append(f"{path} has {lines} lines, and {MOST_LINES} is the most: split it by what it holds")
        part = part_of(path)
        if part is not None and part not in ALLOWED:
            found.append(f"{path}: the part {part!r} has no place in the architecture; add it to ALLOWED")
            continue
        for one in imports(ast.parse(text), ".".join(path.parent.parts)):
            modules.setdefault(module_of(path), set()).update(_modules_reached(one, root) - {module_of(path)})
            reason = _import_complaint(path, part, one, root)
            if reason:
                found.append(f"{path}:{one.line}: {reason}")
    try:
        graphlib.TopologicalSorter(modules).prepare()
    except graphlib.CycleError as error:
        found.append(f"modules import each other in a circle: {' -> '.join(error.args[1])}")
    return list(dict.fromkeys(found))  # one import statement with four names is one breach


def module_of(path: Path) -> str:
    """The dotted name of a file, "a.b.__init__" for a package."""
    return ".".join(path.with_suffix("").parts)


def _modules_reached(one: Import, root: Path) -> set[str]:
    """The files that an import names, as `module_of` writes them; the face loads its names lazily and is left out."""
    base = root.joinpath(*one.module.split("."))
    candidates = [base / one.name] if one.name else []
    for path in (*candidates, base):
        if path.with_suffix(".py").is_file():
            return {module_of(path.with_suffix(".py").relative_to(root))}
        if (path / "__init__.py").is_file() and path != root / PACKAGE:
            return {module_of((path / "__init__.py").relative_to(root))}
    return set()


def _import_complaint(path: Path, part: str | None, one: Import, root: Path) -> str | None:
    target = target_of(one, root)
    is_command = path.stem == "__main__"
    if part == target == "train" and one.absolute:
        return "import relatively: the wheel installs train as dpt_train"
    lazy_face = part == "__init__"
    if part == "parity" and is_command and target == "export" and not one.eager:
        return None  # its --checkpoint needs torch, and nothing else of it does
    if path.parts[0] == "benchmarks" and target == "export" and not one.eager:
        return None  # graphs without a verdict are none of the commands' business, and all that some times need
    if target == "export" and part != "export" and not (lazy_face and not one.eager):
        return "only dpt_deploy/export and the face, inside a function, import dpt_deploy.export"
    if part is None:
        return None
    top = one.module.split(".")[0]
    if one.eager and top in TORCH and part in WITHOUT_TORCH:
        return f"{part} runs without torch: import {top} inside the function that needs it, or not at all"
    if one.eager and part in BASE_PARTS and top not in sys.stdlib_module_names and top not in BASE_DEPENDENCIES:
        return f"{part} belongs to the base install, which has no {top}: import it inside the function that needs it"
    if target is None or target == part:
        return None
    if target == "train":
        return "the package does not know of train"
    if lazy_face and not one.eager:
        return None
    if target == "face":
        return f"import {one.name} from the module that defines it, not from {PACKAGE}"
    if part == "train" and target == "runtime" and not one.eager:
        return None  # it evaluates bundles too
    if target not in ALLOWED[part] | (ABOVE_ALL if is_command else set()):
        return f"{part} may not import {PACKAGE}.{target}, only {sorted(ALLOWED[part]) or 'nothing of the package'}"
    return None


def test_the_code_keeps_to_the_architecture() -> None:
    assert not complaints(ROOT), "\n" + "\n".join(complaints(ROOT))


def test_there_is_code_to_check() -> None:
    parts = {part_of(path) for path in sources(ROOT)}
    assert set(ALLOWED) - {"__main__"} <= parts


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("dpt_deploy/core/contract.py", "def f():\n    from ..cli import run"),
        ("dpt_deploy/core/bundle.py", "from .. import runtime"),
        ("dpt_deploy/core/bundle.py", "from dpt_deploy import load"),
        ("dpt_deploy/core/bundle.py", "import rich"),
        ("dpt_deploy/core/bundle.py", "from ..parity import compare"),
        ("dpt_deploy/model/frame.py", "from ..runtime.image import resize"),
        ("dpt_deploy/backends/session.py", "def f():\n    from ..model import MultiTaskDPT"),
        ("dpt_deploy/backends/session.py", "def f():\n    import dpt_deploy.model.frame"),
        ("dpt_deploy/backends/session.py", "import importlib\nimportlib.import_module('dpt_deploy.model')"),
        ("dpt_deploy/backends/session.py", "import importlib\nimportlib.import_module('..model', __package__)"),
        ("dpt_deploy/backends/session.py", "if TYPE_CHECKING:\n    from ..model import MultiTaskDPT"),
        ("dpt_deploy/backends/session.py", "try:\n    import torch\nexcept ImportError:\n    torch = None"),
        ("dpt_deploy/backends/session.py", "import onnxruntime"),
        ("dpt_deploy/backends/session.py", "from ..runtime import load"),
        ("dpt_deploy/parity/compare.py", "from ..build.engine import build"),
        ("dpt_deploy/parity/compare.py", "from ..report import write_report"),
        ("dpt_deploy/parity/compare.py", "from torch import nn"),
        ("dpt_deploy/parity/compare.py", "def f():\n    from ..export.pipeline import export_checkpoint"),
        ("dpt_deploy/parity/__main__.py", "from ..export.pipeline import export_checkpoint"),
        ("dpt_deploy/build/engine.py", "from ..model import MultiTaskDPT"),
        ("dpt_deploy/predict/__main__.py", "from ..build import engine"),
        ("dpt_deploy/export/graph.py", "from ..predict import video"),
        ("dpt_deploy/export/graph.py", "import train.losses"),
        ("dpt_deploy/__init__.py", "from .export import pipeline"),
        ("dpt_deploy/__init__.py", "import torch"),
        ("dpt_deploy/unplanned.py", "import os"),
        ("train/trainer.py", "from dpt_deploy.backends import get"),
        ("train/trainer.py", "from dpt_deploy import create_multitask_dpt_model"),
        ("train/trainer.py", "from train.losses import berhu"),
        ("train/evaluate.py", "from dpt_deploy.runtime import Runtime"),
        ("demo/__main__.py", "def f():\n    import dpt_deploy.export"),
        ("benchmarks/latency.py", "from dpt_deploy import export"),
        ("train/long.py", "x = 1\n" * (MOST_LINES + 1)),
    ],
)
def test_a_breach_is_found(tmp_path: Path, path: str, source: str) -> None:
    _tree(tmp_path, path, source)
    assert len(complaints(tmp_path)) == 1


def test_a_circle_is_found(tmp_path: Path) -> None:
    _tree(tmp_path, "dpt_deploy/core/one.py", "def f():\n    from .two import x")
    _tree(tmp_path, "dpt_deploy/core/two.py", "if TYPE_CHECKING:\n    from .one import f")
    (complaint,) = complaints(tmp_path)
    assert "circle" in complaint and "core.one" in complaint and "core.two" in complaint


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("dpt_deploy/__init__.py", "def __getattr__(name):\n    from .export import pipeline"),
        ("dpt_deploy/__init__.py", "if TYPE_CHECKING:\n    from .export import pipeline"),
        ("dpt_deploy/core/bundle.py", "import cv2, numpy, pydantic\nfrom .errors import DptError"),
        ("dpt_deploy/backends/session.py", "def f():\n    import torch"),
        ("dpt_deploy/build/__main__.py", "from ..cli import run\nfrom ..parity import compare"),
        ("dpt_deploy/parity/__main__.py", "def f():\n    from ..export.pipeline import export_checkpoint"),
        ("dpt_deploy/export/graph.py", "import torch\nfrom ..model import frame\nfrom ..build import engine"),
        ("dpt_deploy/model/dpt.py", "import timm\nfrom ..core.contract import Contract\nfrom .heads import create"),
        ("train/__main__.py", "from dpt_deploy.cli import run\nfrom .losses import berhu"),
        ("train/evaluate.py", "def f():\n    from dpt_deploy.runtime import Runtime"),
        ("demo/__main__.py", "import dpt_deploy\nfrom dpt_deploy import load"),
    ],
)
def test_what_the_architecture_allows_passes(tmp_path: Path, path: str, source: str) -> None:
    _tree(tmp_path, path, source)
    assert complaints(tmp_path) == []


def _tree(root: Path, path: str, source: str) -> None:
    for folder in ("runtime", "model", "export", "build", "parity"):
        (root / PACKAGE / folder).mkdir(parents=True, exist_ok=True)
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(source + "\n", encoding="utf-8")
