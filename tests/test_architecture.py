"""The architecture holds as drawn: imports run one way, the light parts stay light, and modules stay readable.

Read from the import statements themselves, wherever they stand: at the top, inside functions, or for
type checkers only. The checker is tested too, on small trees that break each rule.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dpt_deploy"
MOST_LINES = 400

_BASE = {"errors", "files"}
_BUNDLE = _BASE | {"contract", "metrics"}
_RUNTIME = _BUNDLE | {"bundle"}
_PARITY = _RUNTIME | {"runtime", "picture"}
_BUILD = _PARITY | {"parity"}
# What each part of the package may import from the others. `cli` is allowed in every __main__ besides.
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "contract": _BASE,
    "metrics": _BASE,
    "picture": _BASE,
    "bundle": _BUNDLE,
    "runtime": _RUNTIME,
    "parity": _PARITY,
    "build": _BUILD,
    "doctor": _BUILD | {"build"},
    "export": _BUILD | {"build", "model"},
    "model": _BASE | {"contract"},
    "cli": {"errors"},
    "predict": _PARITY,
    "pytest_plugin": _BUILD,
    "__init__": {"errors", "contract"},  # and anything inside its functions: names are loaded when asked for
    "train": _BASE | {"cli", "contract", "metrics", "model"},
    "train/evaluate": _BASE | {"cli", "contract", "metrics", "model"},  # and the runtime, inside its functions
}
# Parts that a machine without torch runs. Backends load their own library in a file of their own.
WITHOUT_TORCH = {"__init__", "errors", "files", "contract", "metrics", "picture", "bundle", "cli", "runtime",
                 "parity", "build", "doctor", "predict", "pytest_plugin"}
TORCH_FILES = {"dpt_deploy/runtime/torch.py"}
TORCH = {"torch", "torchvision", "timm"}
# Parts of the base install: NumPy and OpenCV are all they may need in order to be imported.
BASE_PARTS = {"__init__", "errors", "files", "contract", "metrics", "picture", "bundle", "runtime"}
BACKEND_FILES = {f"dpt_deploy/runtime/{name}.py" for name in ("torch", "onnxruntime", "tensorrt", "openvino")}
FACE_NAMES = {"__version__"}  # what the package's own modules may take from dpt_deploy itself


class Import(NamedTuple):
    """One imported name: `module` and, for `from module import name`, the name."""

    module: str
    name: str | None
    line: int
    eager: bool  # runs when the module is imported: not inside a function, not for type checkers only


def imports(tree: ast.AST, package: str, eager: bool = True) -> Iterator[Import]:
    """Every import under `tree`; relative ones are resolved against `package`, e.g. "dpt_deploy.model"."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(module, alias.name, node.lineno, eager) for alias in node.names)
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
    if first == "train":
        return "train/evaluate" if rest[:1] == ["evaluate"] else "train"
    return rest[0] if first == PACKAGE and rest else None


def target_of(found: Import, root: Path) -> str | None:
    """The part an import reaches into, "face" for names of dpt_deploy itself, "train", or None for others."""
    first, *rest = found.module.split(".")
    if first == "train":
        return "train"
    if first != PACKAGE:
        return None
    if not rest and found.name and found.name not in FACE_NAMES:
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
    for path in sources(root):
        text = (root / path).read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MOST_LINES:
            found.append(f"{path} has {lines} lines, and {MOST_LINES} is the most: split it by what it holds")
        part = part_of(path)
        if part is not None and part not in ALLOWED:
            found.append(f"{path}: the part {part!r} has no place in the architecture; add it to ALLOWED")
            continue
        for one in imports(ast.parse(text), ".".join(path.parent.parts)):
            reason = _import_complaint(path, part, one, root)
            if reason:
                found.append(f"{path}:{one.line}: {reason}")
    return list(dict.fromkeys(found))  # one import statement with four names is one breach


def _import_complaint(path: Path, part: str | None, one: Import, root: Path) -> str | None:
    target = target_of(one, root)
    lazy_face = part == "__init__" and not one.eager
    if part == "parity" and path.stem == "__main__" and target == "export" and not one.eager:
        return None  # its --reference needs the checkpoint and torch, and nothing else of it does
    if path.parts[0] == "benchmarks" and target == "export" and not one.eager:
        return None  # graphs without a verdict are none of the commands' business, and all that some times need
    if target == "export" and part != "export" and not lazy_face:
        return "only dpt_deploy/export and the face, inside a function, import dpt_deploy.export"
    if part is None:
        return None
    top = one.module.split(".")[0]
    if one.eager and top in TORCH and part in WITHOUT_TORCH and path.as_posix() not in TORCH_FILES:
        return f"{part} runs without torch: import {top} inside the function that needs it, or not at all"
    if one.eager and part in BASE_PARTS and path.as_posix() not in BACKEND_FILES and not _is_light(top):
        return f"{part} belongs to the base install, which has no {top}: import it inside the function that needs it"
    if target is None or target == part:
        return None
    if target == "train":
        return None if part.startswith("train") else "the package does not know of train"
    if lazy_face or (target == "cli" and path.stem == "__main__"):
        return None
    if part == "train/evaluate" and target == "runtime" and not one.eager:
        return None
    if target == "face":
        return f"import {one.name} from the module that defines it, not from {PACKAGE}"
    if target not in ALLOWED[part]:
        return f"{part} may not import {PACKAGE}.{target}, only {sorted(ALLOWED[part]) or 'nothing of the package'}"
    return None


