"""The server of the page without a browser: what it answers, what it refuses and how, and that it keeps nothing."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import httpx
import numpy as np
import OpenEXR
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from dpt_deploy.build import EngineOptions
from dpt_deploy.core import compact, metrics
from dpt_deploy.export.config import ExportConfig
from dpt_deploy.export.pipeline import export_checkpoint
from dpt_deploy.geometry import Cut, Intrinsics
from dpt_deploy.model import create_multitask_dpt_model, save_checkpoint
from dpt_deploy.report.colours import colour_depth
from dpt_deploy.runtime import Prediction, Runtime, load
from dpt_deploy.view.__main__ import Server
from dpt_deploy.view.answer import FORMS, SHOWN_PIXELS, difference, shown_range, shrunk, spread
from dpt_deploy.view.app import MOST_WAITING, Page
from dpt_deploy.view.downloads import DOWNLOADS
from dpt_deploy.view.guard import HEADERS
from dpt_deploy.view.models import Models
from tests.tiny import photo
from tests.view.relative import SIZE, relative_model

IMAGE = {"Content-Type": "image/png"}
MAX_PIXELS, MAX_BYTES = 2_000_000, 3_000_000


@pytest.fixture(scope="module")
def runtimes(tiny_bundle: Path) -> Iterator[list[Runtime]]:
    with load(tiny_bundle, "onnxruntime-cpu", precision="fp32") as first, \
            load(tiny_bundle, "onnxruntime-cpu", precision="fp16") as second:
        yield [first, second]


@pytest.fixture(scope="module")
def page(runtimes: list[Runtime]) -> Page:
    return Page(Models(runtimes, MAX_PIXELS), MAX_BYTES, frozenset({"studio.example"}))


@pytest.fixture(scope="module")
def client(page: Page) -> Iterator[TestClient]:
    with TestClient(page.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as found:
        yield found


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def unpacked(body: bytes) -> tuple[dict, list[dict[str, np.ndarray]], np.ndarray]:
    """The header, the stored maps of each model, and the picture of an answer."""
    assert body[:4] == b"DPT1"
    length = int.from_bytes(body[4:8], "little")
    header, rest = json.loads(body[8 : 8 + length]), body[8 + length :]

    def array(one: dict) -> np.ndarray:
        assert one["offset"] % 8 == 0
        data = rest[one["offset"] : one["offset"] + one["bytes"]]
        return np.frombuffer(data, np.dtype(one["dtype"]).newbyteorder("<")).reshape(one["shape"])

    picture = header["picture"]
    stored = rest[picture["offset"] : picture["offset"] + picture["bytes"]]
    maps = [{head: array(one) for head, one in model["maps"].items()} for model in header["models"]]
    return header, maps, cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def download(client: TestClient, image: np.ndarray, name: str, **choices: object) -> bytes:
    found = client.post(f"/api/download/{name}", content=png(image), headers=IMAGE, params=choices)
    assert found.status_code == 200, found.text
    assert found.headers["content-disposition"] == f'attachment; filename="{name}"'
    return found.content


def decoded(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def channels(data: bytes, tmp_path: Path) -> dict[str, np.ndarray]:
    (tmp_path / "maps.exr").write_bytes(data)
    with OpenEXR.File(str(tmp_path / "maps.exr"), separate_channels=True) as file:
        return {name: one.pixels.copy() for name, one in file.channels().items()}


def test_the_page_gets_the_maps_of_the_runtime_in_compact_form(client: TestClient, runtimes: list[Runtime]) -> None:
    image = photo(90, 120)
    answer = client.post("/api/predict", content=png(image), headers=IMAGE)
    header, (maps,), picture = unpacked(answer.content)
    assert header["size"] == header["full_size"] == [90, 120]
    want = runtimes[0](image).maps
    assert set(maps) == set(want)
    for head, values in want.items():
        assert np.array_equal(maps[head], compact.encode(head, FORMS[head], values)), head
    assert picture.shape == image.shape and np.abs(picture.astype(int) - image).mean() < 4
    (model,) = header["models"]
    assert 0 < model["depth_range"][0] < model["depth_range"][1]
    assert (model["maps"]["depth"]["scale"], model["maps"]["depth"]["bias"]) == (0.001, 0)


def test_a_frame_of_1280x720_is_an_answer_below_seven_megabytes(client: TestClient) -> None:
    answer = client.post("/api/predict?live=1", content=png(photo(720, 1280)), headers=IMAGE)
    header, _, _ = unpacked(answer.content)
    assert header["size"] == [720, 1280] and len(answer.content) < 7_000_000


def test_a_large_image_is_shown_smaller_and_downloaded_at_its_own_size(client: TestClient) -> None:
    image = cv2.resize(photo(110, 150), (1500, 1100))
    header, _, _ = unpacked(client.post("/api/predict", content=png(image), headers=IMAGE).content)
    h, w = header["size"]
    assert header["full_size"] == [1100, 1500] and h * w <= SHOWN_PIXELS and w / h == pytest.approx(15 / 11, abs=0.01)
    assert decoded(download(client, image, "depth.png")).shape == (1100, 1500)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (7, 5)])
def test_images_of_every_shape_have_an_answer(client: TestClient, size: tuple[int, int]) -> None:
    image = cv2.resize(photo(20, 20), size[::-1])
    header, (maps,), _ = unpacked(client.post("/api/predict", content=png(image), headers=IMAGE).content)
    assert tuple(header["size"]) == maps["depth"].shape == shrunk(image).shape[:2]


def test_a_picture_on_its_side_is_turned_upright(client: TestClient) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # turn by a quarter
    Image.fromarray(photo(40, 80)).save(file, "JPEG", exif=exif)
    header, _, _ = unpacked(client.post("/api/predict", content=file.getvalue(), headers=IMAGE).content)
    assert header["size"] == [80, 40]


def test_two_models_are_compared_in_the_units_of_the_task(client: TestClient, runtimes: list[Runtime]) -> None:
    image = photo(90, 120, seed=3)
    header, maps, _ = unpacked(client.post("/api/predict?compare=1", content=png(image), headers=IMAGE).content)
    assert [one["label"] for one in header["models"]] == ["tiny, fp32", "tiny, fp16"] and len(maps) == 2
    want, have = (runtime(image).maps for runtime in runtimes)
    for head, numbers, _ in metrics.parity(want, have):
        assert header["difference"][head] == pytest.approx(numbers)
    assert 0 < header["difference"]["depth"]["abs_rel"] < 0.01


def test_files_hold_the_maps(client: TestClient, runtimes: list[Runtime], tmp_path: Path) -> None:
    image = photo(60, 80)
    want = runtimes[0](image)
    depth = decoded(download(client, image, "depth.png"))
    assert depth.dtype == np.uint16 and np.abs(depth / 1000 - want.depth).max() <= 0.00051
    assert np.array_equal(channels(download(client, image, "depth.exr"), tmp_path)["Z"], want.depth)
    normals = decoded(download(client, image, "normals.png"))[..., ::-1] / 65535 * 2 - 1
    assert np.abs(normals - want.normals).max() < 2e-5
    planes = channels(download(client, image, "maps.exr"), tmp_path)
    assert set(planes) == {"Z", "N.X", "N.Y", "N.Z", "A"}
    # As the same files of the other commands do, they say what they hold.
    assert Image.open(io.BytesIO(download(client, image, "depth.png"))).text["Unit"] == "millimetre"
    assert Image.open(io.BytesIO(download(client, image, "normals.png"))).text["Convention"].startswith("opengl")
    for name in ("depth.exr", "normals.exr", "maps.exr"):
        with OpenEXR.File(io.BytesIO(download(client, image, name))) as file:
            header = dict(file.header())
        assert name == "normals.exr" or header["depthMeaning"] == "z-depth in metres"
        assert name == "depth.exr" or header["normalsConvention"].startswith("opengl")
    assert np.array_equal(planes["A"], want.alpha) and np.array_equal(planes["N.Y"], want.normals[..., 1])
    matte = decoded(download(client, image, "alpha.png"))
    assert matte.dtype == np.uint16 and np.abs(matte / 65535 - want.alpha).max() < 1e-5
    for soft in (0, 1):
        cutout = decoded(download(client, image, "cutout.png", threshold=0.7, soft=soft))
        inside = want.alpha >= 0.7
        assert np.array_equal(cutout[..., 2::-1], image) and np.array_equal(cutout[..., 3] > 0, inside)
        assert soft or set(np.unique(cutout[..., 3])) <= {0, 255}
    second = channels(download(client, image, "depth.exr", model=1), tmp_path)["Z"]
    assert np.array_equal(second, runtimes[1](image).depth) and not np.array_equal(second, want.depth)


def test_points_fall_on_the_pixels_that_they_come_from(client: TestClient, runtimes: list[Runtime]) -> None:
    image = photo(60, 80)
    want: Prediction = runtimes[0](image)
    data = download(client, image, "points.ply", threshold=0.5, film=35)
    header, body = data.split(b"end_header\n", 1)
    assert b"35 mm on 35 mm film, as set on the page" in header and b"format binary_little_endian 1.0" in header
    assert b"GUESSED" in download(client, image, "points.ply").split(b"end_header\n", 1)[0]
    kinds = {b"float": "<f4", b"uchar": "u1"}
    fields = [(name.decode(), kinds[kind]) for kind, name in re.findall(rb"property (\w+) (\w+)", header)]
    points = np.frombuffer(body, fields)
    camera = Intrinsics.from_film(35, (60, 80))
    assert len(points) == len(want.points(camera, image, Cut(0.75))) > 100
    column = points["x"] / -points["z"] * camera.fx + 40 - 0.5
    row = points["y"] / points["z"] * camera.fy + 30 - 0.5
    x, y = np.rint(column).astype(int), np.rint(row).astype(int)
    assert np.abs(column - x).max() < 0.01 and np.abs(row - y).max() < 0.01
    assert np.array_equal(-points["z"], want.depth[y, x])
    assert np.array_equal(np.stack([points[name] for name in ("red", "green", "blue")], 1), image[y, x])


def test_the_focal_length_of_a_photo_is_taken_from_its_exif(client: TestClient) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769)[0xA405] = 28  # FocalLengthIn35mmFilm
    Image.fromarray(photo(60, 80)).save(file, "JPEG", exif=exif)

    def seen(data: bytes, **choices: object) -> tuple[float, bool]:
        answer = client.post("/api/predict", content=data, headers=IMAGE, params=choices)
        header = unpacked(answer.content)[0]
        return pytest.approx(header["film"]), header["guessed"]

    assert seen(file.getvalue()) == (28, False)
    assert seen(file.getvalue(), film=90) == (90, False)
    assert seen(png(photo(60, 80))) == (50, True)
    found = client.post("/api/download/points.ply", content=file.getvalue(), headers=IMAGE)
    assert b"EXIF: 28 mm on 35 mm film" in found.content


BAD = {
    "empty": (b"", 400, "empty"),
    "text": (b"hello, this is a text", 415, "not an image"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(64), 415, "HEI"),
    "PDF": (b"%PDF-1.7" + bytes(99), 415, "PDF"),
    "cut off": (png(photo(60, 80))[:900], 400, "PNG file is damaged"),
    "too many pixels": (png(np.zeros((1500, 1500, 3), np.uint8)), 413, "megapixels"),
    "claims to be huge": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\x7f\xff\xff\xff" * 2 + bytes(50), 413, "megapixels"),
    "too many bytes": (bytes(MAX_BYTES + 1), 413, "larger than the limit of 3 MB"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("path", ["/api/predict", "/api/download/depth.png"])
def test_what_is_no_image_is_refused_with_a_sentence(client: TestClient, what: str, path: str) -> None:
    data, status, words = BAD[what]
    refused = client.post(path, content=data, headers=IMAGE)
    assert refused.status_code == status, refused.text
    sentence = refused.json()["error"]
    assert words in sentence and sentence.endswith(".") and len(sentence) < 250 and "Traceback" not in sentence
    assert client.post("/api/predict", content=png(photo(20, 30)), headers=IMAGE).status_code == 200


def test_a_body_that_does_not_tell_its_length_is_limited_too(client: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(8):
            yield bytes(1_000_000)

    assert client.post("/api/predict", content=parts(), headers=IMAGE).status_code == 413


@pytest.mark.parametrize(("path", "status"), [
    ("/api/download/depth.tiff", 404), ("/api/download/depth.png?threshold=2", 400),
    ("/api/download/points.ply?film=nan", 400), ("/api/download/points.ply?film=wide", 400), ("/nothing", 404),
    ("/api/info", 405), ("/static/../models.py", 404), ("/static/%2e%2e%2fmodels.py", 404),
])
def test_requests_that_the_page_does_not_make(client: TestClient, path: str, status: int) -> None:
    refused = client.post(path, content=png(photo(20, 30)), headers=IMAGE)
    assert refused.status_code in (status, 405) and refused.json()["error"].endswith(".")


def test_only_images_are_taken(client: TestClient) -> None:
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""):
        refused = client.post("/api/predict", content=png(photo(20, 30)), headers={"Content-Type": kind})
        assert refused.status_code == 415, kind


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200), ("192.168.1.20:8000", 200),
    ("studio.example", 200), ("studio.example:8000", 200), ("STUDIO.example", 200),
    ("evil.example", 421), ("localhost.evil.example", 421), ("127.0.0.1.evil.example", 421), ("", 421), ("[", 421),
])
def test_a_foreign_name_for_this_machine_is_refused(client: TestClient, host: str, status: int) -> None:
    assert client.get("/", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("headers", [
    {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:9999"},
    {"Origin": "http://["}, {"Origin": "http://127.0.0.1:8000]"}, {"Origin": ""}, {"Origin": "http://a:b"},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
])
def test_a_foreign_page_cannot_use_the_models(client: TestClient, headers: dict[str, str]) -> None:
    refused = client.post("/api/predict", content=png(photo(20, 30)), headers=IMAGE | headers)
    assert refused.status_code == 403
    own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/predict", content=png(photo(20, 30)), headers=IMAGE | own).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200


def test_every_answer_has_the_headers_that_protect_it(client: TestClient) -> None:
    for path in ("/", "/static/main.js", "/api/info", "/nothing"):
        headers = client.get(path).headers
        assert {name: headers.get(name) for name in HEADERS} == HEADERS
    assert client.get("/", headers={"Host": "evil.example"}).headers["X-Content-Type-Options"] == "nosniff"
    assert client.get("/static/main.js").headers["Content-Type"].startswith("text/javascript")


def test_bodies_are_counted_while_they_are_read(page: Page) -> None:
    """Seven clients that send a part and no more: six are read, and the seventh is refused at once."""
    async def run() -> tuple[int, list[int]]:
        statuses: list[int] = []
        headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
        scope = {"type": "http", "method": "POST", "path": "/api/predict", "query_string": b"", "headers": headers,
                 "http_version": "1.1", "scheme": "http", "root_path": "", "server": None, "client": None}
        read = [0] * (MOST_WAITING + 1)

        async def client(i: int) -> None:
            async def receive() -> dict[str, object]:
                read[i] += 1
                if read[i] > 1:
                    await asyncio.Event().wait()
                return {"type": "http.request", "body": bytes(1000), "more_body": True}

            async def send(message: dict[str, object]) -> None:
                statuses.extend([message["status"]] if message["type"] == "http.response.start" else [])

            await own.app(dict(scope), receive, send)

        own = Page(page.models, MAX_BYTES)
        tasks = [asyncio.ensure_future(client(i)) for i in range(MOST_WAITING + 1)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return sum(map(bool, read)), statuses

    assert asyncio.run(run()) == (MOST_WAITING, [503])


def test_nothing_is_computed_for_a_client_that_has_left(tiny_bundle: Path) -> None:
    """It leaves while an earlier request computes."""
    runtime = load(tiny_bundle, "onnxruntime-cpu", precision="fp32")
    models = Models([runtime], MAX_PIXELS)
    with served_here(Page(models, MAX_BYTES)) as url:
        image = png(photo(30, 40))
        models._lock.acquire()  # as a request that computes
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/api/predict", content=image, headers=IMAGE, timeout=0.5)
        later = threading.Thread(target=httpx.post, args=(f"{url}/api/predict?live=1",),
                                 kwargs={"content": png(photo(31, 41)), "headers": IMAGE, "timeout": 30})
        later.start()
        time.sleep(0.3)
        models._lock.release()
        later.join()
        assert not models._kept, "the request of the client that left was computed"
        assert httpx.post(f"{url}/api/predict", content=image, headers=IMAGE).status_code == 200 and models._kept
    runtime.close()


@contextlib.contextmanager
def served_here(page: Page) -> Iterator[str]:
    """The page in a thread, over a real connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(page)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def test_who_comes_when_too_many_wait_is_asked_to_come_again(client: TestClient, page: Page) -> None:
    page.waiting += MOST_WAITING
    try:
        refused = client.post("/api/predict", content=png(photo(20, 30)), headers=IMAGE)
    finally:
        page.waiting -= MOST_WAITING
    assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
    assert client.post("/api/predict", content=png(photo(20, 30)), headers=IMAGE).status_code == 200


