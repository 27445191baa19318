"""Whatever a manifest, a report or a graph says: it is read, or refused in one sentence, without a traceback."""

from __future__ import annotations

import hashlib
import random
import shutil

import pytest

from dpt_deploy.core.bundle import PARITY_JSON, Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadBundle, ContractError
from dpt_deploy.core.manifest import Artifact
from tests.core.test_legacy import WRITTEN
from tests.graphs import field, model, tensor

COUNT = 1500
VALUES = ["null", "-1", "1e999", "99999999999999999999", '""', "[]", "{}", "true", "NaN", '"../x"', '"\\u0000"', "0.5",
          '"frame"', "[[[[", '{"a":', "\ud800", "18446744073709551616", '"5"', '["a"]', '{"id": 1}', "Infinity"]


def mutated(text, rng):
    """`text` with one to three edits at random places, one of which may be at a value of JSON."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(max(1, len(text)))
        match rng.randrange(6):
            case 0:
                text = text[:at] + chr(rng.randrange(256)) + text[at + 1 :]
            case 1:
                text = text[:at] + text[at + rng.randrange(40) :]
            case 2:
                text = text[:at] + text[at : at + rng.randrange(40)] + text[at:]
            case 3:
                text = text[:at] + rng.choice(VALUES) + text[at:]
            case _:
                colon = text.find('": ', at)
                end = min((i for i in (text.find(",", colon + 3), text.find("\n", colon + 3)) if i > 0), default=-1)
                if colon >= 0 and end > 0:
                    text = text[: colon + 3] + rng.choice(VALUES) + text[end:]
    return text


def one_sentence(error):
    text = str(error)
    assert "\n" not in text and "Traceback" not in text, text
    assert "Export" in text or "export" in text or "install" in text, text


@pytest.mark.parametrize("seed", range(2))
def test_a_mutated_manifest(tmp_path, seed):
    rng = random.Random(seed)
    text = (WRITTEN / "manifest.json").read_text()
    opened = 0
    for _ in range(COUNT):
        (tmp_path / "manifest.json").write_bytes(mutated(text, rng).encode("utf-8", "surrogatepass"))
        try:
            bundle = Bundle.open(tmp_path)
        except BadBundle as error:
            one_sentence(error)
            continue
        opened += 1
        assert isinstance(bundle.contract, Contract) and not any(map(bundle.intact, bundle.artifacts))
        bundle.manifest.to_json()
    assert 0 < opened < COUNT


def test_a_mutated_report(tmp_path):
    rng = random.Random(2)
    for path in WRITTEN.iterdir():
        shutil.copy(path, tmp_path)
    text = (WRITTEN / PARITY_JSON).read_text()
    bundle = Bundle.open(tmp_path)
    read = 0
    for _ in range(COUNT):
        (tmp_path / PARITY_JSON).write_bytes(mutated(text, rng).encode("utf-8", "surrogatepass"))
        if (report := bundle.last_report()) is not None:
            read += 1
            assert isinstance(report.verdict, str) and report.to_json()["stages"]
    assert 0 < read < COUNT


def test_a_mutated_graph(tmp_path):
    rng = random.Random(3)
    content = model(Contract(), field(1, field(5, field(6, field(5, tensor("weights.bin"))))), plan="{}")
    (tmp_path / "manifest.json").write_text((WRITTEN / "manifest.json").read_text())
    bundle = Bundle.open(tmp_path)
    bundle.update(artifacts=(), contract=Contract().to_json())
    (tmp_path / "weights.bin").write_bytes(b"weights")
    weights = bundle.add("weights.bin", "data")
    refused = 0
    for _ in range(COUNT):
        changed = mutated(content.decode("latin-1"), rng).encode("latin-1", "replace")
        (tmp_path / "model.fp32.onnx").write_bytes(changed)
        described = {"sha256": hashlib.sha256(changed).hexdigest(), "bytes": len(changed)}
        artifact = Artifact(file="model.fp32.onnx", kind="onnx", graph="model", precision="fp32", **described)
        bundle.update(artifacts=(artifact, weights))
        try:
            bundle.path(artifact)
        except (BadBundle, ContractError) as error:
            one_sentence(error)
            refused += 1
    assert COUNT / 2 < refused < COUNT
