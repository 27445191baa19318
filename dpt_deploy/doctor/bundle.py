"""What of a bundle is intact and fits this machine, and the command that mends the rest."""

from __future__ import annotations

import importlib
import importlib.util
import shlex

from ..backends import device
from ..backends.tensorrt import MODULES, misfit
from ..core.bundle import CARD, Artifact, Bundle
from ..core.errors import BadBundle
from . import Check


def check_bundle(bundle: Bundle) -> list[Check]:
    """One check for each artefact, in manifest order."""
    checks = [_check(bundle, artifact) for artifact in bundle.artifacts if artifact.kind != "data"]
    if not bundle.find("engine"):
        checks.append(Check("engines", "warning", "the bundle has none", f"python -m dpt_deploy.build {bundle.folder}"))
    return checks


def rebuild_command(bundle: Bundle, artifact: Artifact) -> str:
    """The exact command that makes an artefact again, with the options it was made with."""
    folder = shlex.quote(str(bundle.folder))
    if artifact.kind == "engine":
        return _build_command(folder, artifact)
    if artifact.kind == "cache":
        return f"python -m dpt_deploy.build {folder} --builder tensorrt"
    if artifact.kind == "report":
        return f"python -m dpt_deploy.parity {folder}"
    command = bundle.header.get("command", "")
    if "dpt_deploy.export" in command:
        return command
    source = bundle.header.get("checkpoint", {}).get("file", "best_model.pth")
    return f"python -m dpt_deploy.export {shlex.quote(source)} --out {folder}"


def _check(bundle: Bundle, artifact: Artifact) -> Check:
    try:
        path = bundle.path(artifact)
    except BadBundle as error:
        if artifact.file == CARD and (bundle.folder / CARD).is_file():
            return Check(artifact.file, "ok", "edited since it was written, as it is meant to be")
        finding = str(error).partition(". ")[0].removeprefix(f"{bundle.folder}/")
        return Check(artifact.file, "failed", finding, rebuild_command(bundle, artifact))
    size = f"intact, {path.stat().st_size / 1e6:.1f} MB"
    return _fits(bundle, artifact, size) if artifact.kind == "engine" else Check(artifact.file, "ok", size)


def _fits(bundle: Bundle, artifact: Artifact, size: str) -> Check:
    """An intact engine against its graph, and against the builder and the GPU that are here."""
    details, command = artifact.details, rebuild_command(bundle, artifact)
    graphs = [graph.sha256 for graph in bundle.find("onnx")]
    if details.get("made_from") not in graphs:
        return Check(artifact.file, "failed", f"{size}; made from a graph that is no longer in the bundle", command)
    if details.get("certificate", {}).get("status") == "failed":
        return Check(artifact.file, "failed", f"{size}; its certificate failed", command)
    installed = _version(MODULES[details["builder"]])
    if installed is None:
        return Check(artifact.file, "not checked", f"{size}; {details['builder']} is not installed here")
    if why := misfit(bundle, artifact, installed, device.compute_capability()):
        return Check(artifact.file, "warning", f"{size}; {why}", command)
    if device.compute_capability() is None:
        return Check(artifact.file, "not checked", f"{size}; version fits; no GPU is visible to load it on")
    return Check(artifact.file, "ok", f"{size}; fits {details['builder']} {installed} and this GPU")


def _build_command(folder: str, artifact: Artifact) -> str:
    details = artifact.details
    words = ["python -m dpt_deploy.build", folder, "--builder", details["builder"], "--precision", artifact.precision]
    for name, shapes in details.get("profile", {}).items():
        low, high = shapes["min"], shapes["max"]
        words += ["--batch", str(low[0]), str(high[0])]
        if name == "frame":
            words += ["--frame-size", f"{low[1]}x{low[2]}", f"{high[1]}x{high[2]}"]
    words += ["--weights", details["weights"]] if "weights" in details else []
    words += [f"--{name.replace('_', '-')}" for name in ("version_compatible", "hardware_compatible")
              if details.get(name)]
    return " ".join(words)


def _version(module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.import_module(module).__version__
    except Exception:  # a broken library is a finding of the machine's checks
        return None