@pytest.mark.slow  # exports a bundle of its own: half a minute
def test_a_bundle_without_depth_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_multitask_dpt_model("test_vit", features=32, heads=("alpha",)).eval()
    save_checkpoint(tmp_path / "alpha.pth", model)
    config = ExportConfig(tmp_path / "alpha.pth", tmp_path / "alpha", precision="fp32", parity="quick",
                          engines=EngineOptions(builder="none"))
    export_checkpoint(config, say=lambda line: None)
    with load(tmp_path / "alpha", "onnxruntime-cpu") as runtime, \
            TestClient(Page(Models([runtime], MAX_PIXELS), MAX_BYTES).app, base_url="http://localhost") as client:
        header, (maps,), _ = unpacked(client.post("/api/predict", content=png(photo(20, 30)), headers=IMAGE).content)
        assert set(maps) == {"alpha"} and "depth_range" not in header["models"][0]
        assert client.get("/api/info").json()["models"][0]["heads"] == ["alpha"]
        refused = client.post("/api/download/points.ply", content=png(photo(20, 30)), headers=IMAGE)
        assert refused.status_code == 404 and "predicts no depth" in refused.json()["error"]


@pytest.mark.parametrize("value", [-1e20, 0, 3, 1e5, 1e20])
@pytest.mark.parametrize("kind", ["metric", "relative"])
def test_the_same_depth_everywhere_has_a_range(value: float, kind: str) -> None:
    flat = Prediction(np.full((4, 5), value, np.float32), depth_kind=kind)
    near, far = shown_range(flat)
    assert near < far
    assert (colour_depth(flat.depth, (near, far)) == colour_depth(flat.depth, (near, far))[0, 0]).all()


