"""The lower bounds of pyproject.toml, each tried in an environment with the lowest versions that it allows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_packaging import EXTRAS, ROOT, direct
from tests.tiny import tiny_bundle  # noqa: F401

# These need a GPU, or a package index of their own, to run. That pip can resolve the bounds is tried all the same.
RESOLVED_ONLY = {"gpu", "tensorrt", "tensorrt-rtx", "docs", "dev"}
OFFLINE = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeout|ConnectionError")


def lowest(extra: str) -> list[str]:
    """The requirements of an extra, each held to the series of its lower bound: >=1.23 becomes ==1.23.*"""
    found = []
    for requirement in direct({extra} - {""}):
        (bound,) = (part.version for part in requirement.specifier if part.operator == ">=")
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        found.append(f"{requirement.name}{extras}=={bound}.*")
    return found


def pip(python: Path | str, *arguments: str, extra: str) -> None:
    done = subprocess.run([python, "-m", "pip", *arguments], capture_output=True, text=True)
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip("no package index answers here")
    if done.returncode and extra == "tensorrt" and "tensorrt" in done.stderr:
        pytest.skip("TensorRT's libraries come from NVIDIA's package index, which does not answer here")
    assert done.returncode == 0, f"{extra}: {done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("extra", sorted(RESOLVED_ONLY))
def test_pip_resolves_the_lower_bounds(extra: str) -> None:
    pip(sys.executable, "install", "--dry-run", "--ignore-installed", "--quiet", *lowest(extra), extra=extra)


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", *sorted(set(EXTRAS) - RESOLVED_ONLY)])
def test_the_lower_bounds_work(extra: str, tiny_bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    """Install them, and use what the extra is for."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip(python, "install", "--quiet", *lowest(extra), extra=extra)

    def run(*arguments: str | Path, expected: int = 0) -> str:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([python, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True,
                              text=True)
        assert done.returncode == expected, f"{arguments}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    run("-c", "import dpt_deploy; from dpt_deploy.core.bundle import Bundle; "
              f"assert Bundle.open({str(tiny_bundle)!r}).contract")
    if extra:
        run("-m", "dpt_deploy", "--version")
    if extra == "cpu":
        for backend in ("onnxruntime-cpu", "openvino"):
            run("-c", f"import dpt_deploy, numpy; r = dpt_deploy.load({str(tiny_bundle)!r}, backend={backend!r}); "
                      "assert numpy.isfinite(r(numpy.zeros((90, 70, 3), numpy.uint8)).depth).all()")
    if extra == "export":
        run("-c", "from pathlib import Path; from dpt_deploy.export.graph import export_graph; "
                  "from dpt_deploy.model import create_multitask_dpt_model; "
                  "m = create_multitask_dpt_model('test_vit', features=32).eval(); "
                  "export_graph(m, m.contract(), Path('m.onnx'), 23, {})")
    if extra == "points":
        run("-c", "import numpy; from dpt_deploy.geometry import Intrinsics, point_cloud, triangulate; "
                  "from dpt_deploy.geometry.files import write_points; "
                  "cloud = point_cloud(numpy.ones((4, 4)), Intrinsics.guess((4, 4))); "
                  "write_points('a.glb', cloud); write_points('b.glb', triangulate(cloud))")
    if extra == "client":
        for scheme in ("grpc", "http"):
            run("-c", "from dpt_deploy.client import Client; from dpt_deploy import DptError\n"
                      f"try: Client('{scheme}://localhost:1')\n"
                      "except DptError as e: assert 'gave no answer' in str(e), e\n"
                      "else: raise SystemExit('something answered')")
    if extra == "train":
        run("-m", "dpt_deploy", "synthesize", "--help")
        run("-m", "dpt_deploy", "train", "--help")