def _is_light(top: str) -> bool:
    return top in sys.stdlib_module_names or top in {"numpy", "cv2", PACKAGE}


def test_the_code_keeps_to_the_architecture() -> None:
    assert not complaints(ROOT), "\n" + "\n".join(complaints(ROOT))


def test_there_is_code_to_check() -> None:
    parts = {part_of(path) for path in sources(ROOT)}
    assert {"errors", "files", "contract", "metrics", "model", "__init__"} <= parts


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("dpt_deploy/errors.py", "from .files import sha256"),
        ("dpt_deploy/contract.py", "def f():\n    from .bundle import Bundle"),
        ("dpt_deploy/contract.py", "from .cli import run"),
        ("dpt_deploy/bundle.py", "from . import runtime"),
        ("dpt_deploy/bundle.py", "from dpt_deploy import load"),
        ("dpt_deploy/bundle.py", "import rich"),
        ("dpt_deploy/bundle.py", "from .parity import ParityReport, Stage"),
        ("dpt_deploy/model/frame.py", "from ..metrics import summarise"),
        ("dpt_deploy/model/frame.py", "from ..runtime.image import resize"),
        ("dpt_deploy/runtime/session.py", "def f():\n    from ..model import MultiTaskDPT"),
        ("dpt_deploy/runtime/session.py", "def f():\n    import dpt_deploy.model.frame"),
        ("dpt_deploy/runtime/session.py", "import importlib\nimportlib.import_module('dpt_deploy.model')"),
        ("dpt_deploy/runtime/session.py", "import importlib\nimportlib.import_module('..model', __package__)"),
        ("dpt_deploy/runtime/session.py", "if TYPE_CHECKING:\n    from ..model import MultiTaskDPT"),
        ("dpt_deploy/runtime/session.py", "try:\n    import torch\nexcept ImportError:\n    torch = None"),
        ("dpt_deploy/runtime/session.py", "import onnxruntime"),
        ("dpt_deploy/parity/compare.py", "from ..build.engine import build"),
        ("dpt_deploy/parity/compare.py", "from torch import nn"),
        ("dpt_deploy/parity/compare.py", "def f():\n    from ..export.rejudge import rejudge"),
        ("dpt_deploy/parity/__main__.py", "from ..export.rejudge import rejudge"),
        ("dpt_deploy/build/engine.py", "from ..model import MultiTaskDPT"),
        ("dpt_deploy/build/engine.py", "from ..export import graph"),
        ("dpt_deploy/predict/__main__.py", "from ..parity import compare"),
        ("dpt_deploy/export/graph.py", "from ..cli import run"),
        ("dpt_deploy/export/graph.py", "import train.losses"),
        ("dpt_deploy/__init__.py", "from .export import export"),
        ("dpt_deploy/__init__.py", "import torch"),
        ("dpt_deploy/unplanned.py", "import os"),
        ("train/trainer.py", "from dpt_deploy.bundle import Bundle"),
        ("train/trainer.py", "from dpt_deploy import create_multitask_dpt_model"),
        ("train/trainer.py", "def f():\n    from dpt_deploy.runtime import Runtime"),
        ("train/evaluate.py", "from dpt_deploy.runtime import Runtime"),
        ("demo/__main__.py", "def f():\n    import dpt_deploy.export"),
        ("benchmarks/latency.py", "from dpt_deploy import export"),
        ("train/long.py", "x = 1\n" * (MOST_LINES + 1)),
    ],
)
def test_a_breach_is_found(tmp_path: Path, path: str, source: str) -> None:
    _tree(tmp_path, path, source)
    assert len(complaints(tmp_path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("dpt_deploy/__init__.py", "def __getattr__(name):\n    from .export import export"),
        ("dpt_deploy/__init__.py", "if TYPE_CHECKING:\n    from .export import export"),
        ("dpt_deploy/bundle.py", "import cv2, numpy\nfrom . import __version__\nfrom .errors import DptError"),
        ("dpt_deploy/runtime/torch.py", "import torch\nfrom .session import Session"),
        ("dpt_deploy/runtime/session.py", "def f():\n    import torch"),
        ("dpt_deploy/build/__main__.py", "from ..cli import run\nfrom ..parity import compare"),
        ("dpt_deploy/parity/__main__.py", "def f():\n    from ..export.rejudge import rejudge"),
        ("dpt_deploy/export/graph.py", "import torch\nfrom ..model import frame\nfrom ..build import engine"),
        ("dpt_deploy/model/dpt.py", "import timm\nfrom ..contract import Contract\nfrom .heads import create_head"),
        ("train/__main__.py", "from dpt_deploy.cli import run\nfrom .losses import berhu\nimport train.trainer"),
        ("train/evaluate.py", "def f():\n    from dpt_deploy.runtime import Runtime"),
        ("demo/__main__.py", "import dpt_deploy\nfrom dpt_deploy import load"),
    ],
)
def test_what_the_architecture_allows_passes(tmp_path: Path, path: str, source: str) -> None:
    _tree(tmp_path, path, source)
    assert complaints(tmp_path) == []


def _tree(root: Path, path: str, source: str) -> None:
    for folder in ("runtime", "model", "export", "build", "parity"):
        (root / PACKAGE / folder).mkdir(parents=True)
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(source + "\n", encoding="utf-8")