@pytest.fixture
def relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """A model of relative depth without normals and alpha."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with load(relative_model(tmp_path), "onnxruntime-cpu", measure=False) as runtime:
        yield runtime


def test_relative_depth_is_never_metres(relative: Runtime, tmp_path: Path) -> None:
    image = photo(*SIZE)
    want = relative(image).depth
    assert want.min() < 0 < want.max() < 0.001
    with TestClient(Page(Models([relative], MAX_PIXELS), MAX_BYTES).app, base_url="http://localhost") as client:
        (model,) = client.get("/api/info").json()["models"]
        assert (model["heads"], model["depth"]) == (["depth"], "relative")
        header, (maps,), _ = unpacked(client.post("/api/predict", content=png(image), headers=IMAGE).content)
        (model,) = header["models"]
        entry = model["maps"]["depth"]
        assert np.abs(maps["depth"] * entry["scale"] + entry["bias"] - want).max() < np.ptp(want) / 1e5
        near, far = model["depth_range"]
        assert (near, far) == pytest.approx(np.percentile(want, (1, 99)), abs=1e-6)
        for name in ("depth.png", "points.ply"):
            refused = client.post(f"/api/download/{name}", content=png(image), headers=IMAGE)
            assert refused.status_code == 404 and "relative depth without unit" in refused.json()["error"]
        for name in ("depth.exr", "maps.exr"):
            data = download(client, image, name)
            assert np.array_equal(channels(data, tmp_path)["Z"], want)
            with OpenEXR.File(io.BytesIO(data)) as file:
                assert file.header()["depthMeaning"].startswith("relative depth without unit")


@pytest.mark.parametrize("second", ["metric", "relative"])
def test_models_with_other_maps_are_compared_where_both_have_one(relative: Runtime, runtimes: list[Runtime],
                                                                 second: str) -> None:
    models = {"metric": [relative, runtimes[0]], "relative": [relative, relative]}[second]
    app = Page(Models(models, MAX_PIXELS), MAX_BYTES).app
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.post("/api/predict?compare=1", content=png(photo(*SIZE)), headers=IMAGE)
    header, maps, _ = unpacked(answer.content)
    assert [list(one) for one in maps] == [list(one.bundle.contract.heads) for one in models]
    assert header["difference"].get("depth", {}).get("max") == (None if second == "metric" else 0)


def test_alpha_of_the_first_model_says_what_counts_though_the_second_has_none() -> None:
    depth, alpha = np.full((4, 6), 2, np.float32), np.zeros((4, 6), np.float32)
    other = depth.copy()
    other[0], alpha[1:] = 20, 1
    found = difference(Prediction(depth, alpha=alpha), Prediction(other))
    assert found.keys() == {"depth"} and found["depth"]["max"] == 0


def test_a_uniform_map_and_one_without_a_value_have_a_form() -> None:
    for values in (np.full((2, 3), -4, np.float32), np.full((2, 3), np.nan, np.float32)):
        stored, scale, bias = spread(values)
        assert stored.dtype == np.uint16
        assert np.array_equal(np.where(stored > 0, stored * scale + bias, np.nan), values, equal_nan=True)


def test_a_model_that_fails_is_told_and_the_server_goes_on(tiny_bundle: Path) -> None:
    runtime = load(tiny_bundle, "onnxruntime-cpu", precision="fp32")
    app = Page(Models([runtime], MAX_PIXELS), MAX_BYTES).app
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        runtime.close()
        for _ in range(2):
            failed = client.post("/api/predict", content=png(photo(20, 30)), headers=IMAGE)
            assert failed.status_code == 500 and failed.json()["error"].endswith(".")
            assert failed.headers["X-Content-Type-Options"] == "nosniff"
        assert client.get("/api/info").status_code == 200


def test_points_of_an_image_without_any_are_refused(client: TestClient) -> None:
    refused = client.post("/api/download/points.ply?threshold=1", content=png(photo(20, 30)), headers=IMAGE)
    assert refused.status_code == 422 and "Lower the threshold" in refused.json()["error"]


_written: list[str] | None = None


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _written is not None and event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        _written.append(str(arguments[0]))


def test_nothing_is_written(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    global _written
    sys.addaudithook(_audit)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    _written = []
    try:
        client.post("/api/predict?compare=1", content=png(photo(50, 60, 5)), headers=IMAGE)
        for name in DOWNLOADS:
            download(client, photo(50, 60, 5), name)
        assert not _written and not list(tmp_path.iterdir())
    finally:
        _written = None


def test_files_are_not_rescaled_by_a_guess_of_the_focal_length(canonical_bundle: Path, tmp_path: Path) -> None:
    """As `dpt predict` does it. The tiny model's frames of 80x120 are stretched to 160x160: f = 200 * 120 / 160."""
    image = photo(80, 120)
    with load(canonical_bundle, "onnxruntime-cpu", precision="fp32") as runtime, \
            TestClient(Page(Models([runtime], MAX_PIXELS), MAX_BYTES).app, base_url="http://localhost") as client:
        found = runtime(image)
        for name in ("depth.exr", "maps.exr"):
            data = download(client, image, name)
            assert np.array_equal(channels(data, tmp_path)["Z"], found.depth)
            with OpenEXR.File(io.BytesIO(data)) as file:
                assert file.header()["depthMeaning"].startswith("z-depth for a focal length of 150 pixels")
            data = download(client, image, name, film=35)
            metres = found.in_metres(Intrinsics.from_film(35, (80, 120))).depth
            assert np.array_equal(channels(data, tmp_path)["Z"], metres)
            with OpenEXR.File(io.BytesIO(data)) as file:
                assert file.header()["depthMeaning"] == "z-depth in metres"
        refused = client.post("/api/download/depth.png", content=png(image), headers=IMAGE)
        assert refused.status_code == 422 and "Set it with the slider" in refused.json()["error"]
        depth = decoded(download(client, image, "depth.png", film=35))
        assert np.array_equal(depth, compact.encode("depth", "uint16-mm", metres))
        points = download(client, image, "points.ply")
        assert b"GUESSED" in points.partition(b"end_header")[0]
