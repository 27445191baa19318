"""Which files of a bundle are intact and fit this machine, and the command that mends the rest."""

from __future__ import annotations

import dataclasses
import shlex

from .. import backends
from ..core.bundle import MODEL_CARD, Bundle
from ..core.check import Check
from ..core.errors import BadBundle
from ..core.manifest import Artifact


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
    if bundle.manifest.command:
        return bundle.manifest.command
    return f"python -m dpt_deploy.export {shlex.quote(bundle.manifest.checkpoint.file)} --out {folder}"


def _check(bundle: Bundle, artifact: Artifact) -> Check:
    try:
        path = bundle.path(artifact)
    except BadBundle as error:
        if artifact.file == MODEL_CARD and (bundle.folder / MODEL_CARD).is_file():
            return Check(artifact.file, "ok", "edited since it was written, as it is meant to be")
        finding = str(error).partition(". ")[0].removeprefix(f"{bundle.folder}/")
        return Check(artifact.file, "failed", finding, rebuild_command(bundle, artifact))
    size = f"intact, {path.stat().st_size / 1e6:.1f} MB"
    found = [check for backend in backends.registered() if (check := backend.examine(bundle, artifact)) is not None]
    if not found:
        return Check(artifact.file, "ok", size)
    remedy = rebuild_command(bundle, artifact) if found[0].status in ("failed", "warning") else ""
    return dataclasses.replace(found[0], finding=f"{size}; {found[0].finding}", remedy=found[0].remedy or remedy)


def _build_command(folder: str, artifact: Artifact) -> str:
    details = artifact.details
    words = ["python -m dpt_deploy.build", folder, "--builder", details.builder, "--precisions", artifact.precision]
    for name, shapes in details.profile.items():
        words += ["--batch-range", f"{shapes.min[0]},{shapes.max[0]}"]
        if name == "frame":
            (min_h, min_w), (max_h, max_w) = shapes.min[1:3], shapes.max[1:3]
            words += ["--frame-size-range", f"{min_h}x{min_w},{max_h}x{max_w}"]
    words += ["--weights", details.weights] if details.weights != "fixed" else []
    words += ["--version-compatible"] if details.version_compatible else []
    words += ["--hardware-compatible"] if details.hardware_compatible else []
    return " ".join(words)
