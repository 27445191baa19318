"""A name that is too long for the file system is one sentence, wherever a user can give one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dpt_deploy.build import EngineOptions
from dpt_deploy.build.__main__ import BuildConfig
from dpt_deploy.build.__main__ import main as build
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import DptError
from dpt_deploy.core.files import existing_file, locked
from dpt_deploy.core.manifest import Manifest
from dpt_deploy.core.replacement import check_free
from dpt_deploy.doctor.__main__ import DoctorConfig
from dpt_deploy.doctor.__main__ import main as doctor
from dpt_deploy.export.calibration_images import calibration_items
from dpt_deploy.export.config import ExportConfig, check_options
from dpt_deploy.export.importing import ImportConfig, import_model
from dpt_deploy.export.pytorch_reference import parity_inputs
from dpt_deploy.parity import load_budget
from dpt_deploy.parity.__main__ import ParityConfig
from dpt_deploy.parity.__main__ import main as parity
from dpt_deploy.serve.__main__ import TritonConfig
from dpt_deploy.serve.__main__ import main as triton
from tests.foreign.test_foreign import foreign_model
from tests.tiny import tiny_bundle

__all__ = ["tiny_bundle"]
NONE = EngineOptions(builder="none")
INPUTS: dict[str, Callable[[Path], object]] = {
    "export CHECKPOINT": lambda long: check_options(ExportConfig(long, engines=NONE)),
    "--images": lambda long: parity_inputs(long, 8),
    "--calibrate": calibration_items,
    "--budget": load_budget,
    "--out": lambda long: locked(long, create=True).__enter__(),
    "Bundle.create": lambda long: Bundle.create(long, Manifest(name="x", contract=Contract().to_json())).save(),
    "build": lambda long: build(BuildConfig(long)),
    "parity": lambda long: parity(ParityConfig(long)),
    "doctor": lambda long: doctor(DoctorConfig(long)),
    "import MODEL": lambda long: import_model(ImportConfig(long, engines=NONE)),
    "a file": lambda long: existing_file(long, "a file"),
}


@pytest.mark.parametrize("what", INPUTS)
@pytest.mark.parametrize("name", ["n" * 300, "n" * 5000], ids=["a name", "a path"])
def test_names_that_are_too_long(tmp_path: Path, what: str, name: str) -> None:
    with pytest.raises(DptError) as raised:
        INPUTS[what](tmp_path / name)
    assert str(raised.value).count("\n") == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["n" * 300, "n" * 5000], ids=["a name", "a path"])
def test_output_folders_whose_names_are_too_long(tmp_path: Path, tiny_bundle: Path, name: str) -> None:
    model = foreign_model(tmp_path / "other.onnx")
    (tmp_path / "about.yaml").write_text("outputs: {depth: {output: far}}")
    check_free(tmp_path / name)
    with pytest.raises(DptError, match=r"cannot write .*Choose a shorter name"):
        import_model(ImportConfig(model, str(tmp_path / "about.yaml"), tmp_path / name, NONE), lambda line: None)
    with pytest.raises(DptError):
        triton(TritonConfig(tiny_bundle, out=tmp_path / name))
    assert {path.name for path in tmp_path.iterdir()} == {"other.onnx", "about.yaml"}
