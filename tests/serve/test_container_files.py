"""The container files are YAML, name ports and probes that Triton has, and fit each other."""

from __future__ import annotations

from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "triton"
READY, LIVE = "/v2/health/ready", "/v2/health/live"


def test_compose() -> None:
    service = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["triton"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "--model-repository=/models" in service["command"] and service["volumes"][0].endswith(":/models:ro")
    assert service["healthcheck"]["test"][-1].endswith(READY) and service["shm_size"]


def test_kubernetes() -> None:
    deployment, service = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": READY, "readiness": READY, "liveness": LIVE}
    assert {"memory", "nvidia.com/gpu"} <= set(container["resources"]["limits"])
    exit_timeout = next(int(one.split("=")[1]) for one in container["args"] if one.startswith("--exit-timeout"))
    assert pod["terminationGracePeriodSeconds"] > exit_timeout
    assert {one["name"] for one in pod["volumes"]} == {one["name"] for one in container["volumeMounts"]}
    assert {one["targetPort"] for one in service["spec"]["ports"]} == {one["name"] for one in container["ports"]}
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
