"""load() and Runtime: the maps a user gets, on which backend, and what is said when something does not fit."""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import dpt_deploy
from dpt_deploy import backends
from dpt_deploy.backends import device
from dpt_deploy.core import metrics
from dpt_deploy.core.bundle import MANIFEST, Bundle
from dpt_deploy.core.errors import BackendError, BadBundle, BadInput, ContractError
from dpt_deploy.core.manifest import Artifact, Manifest
from dpt_deploy.export import pytorch_reference
from dpt_deploy.model.frame import FrameModel
from dpt_deploy.runtime import Prediction, Runtime, load
from tests.tiny import lively_model, photo
from tests.torch_session import TorchSession

CPU = "onnxruntime-cpu"
SIZES = [(64, 64), (333, 517), (1080, 1920)]


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> Runtime:
    with load(tiny_bundle, CPU) as loaded:
        yield loaded


def budget(precision: str) -> dict:
    """The project's own parity budget."""
    return json.loads((Path(dpt_deploy.__file__).parent / "parity/budget.json").read_text())[precision]


def assert_within(have: Prediction, want: Prediction, precision: str = "fp32") -> None:
    measured = {
        "depth": metrics.depth_summary(metrics.relative_depth_error(have.depth, want.depth)),
        "normals": metrics.normal_summary(metrics.angle(have.normals, want.normals)),
        "alpha": metrics.alpha_parity(have.alpha, want.alpha),
    }
    for head, limits in budget(precision).items():
        for metric, bound in limits.items():
            value = measured[head][metric]
            assert value >= bound if metric == "iou" else value <= bound, (head, metric, value, bound)


def from_pytorch(frame: np.ndarray) -> Prediction:
    """The maps by PyTorch, with its own pre- and post-processing."""
    model = lively_model()
    contract = model.contract()
    with torch.no_grad():
        outputs = model(pytorch_reference.preprocess(frame, contract)[None])
    return Prediction(**pytorch_reference.postprocess(outputs, frame.shape[:2], contract))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("graph", ["frame", "model"])
def test_maps_are_those_of_pytorch(tiny_bundle: Path, graph: str, size: tuple[int, int]) -> None:
    frame = photo(*size)
    with load(tiny_bundle, CPU, graph) as loaded:
        prediction = loaded(frame)
    h, w = size
    for head, shape in (("depth", (h, w)), ("normals", (h, w, 3)), ("alpha", (h, w))):
        value = getattr(prediction, head)
        assert isinstance(value, np.ndarray) and value.shape == shape and value.dtype == np.float32
        assert value.std() > 0.01, "a constant map would agree with a flipped one"
    assert prediction.depth.min() > 0
    assert 0 <= prediction.alpha.min() and prediction.alpha.max() <= 1
    np.testing.assert_allclose(np.linalg.norm(prediction.normals, axis=-1), 1, atol=1e-4)
    assert_within(prediction, from_pytorch(frame))


def no_file(graph: str) -> Artifact:
    return Artifact(file="none", kind="onnx", sha256="0" * 64, bytes=0, graph=graph)


def test_letterbox_gives_the_same_maps_from_both_graphs() -> None:
    model = lively_model()
    contract = model.contract("letterbox")
    bundle = Bundle(Path("letterbox"), Manifest(name="letterbox", contract=contract.to_json()))
    frame = photo(120, 413)
    maps = {}
    for graph, module in (("model", model), ("frame", FrameModel(model, contract))):
        session = TorchSession(module, contract, graph)
        maps[graph] = Runtime(bundle, no_file(graph), session, "")(frame)
    assert_within(maps["model"], maps["frame"])


def test_a_head_that_is_absent_is_none() -> None:
    model = lively_model()
    model.select_heads(("depth", "alpha"))
    contract = model.contract()
    bundle = Bundle(Path("two"), Manifest(name="two", contract=contract.to_json()))
    with Runtime(bundle, no_file("model"), TorchSession(model, contract, "model"), "") as two:
        prediction = two(photo(50, 60))
    assert prediction.normals is None and set(prediction.maps) == {"depth", "alpha"}


