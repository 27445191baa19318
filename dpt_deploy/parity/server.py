"""Judge the maps that a Triton server gives, through the client: the same cases, budgets and findings as any stage."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np

from ..client import Client
from ..core import metrics
from ..core.bundle import Bundle
from ..core.compact import Form
from ..core.errors import BadInput
from ..core.exhibit import Exhibit
from ..core.manifest import Artifact
from ..core.verdict import Budget, Stage, StageId, StageKind
from .compare import Run, compare
from .reference import Reference

KEYS = {"fp32": "fp32", "int8": "int8", "fp8": "int8"}


def judge_server(
    bundle: Bundle, address: str, model: str | None, reference: Reference, budget: Budget,
    on_exhibit: Callable[[Exhibit], None] = lambda exhibit: None, progress: Callable[[str], None] = lambda name: None,
) -> list[Stage]:
    """The stages of a model that a server gives: one of the float32 maps, and more so that each compact form is in one.

    A stage of compact forms is held to the budget plus the error that the forms state.

    Args:
        bundle: The bundle that the model was written from.
        address: The server's, as for `Client`.
        model: The model's name. None takes the only one that `dpt triton` wrote.
        reference: The parity inputs.
        budget: Limits by precision, head and metric.
        on_exhibit: Called with every compared float32 map.
        progress: Called with the name of each stage before it runs.

    Raises:
        BadInput: The address or the name is not usable, or the server's model was written from another graph.
        BackendError: The server does not answer.
        MissingPackage: tritonclient is not installed.
    """
    stages = []
    with Client(address, model) as client:
        artifact = _graph(bundle, client)
        for forms in _sets(client):
            compact = [form for form in forms.values() if not form.plain]
            stage = _stage_id(artifact, compact)
            progress(str(stage))
            client.forms = forms
            notes = (f"computed by {client.address}, model {client.model.name}",)
            limits = budget
            if compact:
                added = allowance(compact, reference)
                limits = _raised(budget, stage.precision, added)
                errors = "; ".join(f"{form.output}: {form.error}" for form in compact)
                notes += (f"the limits are the budget plus the errors that the forms state ({errors})",)
            stages.append(compare(stage, _run(client), reference, limits, artifact.sha256, notes,
                                  (lambda exhibit: None) if compact else on_exhibit))
    return stages


def allowance(forms: list[Form], reference: Reference) -> dict[str, dict[str, float]]:
    """By head and metric, how far the stated errors of compact forms can move it: the worst over the cases."""
    found: dict[str, dict[str, float]] = {}
    for form in forms:
        if form.head == "normals":
            found["normals"] = dict.fromkeys(("mean", "p99", "max"), form.degrees)
        elif form.head == "alpha":
            found["alpha"] = dict.fromkeys(("mean", "max"), form.alpha)
    for form in (one for one in forms if one.head == "depth"):
        for case in reference.cases:
            maps = case.maps["frame"]
            depth = maps["depth"].astype(np.float64)
            moved = maps | {"depth": depth * (1 + form.depth_relative) + form.depth_metres}
            for head, measured, _ in metrics.parity(maps, moved):
                if head == "depth":
                    kept = found.setdefault(head, {})
                    kept |= {metric: max(kept.get(metric, 0.0), value) for metric, value in measured.items()
                             if metric not in metrics.AT_LEAST}
    return found


def _graph(bundle: Bundle, client: Client) -> Artifact:
    served = client.model
    for artifact in bundle.find("onnx", graph="frame", sha256=served.graph_sha256):
        return artifact
    raise BadInput(f"--server: model {served.name} of {client.address} was written from {served.graph} with SHA-256 "
                   f"{served.graph_sha256[:12]} of the bundle {served.bundle}, which {bundle.folder} does not have. "
                   f"Write it again with: dpt triton {bundle.folder}")


def _sets(client: Client) -> list[dict[str, Form]]:
    """The forms to judge together: first float32, then sets in which each compact form is once."""
    plain = client.model.chosen(None)
    compact = {head: [one for one in known if not one.plain] for head, known in client.model.forms.items()}
    count = max(map(len, compact.values()))
    return [plain] + [{head: found[i] if i < len(found) else plain[head] for head, found in compact.items()}
                      for i in range(count)]


def _stage_id(artifact: Artifact, compact: list[Form]) -> StageId:
    outputs = ",".join(form.output for form in compact)
    precision = artifact.precision or "fp32"
    return StageId(StageKind.SERVER, "frame", precision, f"triton {outputs}".strip(), "server", artifact.file,
                   f"Triton frame {precision}" + (f" {outputs}" if outputs else ""))


def _raised(budget: Budget, precision: str, added: dict[str, dict[str, float]]) -> Budget:
    raised = copy.deepcopy(budget)
    limits = raised[KEYS.get(precision, "fp16")]
    for head, allowed in added.items():
        for metric, value in allowed.items():
            if metric in limits.get(head, {}):
                limits[head][metric] += value
    return raised


def _run(client: Client) -> Run:
    def run(frames: np.ndarray) -> dict[str, np.ndarray]:
        predictions = client(frames)
        return {head: np.stack([getattr(one, head) for one in predictions]) for head in client.model.heads}

    return run
