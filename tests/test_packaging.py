"""Installing does what the pages say: a small base, one ONNX Runtime at most, the versions that were tested."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import dpt_deploy

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
ONNX_RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}
HEAVY = ["torch", "torchvision", "timm", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "polygraphy", "tyro"]


def direct(extras: set[str]) -> list[Requirement]:
    """What the project itself asks for with these extras; its references to itself are followed."""
    wanted, found, seen = [*PROJECT["dependencies"], f"dpt-deploy[{','.join(extras)}]"], [], set()
    while wanted:
        requirement = Requirement(wanted.pop())
        if canonicalize_name(requirement.name) != PROJECT["name"]:
            found.append(requirement)
            continue
        for extra in requirement.extras - seen:
            seen.add(extra)
            wanted += EXTRAS[extra]
    return found


def closure(extras: set[str]) -> set[str]:
    """Names of all packages these extras bring, as far as the installed packages' metadata tell."""
    wanted, names, seen = direct(extras), set(), set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        names.add(name)
        key = (name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            asked = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:
            continue
        for line in asked:
            one = Requirement(line)
            environments = [{"extra": extra} for extra in (requirement.extras or {""})]
            if one.marker is None or any(one.marker.evaluate(environment) for environment in environments):
                wanted.append(one)
    return names


def documented_combinations() -> dict[str, set[str]]:
    """Every set of extras that a page, a message or the Makefile tells people to install, and where."""
    found = {}
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile", ROOT / "constraints.txt"]
    for path in [*pages, *(ROOT / "dpt_deploy").rglob("*.py"), *(ROOT / "train").rglob("*.py")]:
        where, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        for names in re.findall(r"(?:dpt-deploy|-e ['\"]?\.)\[([a-z][a-z,-]*)\]", text):
            found[f"{where}: {names}"] = set(names.split(","))
        for names in re.findall(r"DPT_EXTRAS *\??= *([a-z][a-z,-]*)", text):
            found[f"{where}: {names}"] = set(names.split(","))
    return found


def constraints() -> dict[str, str]:
    """Canonical name -> exact version, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    inexact = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    assert not inexact, f"each line names one exact version, unlike {inexact}"
    found = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in pins}
    assert len(found) == len(pins), "a package stands in constraints.txt twice"
    return found


def test_base_install_is_numpy_and_opencv() -> None:
    assert {requirement.name for requirement in direct(set())} == {"numpy", "opencv-python"}


def test_extras_are_the_documented_ones() -> None:
    assert set(EXTRAS) == {"cli", "cpu", "gpu", "export", "tensorrt", "tensorrt-rtx", "train", "dev"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_at_most_one_onnx_runtime(extra: str) -> None:
    expected = {"cpu": {"onnxruntime"}, "gpu": {"onnxruntime-gpu"}}.get(extra, set())
    assert closure({extra}) & ONNX_RUNTIMES == expected


@pytest.mark.parametrize("where", documented_combinations())
def test_a_documented_combination_exists_and_brings_at_most_one_onnx_runtime(where: str) -> None:
    extras = documented_combinations()[where]
    assert extras <= set(EXTRAS), f"no such extra: {extras - set(EXTRAS)}"
    assert len(closure(extras) & ONNX_RUNTIMES) <= 1


def test_the_two_providers_together_would_be_noticed() -> None:
    assert closure({"cpu", "gpu"}) & ONNX_RUNTIMES == ONNX_RUNTIMES


def test_the_makefile_installs_one_provider() -> None:
    combinations = [extras for where, extras in documented_combinations().items() if where.startswith("Makefile")]
    assert combinations
    assert all(len(closure(extras) & ONNX_RUNTIMES) == 1 for extras in combinations)


@pytest.mark.parametrize("extra", ["cpu", "gpu", "tensorrt", "tensorrt-rtx", "export", "train"])
def test_every_extra_that_runs_something_has_the_command_line(extra: str) -> None:
    assert {requirement.name for requirement in direct({"cli"})} <= {one.name for one in direct({extra})}


def test_messages_name_extras_that_exist() -> None:
    named = {}
    for path in (ROOT / "dpt_deploy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("missing_package"):
                extra = next((word.value for word in node.keywords if word.arg == "extra"), None)
                extra = extra or (node.args[1] if len(node.args) > 1 else None)
                if isinstance(extra, ast.Constant):
                    named[f"{path.name}:{node.lineno}"] = extra.value
    unknown = {where: extra for where, extra in named.items() if not set(extra.split(",")) <= set(EXTRAS)}
    assert not unknown


def test_every_direct_dependency_has_a_tested_version_within_its_bounds() -> None:
    pins = constraints()
    for requirement in direct(set(EXTRAS)):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} has no exact version in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{requirement} excludes the tested {pins[name]}"


def test_this_environment_has_the_tested_versions() -> None:
    """A test run speaks for constraints.txt only if it ran with what stands there."""
    other = {}
    for requirement in direct({"export", "train", "dev"}):
        pinned, installed = constraints()[canonicalize_name(requirement.name)], metadata.version(requirement.name)
        if Version(installed) != Version(pinned):
            other[requirement.name] = f"installed {installed}, tested {pinned}"
    assert not other, "run `make setup`"


def test_tested_versions_agree_with_each_other() -> None:
    """pip refuses a set of constraints in which one package excludes another's version; say it before pip does."""
    pins, conflicts = constraints(), []
    for name in pins:
        try:
            asked, version = metadata.requires(name) or [], metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if version != pins[name]:
            continue
        for one in map(Requirement, asked):
            wanted = one.marker is None or one.marker.evaluate({"extra": ""})
            pinned = pins.get(canonicalize_name(one.name))
            if wanted and pinned and not one.specifier.contains(pinned, prereleases=True):
                conflicts.append(f"{name} {version} asks for {one}, and constraints.txt has {pinned}")
    assert not conflicts


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, dpt_deploy; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_the_version_is_written_once() -> None:
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in PROJECT and "version" in PROJECT["dynamic"]
    assert whole["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "dpt_deploy.__version__"}
    assert Version(dpt_deploy.__version__).release
    assert f"{dpt_deploy.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files in a folder of their own: setuptools leaves build folders where it builds."""
    folder = tmp_path_factory.mktemp("source")
    for name in _listed():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def _listed() -> list[str]:
    """Files that git has or would add, as they are in the folder now."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.slow
def test_a_wheel_holds_the_packages_and_their_data(copy: Path, tmp_path: Path) -> None:
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, copy]
    subprocess.run(wheel, check=True, capture_output=True)
    (built,) = tmp_path.glob("dpt_deploy-*.whl")
    listing = subprocess.run([sys.executable, "-m", "zipfile", "-l", built], check=True, capture_output=True, text=True)
    inside = {line.split()[0] for line in listing.stdout.splitlines()[1:]}
    tracked = [name for name in _listed() if name.startswith(("dpt_deploy/", "train/"))]
    shipped = [name for name in tracked if name.endswith((".py", ".html")) or "/cpp/" in name]
    assert shipped
    assert not set(shipped) - inside, "package-data in pyproject.toml leaves these out"
    assert not [name for name in inside if not name.startswith(("dpt_deploy/", "train/", "dpt_deploy-"))]


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_pip_resolves_the_extra(extra: str, copy: Path, tmp_path: Path) -> None:
    """What pip itself would install, under the constraints, into an empty environment."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--report", report, "-c", ROOT / "constraints.txt", f"{copy}[{extra}]" if extra else copy]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if done.returncode and extra == "tensorrt" and "tensorrt_cu" in done.stderr:
        pytest.skip("TensorRT's libraries come from NVIDIA's package index, which does not answer here")
    if done.returncode and re.search(r"NewConnectionError|NameResolutionError|ConnectTimeout", done.stderr):
        pytest.skip("no package index answers here")
    assert done.returncode == 0, done.stderr
    installed = {canonicalize_name(one["metadata"]["name"]): one["metadata"]["version"]
                 for one in json.loads(report.read_text(encoding="utf-8"))["install"]}
    assert len(ONNX_RUNTIMES & set(installed)) == (extra in {"cpu", "gpu"})
    asked = {canonicalize_name(requirement.name) for requirement in direct({extra} - {""})}
    assert {name: installed[name] for name in asked} == {name: constraints()[name] for name in asked}
    if not extra:
        assert set(installed) == {"dpt-deploy", "numpy", "opencv-python"}
