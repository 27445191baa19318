"""python -m dpt_deploy.export.importing MODEL.onnx: a judged bundle around another project's ONNX model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from .. import cli
from ..core.errors import BadBundle, BadInput, BuildError, DptError
from ..core.image_files import MAX_PIXELS

with cli.needing("export"):
    import tyro

    from ..build import EngineOptions, benchmark_command, build_engines, choose_builder
    from ..cli.options import Count, Name, check_companions
    from ..core.bundle import MANIFEST, Bundle
    from ..core.files import locked, temporary_folder
    from ..core.replacement import begin_apart, check_free, take_place
    from ..core.verdict import ParityReport
    from ..foreign.bundle import create_bundle, found_description, read_foreign
    from ..parity import judge, load_budget
    from ..report import write_report
    from ..report.model_card import LATENCY_FILE
    from ..report.terminal import print_outcome, skipped_images

Say = Callable[[str], None]
PROG = "python -m dpt_deploy.export.importing"


@dataclass(frozen=True)
class ImportConfig:
    """Make a bundle of another project's ONNX model, so that the runtime, benchmarks and parity take it.

    A description says what its input expects and what its outputs mean: "david", or a YAML or JSON file. The graphs are
    FP32, and judged against the given file in ONNX Runtime.
    """

    model: tyro.conf.Positional[Path]
    """ONNX file with one float32 input (N, 3, H, W) and outputs of depth, normals or alpha."""
    description: Name | None = None
    """david, or a YAML or JSON file. Default: that in the metadata of the file, or in MODEL.yaml or MODEL.json beside
    it; the two must not differ."""
    out: Path | None = None
    """Folder of the bundle. Default: engines/ followed by the name of the model."""
    engines: Annotated[EngineOptions, tyro.conf.arg(name="engine")] = field(default_factory=EngineOptions)
    images: Path | None = None
    """Image or folder of images for the parity verdict. Default: built-in scenes."""
    max_images: Count = 8
    """Use at most this many images of a folder, evenly spaced."""
    max_pixels: Count = MAX_PIXELS
    """Refuse images with more pixels than this."""
    budget: Path | None = None
    """JSON file with parity budgets that replace the default ones. The report names it."""


def import_model(config: ImportConfig, say: Say = print, command: str = "") -> tuple[Bundle, ParityReport]:
    """Make a bundle of a foreign model and judge it.

    Args:
        config: The options of the command.
        say: Receives progress lines.
        command: The shell line to record in the manifest and the report.

    Returns:
        The bundle and its parity report.

    Raises:
        DptError: The model or its description is not valid, a package is missing, or a graph cannot be made.
    """
    check_companions(config, {"images": ("max_images",)})
    load_budget(config.budget)
    choose_builder(config.engines)
    folder = config.out or Path("engines") / config.model.stem
    source = read_foreign(config.model)
    found = found_description(source, config.description)
    _check_folder(folder, config.model)
    from .foreign_graphs import ForeignModel, at_bundle_opset, frame_graph
    from .pytorch_reference import make_reference, parity_inputs

    inputs = parity_inputs(config.images, config.max_images, config.max_pixels)
    for line in inputs.lines():
        say(line)
    say(f"note     described by {found.source}" + (", a guess; --description states it" if found.guessed else ""))
    converted, opset = at_bundle_opset(source)
    # Made apart, so that a failure or an interrupt leaves an earlier bundle as it was.
    with locked(folder, create=True), temporary_folder(folder / "import") as temporary, _named(temporary, folder):
        def tell(line: str) -> None:
            say(_elsewhere(line, temporary, folder))

        begin_apart(temporary, folder, [LATENCY_FILE])
        made, contract = create_bundle(temporary, converted, found, command)
        inputs.record(made)
        tell(f"adapted  model.fp32.onnx (opset {opset})")
        own = ForeignModel(source, found.description)
        reference = make_reference(own, contract, inputs.inputs, lambda name: tell(f"its own  {name}"))
        reference.save(temporary / "reference.npz")
        made.add("reference.npz", "reference")
        frame_graph(made, contract, opset)
        tell("exported frame.fp32.onnx")
        failure = None
        try:
            build_engines(made, config.engines, tell)
        except BuildError as error:
            tell(f"failed   {error}")
            failure = error
        judgement = judge(made, config.budget, progress=lambda name: tell(f"judging  {name}"))
        report = ParityReport.from_json(_elsewhere(judgement.report.to_json(), temporary, folder))
        write_report(made, report, judgement.exhibits, command)
        bundle = take_place(made, folder)
    if failure is not None:
        text = _elsewhere(str(failure), temporary, folder)
        raise BuildError(f"{text} The graphs in {folder} are complete and judged: {report.verdict}.") from failure
    return bundle, report


@contextlib.contextmanager
def _named(temporary: Path, folder: Path) -> Iterator[None]:
    """Let the errors of the block name the bundle's folder, where the temporary one is gone when they are read."""
    try:
        yield
    except DptError as error:
        error.args = tuple(_elsewhere(list(error.args), temporary, folder))
        raise


def _elsewhere(value: Any, temporary: Path, folder: Path) -> Any:
    """Plain JSON values whose texts name `folder` instead of `temporary`."""
    if isinstance(value, str):
        return value.replace(str(temporary), str(folder))
    if isinstance(value, dict):
        return {key: _elsewhere(one, temporary, folder) for key, one in value.items()}
    return [_elsewhere(one, temporary, folder) for one in value] if isinstance(value, list) else value


def _check_folder(folder: Path, model: Path) -> None:
    """Raise `BadInput` if the folder holds the model itself, files of the user, or a bundle of a checkpoint."""
    if model.resolve().parent == folder.resolve():
        raise BadInput(f"--out {folder}: expected a folder other than that of {model.name}, whose files an import "
                       "would replace. Choose another.")
    check_free(folder)
    if not os.path.isfile(folder / MANIFEST):
        return
    try:
        reason = "" if Bundle.open(folder).manifest.imported else "the bundle of a checkpoint"
    except BadBundle:
        reason = f"a bundle whose {MANIFEST} cannot be read"
    if reason:
        raise BadInput(f"--out {folder}: expected a new folder or an imported bundle, received {reason}, which an "
                       "import would replace. Choose another.")


def main(config: ImportConfig) -> int:
    """Exit status: 0 if the verdict passed and every image was read, else 1."""
    bundle, report = import_model(config, command=cli.command_line(PROG))
    print_outcome(bundle, report, [benchmark_command(bundle, engine) for engine in bundle.find("engine")])
    return 0 if report.passed and not skipped_images(bundle) else 1


COMMAND = cli.Command(ImportConfig, main, PROG)

if __name__ == "__main__":
    COMMAND.run()
