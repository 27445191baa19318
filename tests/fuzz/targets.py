"""What is read from files that strangers may have made: seeds, mutations, and the function that reads."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import sha256
from dpt_deploy.core.image_files import from_pil, read_image
from dpt_deploy.core.manifest import Artifact, Manifest
from dpt_deploy.core.onnx_file import read_onnx_file
from dpt_deploy.model import read_checkpoint, save_checkpoint
from dpt_deploy.parity import Reference, load_budget
from dpt_deploy.parity.compare import DEFAULT_BUDGET
from dpt_deploy.predict.reader import Reader
from tests.fuzz.mutate import mutated_bytes, mutated_json
from tests.parity.test_reference import CONTRACT, whole_case
from tests.tiny import lively_model, photo
from train.data import exr
from train.data.synthhuman import FILES, read_files

SIZE = 24, 32
MB = 1 << 20


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    seeds: Callable[[Path], list[Path]]
    """Makes valid files in a folder, which `read` must accept."""
    read: Callable[[Path], object]
    """Reads a file. It may raise `DptError` alone."""
    change: Callable[[bytes, np.random.Generator], bytes] = mutated_bytes
    memory: int = 256 * MB
    """The largest growth of the resident memory, above what reading the seeds needs [bytes]."""


def _json(data: bytes, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.2:
        return mutated_bytes(data, rng)
    return mutated_json(json.loads(data), rng).encode()


def _checkpoint(folder: Path) -> Path:
    path = folder / "best_model.pth"
    save_checkpoint(path, lively_model(), training={"epoch": 3, "losses": {"depth": [0.1, 0.2]}})
    return path


def _checkpoints(folder: Path) -> list[Path]:
    plain = folder / "plain.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in lively_model().state_dict().items()}}, plain)
    return [_checkpoint(folder), plain]


def _description(folder: Path) -> list[Path]:
    """The description alone, and beside it, as `weights`, the checkpoint that it stands in."""
    path = _checkpoint(folder)
    state = torch.load(path, weights_only=True)
    (key, text), = ((k, v) for k, v in state._metadata[""].items() if isinstance(v, str) and v.startswith("{"))
    (folder / "key").write_text(key)
    (folder / "description.json").write_text(text)
    return [folder / "description.json"]


def _read_description(path: Path) -> None:
    """Read a checkpoint with the tensors of `best_model.pth` and the description in `path`."""
    state = _STATE.setdefault(path.parent, torch.load(path.parent / "best_model.pth", weights_only=True))
    state._metadata[""] = {(path.parent / "key").read_text(): path.read_bytes().decode(errors="replace")}
    torch.save(state, path.parent / "described.pth")
    read_checkpoint(path.parent / "described.pth")


_STATE: dict[Path, dict] = {}


def _manifest(folder: Path) -> list[Path]:
    """A manifest with every kind of artefact."""
    certificate = {"status": "passed", "reasons": ["why"], "flops": {"share": 0.5}, "attention": {"blocks": 1}}
    artifacts = [
        {"file": "frame.onnx", "kind": "onnx", "sha256": "0" * 64, "bytes": 1, "graph": "frame", "precision": "fp32",
         "details": {"opset": 23, "plan": {"precision": "fp16", "fp32": ["resize"]}}},
        {"file": "frame.engine", "kind": "engine", "sha256": "1" * 64, "bytes": 1, "graph": "frame",
         "details": {"builder": "tensorrt", "profile": {"frame": {"min": [1, 8, 8, 3], "opt": [1, 8, 8, 3],
                                                                  "max": [2, 64, 64, 3]}},
                     "max_pixels": 9999, "certificate": certificate}},
        {"file": "reference.npz", "kind": "reference", "sha256": "2" * 64, "bytes": 1},
    ]
    manifest = Manifest.model_validate({
        "name": "bundle", "contract": Contract().to_json(), "training": {"epochs": 3}, "artifacts": artifacts,
        "checkpoint": {"file": "best.pth", "sha256": "3" * 64},
        "assumed": [{"fact": "depth_scale", "value": 5.0, "reason": "no description", "option": "--depth-scale"}],
        "precision": {"plan": {"precision": "fp16", "fp32": []},
                      "trials": [{"name": "a", "plan": {"precision": "fp16", "fp32": []}, "passed": True}]},
    })
    (folder / "manifest.json").write_text(json.dumps(manifest.to_json()))
    return [folder / "manifest.json"]


def _read_manifest(path: Path) -> None:
    with _folder_with(path, "manifest.json") as folder:
        bundle = Bundle.open(folder)
        bundle.manifest.to_json()
        assert bundle.contract
        for artifact in bundle.artifacts:
            bundle.damage(artifact)
            str(artifact.details)


def _report(folder: Path) -> list[Path]:
    from dpt_deploy.core.verdict import ParityReport
    from tests.parity.test_compare import BUDGET, judged

    stages = judged(), judged(lambda maps: maps | {"depth": maps["depth"] * 2})
    report = ParityReport(stages, BUDGET, "default", ("a",))
    (folder / "parity.json").write_text(json.dumps(report.to_json()))
    return [folder / "parity.json"]


def _read_report(path: Path) -> None:
    with _folder_with(path, "parity.json") as folder:
        report = Bundle.open(folder).last_report()
        if report is not None:
            assert report.verdict and report.to_json() and isinstance(report.passed, bool)


@contextlib.contextmanager
def _folder_with(path: Path, name: str) -> Iterator[Path]:
    """A folder with a valid manifest in which `path` stands as `name`."""
    folder = path.parent / "as-bundle"
    folder.mkdir(exist_ok=True)
    _manifest(folder)
    shutil.copy(path, folder / name)
    yield folder


def _graph(folder: Path) -> list[Path]:
    """A graph with an embedded contract and an external file."""
    import onnx
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], b"\x00" * 8, raw=True)
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])], [weight])
    model = helper.make_model(graph)
    helper.set_model_props(model, {"contract": json.dumps(Contract().to_json()), "plan": "{}"})
    onnx.save(model, folder / "frame.onnx")
    large = folder / "large.onnx"
    onnx.save(model, large, save_as_external_data=True, location="large.onnx.data", size_threshold=0)
    return [folder / "frame.onnx", large]


def _embed(data: bytes, rng: np.random.Generator) -> bytes:
    """Change the graph's bytes, or its contract as JSON."""
    import onnx

    if rng.random() < 0.5:
        return mutated_bytes(data, rng)
    model = onnx.load_from_string(data)
    (entry,) = (entry for entry in model.metadata_props if entry.key == "contract")
    with contextlib.suppress(UnicodeEncodeError):
        entry.value = mutated_json(json.loads(entry.value), rng)
    return model.SerializeToString()


