"""Installing does what the pages say: a small base, one ONNX Runtime at most, the versions that were tested."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import dpt_deploy
from dpt_deploy.core.install import install_command
from dpt_deploy.model import save_checkpoint
from dpt_deploy.report.writers import write_png
from tests.tiny import lively_model, photo

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
ONNX_RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}
BASE = {"numpy", "opencv-python", "packaging", "pydantic"}
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
        for names in re.findall(r"(?:dpt-deploy|[ '\"]\.)\[([a-z][a-z,-]*)\]", text):
            found[f"{where}: {names}"] = set(names.split(","))
        for names in re.findall(r"DPT_EXTRAS *\??= *([a-z][a-z,-]*)", text):
            found[f"{where}: {names}"] = set(names.split(","))
    return found


def constraints_file(extra: str) -> str:
    """The file with the tested versions of an extra: the client's exclude those of the others."""
    return "constraints-serve.txt" if extra == "client" else "constraints.txt"


def constraints(file: str = "constraints.txt") -> dict[str, str]:
    """Canonical name -> exact version, from a file of constraints."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    inexact = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    assert not inexact, f"each line names one exact version, unlike {inexact}"
    found = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in pins}
    assert len(found) == len(pins), f"a package stands in {file} twice"
    return found


def test_base_install_is_small() -> None:
    assert {requirement.name for requirement in direct(set())} == BASE


def test_extras_are_the_documented_ones() -> None:
    assert set(EXTRAS) == {"cli", "cpu", "gpu", "export", "tensorrt", "tensorrt-rtx", "train", "batch", "ray", "hub",
                           "view", "points", "video", "client", "docs", "dev"}


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
    tested = {"constraints.txt": set(EXTRAS) - {"client"}, "constraints-serve.txt": {"client", "cpu"}}
    for file, extras in tested.items():
        pins = constraints(file)
        for requirement in direct(extras):
            name = canonicalize_name(requirement.name)
            assert name in pins, f"{name} has no exact version in {file}"
            assert requirement.specifier.contains(pins[name]), f"{requirement} excludes the tested {pins[name]}"


def test_this_environment_has_the_tested_versions() -> None:
    """A test run speaks for constraints.txt only if it ran with what stands there."""
    other = {}
    for requirement in direct({"export", "train", "docs", "dev"}):
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
    assert whole["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "dpt_deploy.core.version.__version__"}
    assert Version(dpt_deploy.__version__).release
    assert f"{dpt_deploy.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_install_commands_are_made_in_one_place() -> None:
    """There is no distribution on an index: "pip install dpt-deploy" would install whatever takes that name."""
    folders = ["dpt_deploy", "train", "benchmarks", "demo"]
    code = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.name != "install.py"]
    written = [f"{path.relative_to(ROOT)}: {line.strip()}"
               for path in code for line in path.read_text(encoding="utf-8").splitlines()
               if re.search(r"pip3? install\b|dpt-deploy\[", line)]
    assert not written, "call dpt_deploy.core.install.install_command instead"
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert not [str(path) for path in pages if "pip install 'dpt-deploy" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_an_install_command_names_the_packages_themselves(extra: str) -> None:
    command = install_command(extra)
    named = {Requirement(word).name for word in shlex.split(command.partition(" (")[0])[4:]}
    assert command.startswith("python -m pip install ") and named
    assert named <= {requirement.name for requirement in direct({extra} - {""})}
    assert ("NVIDIA's package index" in command) == (extra == "tensorrt")


def test_an_install_command_names_only_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"torch": "2.9.0", "torchvision": "0.24.0", "timm": "1.0.0", "onnx": "1.18", "onnxscript": "0.5.4"}

    def version(name: str) -> str:
        if name in present:
            return present[name]
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    command = install_command("export")
    assert "'timm>=1.0.20'" in command and "'safetensors>=0.5'" in command and "torch" not in command
    assert install_command("export", "torch", flags=("--upgrade",)).endswith("install --upgrade 'torch>=2.9'")


class Built(NamedTuple):
    """The wheel and the sdist of the working tree, and the folder that the wheel was installed into."""

    wheel: Path
    sdist: Path
    folder: Path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built from a copy, because setuptools leaves folders where it builds."""
    source, out = copied(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("dist")
    backend("build_sdist", source, out)
    wheel = backend("build_wheel", source, out)
    folder = tmp_path_factory.mktemp("installed")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", folder, wheel, cwd=out)
    (sdist,) = out.glob("*.tar.gz")
    return Built(wheel, sdist, folder)


def copied(folder: Path) -> Path:
    """The project's files in a folder of their own."""
    for name in listed():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def listed() -> list[str]:
    """Files that git has or would add, as they are in the folder now."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in found.split("\0") if name and (ROOT / name).is_file()]


def backend(hook: str, source: Path, out: Path) -> Path:
    """Call a hook of the build backend in `source`; what it made, in `out`."""
    code = f"import sys; from setuptools.build_meta import {hook}; print({hook}(sys.argv[1]))"
    done = run("-c", code, out, cwd=source)
    return out / done.stdout.splitlines()[-1]


def run(*arguments: str | Path, cwd: Path, expected: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `cwd` without the clone on its path, and check the exit status."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == expected, f"{arguments}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def members(wheel: Path) -> dict[str, bytes]:
    """Name -> contents of each file of a wheel; RECORD, which only lists the others, aside."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def test_the_wheel_holds_every_tracked_file_and_no_package_of_a_common_name(built: Built) -> None:
    inside = {name for name in members(built.wheel) if ".dist-info/" not in name}
    tracked = {re.sub("^train/", "dpt_train/", name) for name in listed() if name.startswith(("dpt_deploy/", "train/"))}
    assert tracked
    assert tracked == inside, "package-data in pyproject.toml, or the packages in setup.py, differ from the files"


def test_the_sdist_builds_the_same_wheel(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    again = members(backend("build_wheel", source, tmp_path))
    assert again == members(built.wheel)


def test_the_installed_commands_run_to_their_end(built: Built, tmp_path: Path) -> None:
    """From a folder elsewhere, with the installed packages alone: a file that the wheel lacks would be found here."""
    save_checkpoint(tmp_path / "tiny.pth", lively_model())
    write_png(tmp_path / "photo.png", photo(120, 90))
    (tmp_path / "train.py").write_text("raise SystemExit('the folder has a train.py of its own')")
    path = {"PYTHONPATH": str(built.folder)}

    def dpt(*arguments: str, expected: int = 0) -> str:
        return run("-m", "dpt_deploy", *arguments, cwd=tmp_path, expected=expected, **path).stdout

    where = run("-c", "import dpt_deploy; print(dpt_deploy.__file__)", cwd=tmp_path, **path).stdout
    assert Path(where.strip()).is_relative_to(built.folder)
    assert dpt("--version").strip() == f"dpt-deploy {dpt_deploy.__version__}"
    dpt("export", "tiny.pth", "--out", "tiny", "--builder", "none", "--precision", "fp32", "--images", "photo.png")
    assert (tmp_path / "tiny" / "report.html").is_file()
    assert json.loads(dpt("parity", "tiny", "--json"))["passed"]
    dpt("predict", "tiny", "photo.png", "--out", "maps")
    assert (tmp_path / "maps" / "photo.npz").is_file()
    assert json.loads(dpt("doctor", "tiny", "--json"))["passed"]
    assert "--data-root" in dpt("train", "--help")
    assert "train.py" not in dpt("synthesize", "--help")
    plugin = ["-m", "pytest", "-p", "dpt_deploy.pytest_plugin", "--dpt-bundle", "tiny", "-q", "-p", "no:cacheprovider"]
    assert "passed" in run(*plugin, cwd=tmp_path, **path).stdout


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_pip_resolves_the_extra(extra: str, tmp_path: Path) -> None:
    """What pip itself would install, under the constraints, into an empty environment."""
    copy = copied(tmp_path / "source")
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--report", report, "-c", ROOT / constraints_file(extra), f"{copy}[{extra}]" if extra else copy]
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
    assert {name: installed[name] for name in asked} == \
        {name: constraints(constraints_file(extra))[name] for name in asked}
    if not extra:
        assert {"dpt-deploy", *BASE} <= set(installed) and not set(installed) & set(HEAVY)
