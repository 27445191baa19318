"""Check which files of a bundle are intact and compatible with this machine."""

from __future__ import annotations

import dataclasses
import shlex

from .. import backends
from ..backends import Check
from ..core.bundle import MODEL_CARD, Bundle
from ..core.manifest import Artifact


def check_bundle(bundle: Bundle) -> list[Check]:
    """One check per artefact in manifest order, and a warning if there is no engine."""
    checks = [_check(bundle, artifact) for artifact in bundle.artifacts if artifact.kind != "data"]
    if not bundle.find("engine"):
        checks.append(Check("engines", "warning", "the bundle has none", f"python -m dpt_deploy.build {bundle.folder}"))
    return checks


def rebuild_command(bundle: Bundle, artifact: Artifact) -> str:
    """The command that recreates an artefact with its original options."""
    folder = shlex.quote(str(bundle.folder))
    if artifact.kind == "engine":
        return _build_command(folder, artifact)
    if artifact.kind == "cache":
        return f"python -m dpt_deploy.build {folder} --builder tensorrt"
    if artifact.kind == "report":
        return f"python -m dpt_deploy.parity {folder}"
    if bundle.manifest.command:
        return bundle.manifest.command
    return bundle.remake_command


def _check(bundle: Bundle, artifact: Artifact) -> Check:
    if damage := bundle.damage(artifact):
        if artifact.file == MODEL_CARD and (bundle.folder / MODEL_CARD).is_file():
            return Check(artifact.file, "ok", "edited by hand, which is allowed")
        return Check(artifact.file, "failed", damage, rebuild_command(bundle, artifact))
    size = f"intact, {artifact.bytes / 1e6:.1f} MB"
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
    words += ["--turing"] if details.builder == "tensorrt-rtx" and details.compute_capability else []
    words += ["--hardware-compatible"] if details.hardware_compatible else []
    return " ".join(words)
