"""What the client knows without a server: addresses, models and forms. The rest is in tests/serve/server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dpt_deploy.client import Client, ServedModel
from dpt_deploy.client.transport import ADDRESS, Transport
from dpt_deploy.core.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "name": "people", "max_batch_size": 4,
    "output": [{"name": name} for name in ("depth", "alpha", "depth_uint16_mm", "depth_float16", "alpha_uint8")],
    "parameters": {key: {"string_value": value} for key, value in {
        "max_pixels": "1000", "dpt_bundle": "people", "dpt_graph": "frame.fp32.onnx", "dpt_graph_sha256": "0" * 64,
        "dpt_precision": "fp32"}.items()},
}


def test_a_model_knows_its_forms() -> None:
    model = ServedModel.of(CONFIG)
    assert model.heads == ("depth", "alpha") and (model.max_batch, model.max_pixels) == (4, 1000)
    assert {head: one.name for head, one in model.chosen(None).items()} == {"depth": "float32", "alpha": "float32"}
    assert {head: one.output for head, one in model.chosen("smallest").items()} == {
        "depth": "depth_uint16_mm", "alpha": "alpha_uint8"}
    assert model.chosen({"depth": "float16"})["depth"].output == "depth_float16"
    for forms, message in (({"depth": "int8"}, "not as int8"), ({"normals": "int8"}, "heads among depth, alpha"),
                           ("small", '"smallest"')):
        with pytest.raises(BadInput, match=message):
            model.chosen(forms)


def test_a_model_says_what_its_depth_is() -> None:
    def config(kind: str) -> dict[str, object]:
        return CONFIG | {"parameters": CONFIG["parameters"] | {"dpt_depth": {"string_value": kind}}}

    assert ServedModel.of(CONFIG).depth_kind == "metric"  # written before the parameter was
    assert ServedModel.of(config("relative")).depth_kind == "relative"
    with pytest.raises(BadInput, match="metric, relative, received 'feet'"):
        ServedModel.of(config("feet"))


def parameters(**values: str) -> dict[str, object]:
    return CONFIG | {"parameters": CONFIG["parameters"] | {
        key: {"string_value": value} for key, value in values.items()}}


def test_a_model_says_for_which_focal_length_its_depth_is() -> None:
    assert ServedModel.of(CONFIG).frame_focal((480, 640)) == 0
    stretched = {"dpt_canonical_focal": "200.0", "dpt_input_size": "160x320", "dpt_resize": "stretch"}
    assert ServedModel.of(parameters(**stretched)).frame_focal((480, 640)) == 400
    boxed = ServedModel.of(parameters(**stretched | {"dpt_input_size": "160x160", "dpt_resize": "letterbox"}))
    assert boxed.frame_focal((320, 160)) == 400  # the frame is 80 pixels wide in the input
    for wrong in ({"dpt_canonical_focal": "nan"}, {"dpt_canonical_focal": "-1"}, {"dpt_canonical_focal": "far"},
                  {"dpt_input_size": "160"}, {"dpt_input_size": "0x160"}, {"dpt_resize": "cut"}):
        with pytest.raises(BadInput, match=r"dpt_canonical_focal above 0.*dpt triton BUNDLE"):
            ServedModel.of(parameters(**stretched | wrong))


def test_a_model_from_elsewhere_is_refused() -> None:
    for config in ({}, {"name": "other", "output": []}, CONFIG | {"parameters": {"max_pixels": {"string_value": "x"}}}):
        with pytest.raises(BadInput, match="a model that dpt triton wrote"):
            ServedModel.of(config)


@pytest.mark.parametrize("address", [
    "", "host", "host:", "host:x", "ftp://host:1", "http://host", "host:80:90", "a b:1", "http://host:8000/path"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(BadInput, match="address: expected HOST:PORT"):
        Transport(address, 1.0)


@pytest.mark.parametrize("address", [
    "host:8001", "10.0.0.1:8001", "grpc://host:8001", "https://host.name:443/", "[::1]:8001"])
def test_addresses(address: str) -> None:
    assert ADDRESS.fullmatch(address)


def test_a_missing_tritonclient_is_one_sentence_and_importing_is_light() -> None:
    code = ("import sys; from dpt_deploy.client import Client; from dpt_deploy import DptError\n"
            "assert not {'torch', 'onnx', 'onnxruntime', 'tritonclient', 'tyro'} & set(sys.modules)\n"
            "sys.modules['tritonclient'] = None\n"
            "try: Client('localhost:8001')\n"
            "except DptError as error: print(error)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tritonclient is needed to talk to a Triton server and is not installed. Run: ")
    assert "'tritonclient[grpc,http]>=2.60'" in done.stdout
    for timeout in (0, -1, "1", True):
        with pytest.raises(BadInput, match="timeout: expected seconds above 0"):
            Client("localhost:8001", timeout=timeout)