def _read_graph(path: Path) -> None:
    """Open it as the bundle does, with the right hash."""
    with _folder_with(path, "frame.onnx") as folder:
        shutil.copy(path.parent / "large.onnx.data", folder / "large.onnx.data")
        bundle = Bundle.open(folder)
        artifacts = [a.model_copy(update={"sha256": sha256(path), "bytes": path.stat().st_size})
                     for a in bundle.find("onnx")]
        data = folder / "large.onnx.data"
        listed = Artifact(file=data.name, kind="data", sha256=sha256(data), bytes=data.stat().st_size)
        bundle.update(artifacts=(*artifacts, listed))
        bundle.path(artifacts[0])
        read_onnx_file(path)


def _reference(folder: Path) -> list[Path]:
    Reference((whole_case(), whole_case("noise", True)), CONTRACT.heads).save(folder / "reference.npz")
    return [folder / "reference.npz"]


def _archive(data: bytes, rng: np.random.Generator) -> bytes:
    """Change the archive's bytes, or the bytes of one array in it, with a checksum that fits."""
    if rng.random() < 0.4:
        return mutated_bytes(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        chosen = names[rng.integers(len(names))]
        for name in names:
            entry = source.read(name)
            if name == chosen:
                entry = mutated_bytes(entry, rng)
            if name == chosen and rng.random() < 0.2:
                continue
            target.writestr(name if name != chosen or rng.random() < 0.9 else f"{name}x", entry)
    return out.getvalue()


def _images(folder: Path) -> list[Path]:
    picture = photo(*SIZE)
    made = []
    for suffix in ("png", "jpg", "bmp", "tiff", "webp", "gif", "jp2", "ppm", "avif"):
        with contextlib.suppress(OSError, KeyError, ValueError):  # what this build of Pillow cannot write
            Image.fromarray(picture).save(folder / f"image.{suffix}")
            made.append(folder / f"image.{suffix}")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(folder / "turned.jpg", exif=exif)
    cv2.imwrite(str(folder / "deep.png"), picture.astype(np.uint16) * 257)
    Image.fromarray(picture).quantize(16).save(folder / "palette.png")
    return [*made, folder / "turned.jpg", folder / "deep.png", folder / "palette.png"]


def _read_pil(path: Path) -> None:
    try:
        image = Image.open(path)
    except Exception:  # the user's own call, outside this package
        return
    from_pil(image, max_pixels=4_000_000)


def _read_image(path: Path) -> None:
    read_image(path, max_pixels=4_000_000)


def _exr(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    exr.write_depth(folder / "depth.exr", rng.uniform(100, 200, SIZE).astype(np.float32))
    exr.write_vectors(folder / "normals.exr", rng.normal(size=(*SIZE, 3)).astype(np.float32))
    return [folder / "depth.exr", folder / "normals.exr"]


def _read_exr(path: Path) -> None:
    exr.read_channels(path, max_pixels=4_000_000)
    with contextlib.suppress(BadInput):  # the other file's kind
        exr.read_vectors(path, max_pixels=4_000_000)
    with contextlib.suppress(BadInput):
        exr.read_depth(path, max_pixels=4_000_000)


def _sample(folder: Path) -> list[Path]:
    """The camera file of a sample; the other files are beside it."""
    rgb, alpha, depth, normal, camera = (folder / pattern.format("0000001") for pattern in FILES)
    cv2.imwrite(str(rgb), photo(*SIZE))
    cv2.imwrite(str(alpha), photo(*SIZE)[..., 0])
    exr.write_depth(depth, np.full(SIZE, 150, np.float32))
    exr.write_vectors(normal, np.ones((*SIZE, 3), np.float32))
    camera.write_text("30 0 16\n0 30 12\n0 0 1\n")
    return [camera]


def _read_sample(path: Path) -> None:
    camera = path.parent / FILES[-1].format("0000001")
    if path != camera:
        shutil.copy(path, camera)
    read_files(path.parent, "0000001")


def _videos(folder: Path) -> list[Path]:
    made = []
    for suffix, codec in (("mp4", "mp4v"), ("avi", "MJPG")):
        path = folder / f"clip.{suffix}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25, (64, 48))
        for i in range(8):
            writer.write(photo(48, 64, i))
        writer.release()
        if path.is_file() and path.stat().st_size:
            made.append(path)
    assert made
    return made


def _read_video(path: Path) -> None:
    with Reader(path) as reader:
        for count, frame in enumerate(reader):
            assert frame.dtype == np.uint8 and frame.ndim == 3
            if count > 20:
                break


def _budget(folder: Path) -> list[Path]:
    shutil.copy(DEFAULT_BUDGET, folder / "budget.json")
    return [folder / "budget.json"]


TARGETS = {
    "checkpoint": Target(_checkpoints, read_checkpoint),
    "description": Target(_description, _read_description, _json),
    "manifest": Target(_manifest, _read_manifest, _json),
    "parity": Target(_report, _read_report, _json),
    "graph": Target(_graph, _read_graph, _embed),
    "reference": Target(_reference, lambda path: Reference.load(path, CONTRACT), _archive),
    "budget": Target(_budget, load_budget, _json),
    "image": Target(_images, _read_image),
    "pil": Target(_images, _read_pil),
    "exr": Target(_exr, _read_exr),
    "camera": Target(_sample, _read_sample),
    "video": Target(_videos, _read_video),
}