def test_a_batch_equals_its_images(runtime: Runtime) -> None:
    frames = np.stack([photo(120, 90, seed) for seed in range(11)])  # more than one call takes
    batch = runtime(frames)
    assert isinstance(batch, list) and len(batch) == 11
    for frame, prediction in zip(frames, batch, strict=True):
        assert_within(prediction, runtime(frame))


def test_an_array_of_frames_reaches_the_backend_without_a_copy(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, seen = np.stack([photo(64, 80, seed) for seed in range(9)]), []

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(inputs["frame"])
        return {"depth": inputs["frame"][..., 0]}

    monkeypatch.setattr(runtime.session, "run", run)
    predictions = runtime(frames)
    assert [len(batch) for batch in seen] == [8, 1] and all(np.shares_memory(batch, frames) for batch in seen)
    np.testing.assert_array_equal(np.stack([one.depth for one in predictions]), frames[..., 0])


def test_a_list_keeps_its_order_whatever_the_sizes(runtime: Runtime, tmp_path: Path) -> None:
    images = [photo(64, 80, 1), photo(90, 70, 2), photo(64, 80, 3)]
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), images[1][..., ::-1])
    predictions = runtime([images[0], path, images[2], str(path)])
    for prediction, image in zip(predictions, [*images, images[1]], strict=True):
        assert prediction.depth.shape == image.shape[:2]
        assert_within(prediction, runtime(image))
    assert runtime([]) == []
    assert_within(runtime(path), runtime(images[1]))


def test_arrays_of_others_are_read_in_place_or_copied(runtime: Runtime) -> None:
    frame = photo(96, 128)
    want = runtime(frame).depth
    np.testing.assert_array_equal(runtime(torch.from_numpy(frame)).depth, want)
    bgr = np.ascontiguousarray(frame[..., ::-1])
    np.testing.assert_array_equal(runtime(bgr[..., ::-1]).depth, want)  # negative strides
    channels_first = torch.from_numpy(frame).permute(2, 0, 1).contiguous()
    np.testing.assert_array_equal(runtime(channels_first.permute(1, 2, 0)).depth, want)
    big = np.zeros((192, 256, 3), np.uint8)
    big[::2, ::2] = frame
    np.testing.assert_array_equal(runtime(big[::2, ::2]).depth, want)
    frame.flags.writeable = False
    np.testing.assert_array_equal(runtime(frame).depth, want)


def test_pil_images_work(runtime: Runtime) -> None:
    image = pytest.importorskip("PIL.Image")
    frame = photo(40, 50)
    np.testing.assert_array_equal(runtime(image.fromarray(frame)).alpha, runtime(frame).alpha)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "cv2.imread returns None"),
        (7, "received a int"),
        (np.zeros((4, 5, 3)), r"image \* 255"),
        ([np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)], r"images\[1\].*one channel"),
        ([np.zeros((2, 4, 5, 3), np.uint8)], "batch by itself"),
        ("nope.png", "no file nope.png"),
    ],
)
def test_a_bad_image_gets_one_sentence(runtime: Runtime, image: object, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        runtime(image)


def test_an_array_that_the_host_cannot_read_says_where_to_go(runtime: Runtime) -> None:
    class Elsewhere:
        shape, dtype = (4, 5, 3), "uint8"

        def __dlpack__(self, **_: object) -> None:
            raise BufferError("cannot export to the CPU")

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    with pytest.raises(BadInput, match=r"host memory.*session\.run"):
        runtime(Elsewhere())


def test_many_threads_get_their_own_results(runtime: Runtime) -> None:
    frames = [photo(80 + 8 * i, 100, i) for i in range(6)]
    want = [runtime(frame) for frame in frames]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        have = list(pool.map(runtime, frames * 8))
    for i, prediction in enumerate(have):
        for head, value in prediction.maps.items():
            np.testing.assert_allclose(value, want[i % 6].maps[head], atol=1e-5)


def test_the_choice_is_explained(tiny_bundle: Path) -> None:
    if device.compute_capability() is not None:
        pytest.skip("a GPU is visible here, so that another backend is taken")
    with load(tiny_bundle) as loaded:
        names = backends.names()
        assert loaded.artifact.file in ("frame.fp32.onnx", "frame.fp16.onnx")  # FP16 on a processor with such units
        assert loaded.backend in ("openvino", CPU)
        for better in names[: names.index(loaded.backend)]:
            assert f"not {better}: " in loaded.reason
        assert "no GPU is visible" in loaded.reason and "\n" not in loaded.reason


def test_precision_is_strict(tiny_bundle: Path) -> None:
    frame = photo(200, 150)
    with load(tiny_bundle, CPU, precision="fp16", threads=1) as half, load(tiny_bundle, CPU) as full:
        assert half.artifact.file == "frame.fp16.onnx"
        assert_within(half(frame), full(frame), "fp16")
    with pytest.raises(BackendError, match=r"in bf16.*frame\.fp16\.onnx"):
        load(tiny_bundle, CPU, precision="bf16")


def test_a_backend_asked_for_is_taken_or_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"^tensorrt: .*python -m dpt_deploy\.build"):
        load(tiny_bundle, "tensorrt")
    with load(tiny_bundle, CPU) as loaded:
        assert loaded.reason == "onnxruntime-cpu runs frame.fp32.onnx, as requested."


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "cuda"}, "backend: expected one of tensorrt, tensorrt-rtx, onnxruntime-cuda, openvino, onn"),
        ({"graph": "image"}, "graph: expected one of frame, model"),
        ({"graph": 1}, "graph: expected one of frame, model"),
        ({"precision": "int4"}, "precision: expected one of fp16, bf16, fp32"),
        ({"threads": 0}, "threads: expected a number from 1"),
        ({"threads": "two"}, "threads: expected a number from 1"),
    ],
)
def test_an_unknown_name_lists_the_known(tiny_bundle: Path, options: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        load(tiny_bundle, **options)


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match=MANIFEST):
        load(tmp_path)
    with pytest.raises(BadBundle, match="the folder does not exist"):
        load(tmp_path / "nope")


def test_a_changed_file_is_refused(own_bundle: Path) -> None:
    path = own_bundle / "frame.fp32.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadBundle, match=r"frame\.fp32\.onnx does not match manifest\.json.*dpt_deploy\.export"):
        load(own_bundle, CPU)
    path.unlink()
    with pytest.raises(BadBundle, match=r"frame\.fp32\.onnx is missing"):
        load(own_bundle, CPU)


def test_a_bundle_that_was_never_judged_says_so(own_bundle: Path) -> None:
    """As after an export that was killed before it judged."""
    bundle = Bundle.open(own_bundle)
    bundle.update(artifacts=tuple(one for one in bundle.artifacts if one.kind != "report"))
    bundle.save()
    with load(own_bundle, CPU) as loaded:
        assert "as requested. Not judged: the bundle has no parity verdict, because its export was" in loaded.reason
        assert f"python -m dpt_deploy.parity {own_bundle}." in loaded.reason


def test_a_changed_contract_is_refused(own_bundle: Path) -> None:
    """Another mean would shift every map by a little, and nobody would see it."""
    manifest = json.loads((own_bundle / MANIFEST).read_text())
    manifest["contract"]["mean"] = [0.4, 0.5, 0.5]
    (own_bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ContractError, match="contract embedded in the graph differs"):
        load(own_bundle, CPU)


def test_a_closed_runtime_says_so(tiny_bundle: Path) -> None:
    with load(tiny_bundle, CPU) as loaded:
        pass
    loaded.close()
    with pytest.raises(BackendError, match="closed"):
        loaded(photo(64, 64))


def run_python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_prediction_needs_no_torch(tiny_bundle: Path) -> None:
    output = run_python("""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "timm", "onnx", "torchvision"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
import numpy as np, dpt_deploy
for graph in ("frame", "model"):
    with dpt_deploy.load(sys.argv[1], "onnxruntime-cpu", graph) as runtime:
        print(runtime(np.zeros((70, 90, 3), np.uint8)).normals.shape)
""", tiny_bundle)
    assert output.split("\n")[:2] == ["(70, 90, 3)"] * 2


def test_the_package_is_light_to_import() -> None:
    output = run_python("""
import sys, dpt_deploy
print([name for name in ("torch", "onnxruntime", "tensorrt", "cv2") if name in sys.modules])
from dpt_deploy import Prediction, Runtime, load
print([name for name in ("torch", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "rich") if name in sys.modules])
""")
    assert output.split("\n")[:2] == ["[]", "[]"]
