"""The page in a real headless browser: what a person sees, does by mouse, keyboard and touch, and is told."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from dpt_deploy.core.metrics import angle
from dpt_deploy.runtime import Prediction, load
from tests.tiny import photo
from tests.view.conftest import Save, Served, served
from tests.view.relative import relative_model

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
         "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SIZE = "size => document.getElementById('size').textContent === size"
PROBLEM = "words => document.querySelector('#problem p').textContent.includes(words)"
SHOWN = "body[data-state=shown] #busy[hidden]"
IMAGE = photo(96, 128)


@pytest.fixture(scope="module")
def prediction(tiny_bundle: Path) -> Prediction:
    with load(tiny_bundle, "onnxruntime-cpu", precision="fp32") as runtime:
        return runtime(IMAGE)


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Served]:
    with served(tiny_bundle, "--backend", "onnxruntime-cpu", "--precision", "fp32", "--compare-precision", "fp16",
                "--max-megabytes", "2") as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser: sync_api.Browser, server: Served, request: pytest.FixtureRequest) -> Iterator[sync_api.Page]:
    with opened(browser, server, **getattr(request, "param", {})) as found:
        yield found


@contextlib.contextmanager
def opened(browser: sync_api.Browser, server: Served, **changes: object) -> Iterator[sync_api.Page]:
    """The page, freshly opened. At the end: no error in its console, and no request to anywhere else."""
    options = {"viewport": {"width": 1280, "height": 860}, "reduced_motion": "reduce"} | changes
    context = browser.new_context(**options)
    found = context.new_page()
    found.set_default_timeout(20_000)
    wrong: list[str] = []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("console", lambda message: wrong.append(message.text) if message.type == "error"
             and "Failed to load resource" not in message.text else None)
    found.on("request", lambda one: wrong.append(one.url) if not one.url.startswith((server.url, "blob:", "data:"))
             else None)
    found.goto(server.url)
    found.wait_for_selector("body[data-ready]")
    yield found
    context.close()
    assert not wrong


def choose(page: sync_api.Page, path: Path) -> None:
    page.set_input_files("#file", path)
    page.wait_for_selector(SHOWN, state="attached")
    page.wait_for_timeout(150)  # the pictures are painted in the next frame


def until(page: sync_api.Page, expression: str, argument: object = None) -> None:
    """Wait until an expression is true. The page's own rules forbid Playwright's way, which evaluates text in it."""
    for _ in range(200):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never true: {expression}")


def problem(page: sync_api.Page) -> str:
    page.wait_for_selector("#problem:not([hidden])")
    return page.inner_text("#problem p")


def pixel(page: sync_api.Page, pane: str, x: int, y: int) -> list[int]:
    return page.evaluate("([pane, x, y]) => [...document.querySelector(`[data-pane=${pane}] .frame canvas`)"
                         ".getContext('2d').getImageData(x, y, 1, 1).data]", [pane, x, y])


def cloud_picture(page: sync_api.Page) -> np.ndarray:
    page.wait_for_timeout(250)
    data = page.locator("#cloud").screenshot()
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def values(page: sync_api.Page) -> dict[str, str]:
    texts = page.locator("#values span").all_inner_texts()
    return {name: text.removeprefix(name).strip() for text in texts
            for name in ("Pixel", "Depth", "Angle to the viewer", "Foreground") if text.startswith(name)}


def first_number(text: str) -> float:
    return float(re.match(r"-?[\d.]+", text)[0])


def test_an_image_shows_its_maps_and_the_values_under_the_pointer(page: sync_api.Page, save: Save,
                                                                  prediction: Prediction) -> None:
    assert page.is_visible("#welcome") and not page.is_visible("#panes")
    choose(page, save("person.png", IMAGE))
    assert page.inner_text("#size") == "128 \u00d7 96" and not page.is_visible("#welcome")
    x, y = 30, 40
    box = page.locator("[data-pane=image] .frame canvas").bounding_box()
    page.mouse.move(box["x"] + (x + 0.5) / 128 * box["width"], box["y"] + (y + 0.5) / 96 * box["height"])
    found = values(page)
    assert found["Pixel"] == f"{x}, {y}"
    assert abs(first_number(found["Depth"]) - prediction.depth[y, x]) < 0.0011
    towards = float(angle(prediction.normals[y, x], np.array([0, 0, 1.0])))
    assert abs(first_number(found["Angle to the viewer"]) - towards) < 0.1
    assert abs(first_number(found["Foreground"]) - 100 * prediction.alpha[y, x]) < 0.3
    want = (prediction.normals[y, x] * 0.5 + 0.5) * 255
    assert np.abs(np.array(pixel(page, "normals", x, y)[:3]) - want).max() <= 3
    assert np.abs(np.array(pixel(page, "cutout", x, y)[:3]).astype(int) - IMAGE[y, x]).max() < 40
    assert cloud_picture(page).std() > 10


def test_sliders_change_what_they_say(page: sync_api.Page, save: Save, prediction: Prediction) -> None:
    choose(page, save("person.png", IMAGE))
    alpha = prediction.alpha[:, :60]  # the first model's side of the wipe
    y, x = np.unravel_index(np.argmin(np.abs(alpha - 0.6)), alpha.shape)
    for threshold, there in ((40, True), (80, False)):
        page.locator("#threshold").fill(str(threshold))
        page.wait_for_timeout(100)
        assert (pixel(page, "cutout", int(x), int(y))[3] > 0) == there
        assert page.inner_text("output[for=threshold]") == f"{threshold} %"
    before = cloud_picture(page)
    assert page.inner_text("#film-source") == "Focal length, a guess" and page.inner_text("#film-value") == "50 mm"
    page.locator("#film").fill("20")
    assert page.inner_text("#film-source") == "Focal length, as set"
    assert np.abs(cloud_picture(page).astype(int) - before).mean() > 0.5
    page.click("[data-mode=clay]")
    page.wait_for_timeout(100)
    dim = sum(pixel(page, "normals", 20, 40)[:3])
    box = page.locator("[data-pane=normals] .frame canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.9)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 20 / 128, box["y"] + box["height"] * 40 / 96, steps=4)
    page.mouse.up()
    page.wait_for_timeout(100)
    assert sum(pixel(page, "normals", 20, 40)[:3]) != dim and page.is_visible(".sun")
    page.click("[data-mode=photo]:left-of(#cloud)")
    page.click("[data-pane=cutout] label[title=Green]")
    assert "green" in page.get_attribute("[data-pane=cutout] .stage", "class")


def test_two_models_by_a_wipe_and_in_numbers(page: sync_api.Page, save: Save) -> None:
    choose(page, save("person.png", IMAGE))
    assert (page.inner_text("#label-a"), page.inner_text("#label-b")) == ("tiny, fp32", "tiny, fp16")
    numbers = page.inner_text("#difference")
    assert all(name in numbers for name in ("Depth", "Normals", "Cut-out", "IoU"))
    line = page.locator("[data-pane=depth] .wipe-line")
    box = page.locator("[data-pane=depth] .frame canvas").bounding_box()
    line.hover()
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 20, steps=3)
    page.mouse.up()
    assert page.input_value("#wipe") == "25"
    assert page.evaluate("document.querySelector('[data-pane=cutout] .wipe-line').style.left") == "25%"
    page.locator("[data-pane=depth] .frame canvas").focus()
    page.keyboard.press("ArrowLeft")
    assert "|" in values(page)["Depth"]
    page.uncheck("#comparing")
    page.wait_for_selector("[data-pane=depth] .wipe-line", state="hidden")
    assert page.inner_text("#difference") == "" and "|" not in values(page)["Depth"]


@pytest.mark.parametrize("first", ["metric", "relative"])
def test_two_models_with_different_maps(browser: sync_api.Browser, tiny_bundle: Path, save: Save, tmp_path: Path,
                                        first: str) -> None:
    """One has all maps in metres, the other nothing but relative depth."""
    models = [tiny_bundle, relative_model(tmp_path)][:: 1 if first == "metric" else -1]
    with served(models[0], "--backend", "onnxruntime-cpu", "--compare", str(models[1]),
                XDG_CACHE_HOME=str(tmp_path / "cache")) as server, opened(browser, server) as page:
        assert "its depth in metres, its relative depth" in page.inner_text(".drop")
        choose(page, save("person.png", IMAGE))
        for pane in ("depth", "normals", "cutout"):
            assert pixel(page, pane, 10, 40)[3] > 0 and pixel(page, pane, 110, 40)[3] > 0, pane
            assert page.locator(f"[data-pane={pane}] .wipe-line").is_visible() == (pane == "depth")
            assert page.inner_text(f"[data-pane={pane}] .meta") == ("" if pane == "depth" else "only tiny")
        assert cloud_picture(page).std() > 10
        page.locator("[data-pane=depth] .frame canvas").focus()
        page.keyboard.press("ArrowLeft")
        texts = values(page)["Depth"].split(" | ")
        assert sorted(re.sub(r"[-\d.e]+", "N", text) for text in texts) == ["N m", "N without unit"]
        assert "no map" in values(page)["Foreground"] and "one is relative" in page.inner_text("#difference")
        assert page.inner_text("#depth-title") == ("Depth" if first == "metric" else "Relative depth")
        assert page.is_visible("[data-file='depth.png']") == (first == "metric")
        assert page.inner_text("#far").split(" | ")[0].endswith("m") == (first == "metric")
        with page.expect_download() as download:  # from the model that has the map
            page.click("[data-file='points.ply']")
        assert Path(download.value.path()).read_bytes().startswith(b"ply\n")
        page.uncheck("#comparing")
        page.wait_for_selector("[data-pane=normals]", state="visible" if first == "metric" else "hidden")
        page.wait_for_selector("#cloud", state="visible" if first == "metric" else "hidden")
        assert page.is_visible("[data-file='maps.exr']")


def test_dropping_and_pasting(page: sync_api.Page, save: Save) -> None:
    page.evaluate("""async () => {
        window.given = async (size) => {
            const canvas = new OffscreenCanvas(size, 40);
            canvas.getContext("2d").fillRect(0, 0, 9, 9);
            const data = new DataTransfer();
            data.items.add(new File([await canvas.convertToBlob()], "given.png", {type: "image/png"}));
            return data;
        };
        const event = (name, dataTransfer) =>
            window.dispatchEvent(new DragEvent(name, {dataTransfer, cancelable: true}));
        const data = await window.given(50);
        event("dragenter", data);
        window.veiled = !document.getElementById("veil").hidden;
        event("drop", data);
    }""")
    until(page, SIZE, "50 \u00d7 40")
    assert page.evaluate("window.veiled") and not page.is_visible("#veil")
    page.evaluate("""async () => {
        window.dispatchEvent(new ClipboardEvent("paste", {clipboardData: await window.given(60)}));
    }""")
    until(page, SIZE, "60 \u00d7 40")
    page.evaluate("window.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer(), cancelable: true}))")
    assert "no image in what was dropped" in problem(page)


def test_a_folder_is_told(page: sync_api.Page) -> None:
    """In a drop it looks like a file, and cannot be read."""
    page.evaluate("""() => {
        const folder = new File([], "photos");
        folder.slice = () => ({arrayBuffer: async () => { throw new DOMException("", "NotFoundError"); }});
        Object.defineProperty(folder, "size", {value: 4096});
        const drop = new DragEvent("drop", {cancelable: true});
        Object.defineProperty(drop, "dataTransfer", {value: {files: [folder], types: ["Files"]}});
        window.dispatchEvent(drop);
    }""")
    assert "it is a folder" in problem(page)


def test_a_file_that_cannot_be_shown_changes_nothing(page: sync_api.Page, save: Save, tmp_path: Path) -> None:
    choose(page, save("person.png", IMAGE))
    page.locator("#film").fill("20")
    (tmp_path / "notes.png").write_text("these are notes")
    (tmp_path / "large.png").write_bytes(bytes(2_100_000))
    for name, words in (("notes.png", "not an image"), ("large.png", "2.1 MB")):
        page.set_input_files("#file", tmp_path / name)
        until(page, PROBLEM, words)
        assert page.inner_text("#film-value") == "20 mm"
        with page.expect_download() as download:
            page.click("[data-file='points.ply']")
        assert b"20 mm on 35 mm film, as set" in Path(download.value.path()).read_bytes()
    choose(page, save("other.png", photo(50, 60)))
    until(page, SIZE, "60 \u00d7 50")
    assert page.inner_text("#film-source") == "Focal length, a guess" and page.inner_text("#film-value") == "50 mm"


def test_what_is_no_image_is_told_in_a_sentence_and_the_next_one_works(page: sync_api.Page, save: Save,
                                                                      tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("these are notes")
    page.set_input_files("#file", tmp_path / "notes.png")
    assert problem(page).startswith("This is not an image that can be read.")
    (tmp_path / "large.png").write_bytes(bytes(2_100_000))
    page.set_input_files("#file", tmp_path / "large.png")
    until(page, PROBLEM, "2.1 MB")
    page.click("#problem button")
    assert not page.is_visible("#problem")
    choose(page, save("person.png", IMAGE))
    assert page.is_visible("#panes") and not page.is_visible("#problem")


@pytest.mark.parametrize(("button", "name", "start"), [
    ("points.ply", "person.points.ply", b"ply\n"), ("depth.png", "person.depth.png", b"\x89PNG"),
    ("maps.exr", "person.maps.exr", b"v/1\x01"),
])
def test_files_to_keep(page: sync_api.Page, save: Save, button: str, name: str, start: bytes) -> None:
    choose(page, save("person.png", IMAGE))
    with page.expect_download() as download:
        page.click(f"[data-file='{button}']")
    assert download.value.suggested_filename == name
    assert Path(download.value.path()).read_bytes().startswith(start)


def test_everything_by_keyboard(page: sync_api.Page, save: Save) -> None:
    choose(page, save("person.png", IMAGE))
    page.locator(".skip").focus()
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("""() => {
            const one = document.activeElement;
            const label = one.closest("label");
            const name = one.getAttribute("aria-label") || (label && label.textContent) || one.textContent || one.title;
            return (one.id || one.dataset.file || one.dataset.mode || one.tagName) + ":" + (name || "").trim();
        }"""))
        if reached[-1].startswith("BODY"):
            break
    ids = [one.partition(":")[0] for one in reached]
    wanted = ["choose", "camera", "theme", "comparing", "wipe", "depth.png", "fade", "colours", "threshold", "soft",
              "points.ply", "cloud", "reset", "film"]
    assert [one for one in ids if one in wanted] == wanted
    assert not [one for one in reached if one.endswith(":") and not one.startswith("BODY")], "each has a name"
    page.locator("[data-pane=depth] .frame canvas").focus()
    page.keyboard.press("ArrowRight")
    first = values(page)["Pixel"]
    page.keyboard.press("Shift+ArrowDown")
    assert values(page)["Pixel"] != first and first == "65, 48"
    assert "Depth" in page.get_attribute("[data-pane=depth] .frame canvas", "aria-label")
    page.locator("#cloud").focus()
    before = cloud_picture(page)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("+")
    turned = cloud_picture(page)
    assert np.abs(turned.astype(int) - before).mean() > 0.5
    page.keyboard.press("0")
    assert np.abs(cloud_picture(page).astype(int) - before).mean() < 0.5


@pytest.mark.parametrize("page", [
    {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2},
], indirect=True)
def test_a_phone(page: sync_api.Page, save: Save) -> None:
    widths = "[document.documentElement.scrollWidth, window.innerWidth]"
    assert page.evaluate(widths) == [390, 390]
    choose(page, save("person.png", IMAGE))
    assert page.evaluate(widths) == [390, 390]
    small = page.evaluate("""() => [...document.querySelectorAll("button, input[type=range]")]
        .filter((one) => one.offsetParent && one.getBoundingClientRect().height < 30)
        .map((one) => one.id || one.textContent)""")
    assert not small, "too small for a finger"
    for pane in ("image", "depth", "normals", "cutout"):
        assert page.locator(f"[data-pane={pane}] .frame canvas").bounding_box()["width"] > 300
    page.locator("[data-pane=depth] .frame canvas").tap(position={"x": 60, "y": 80})
    assert "m" in values(page)["Depth"]


@pytest.mark.parametrize(("page", "scheme"), [
    ({"color_scheme": "dark"}, "dark"), ({"color_scheme": "light"}, "light"),
], indirect=["page"])
def test_light_and_dark(page: sync_api.Page, scheme: str) -> None:
    def theme() -> tuple[str, bool]:
        brightness = page.evaluate("getComputedStyle(document.documentElement).backgroundColor"
                                   ".match(/\\d+/g).map(Number)")
        return page.evaluate("document.documentElement.dataset.theme"), sum(brightness) > 380

    other = {"dark": "light", "light": "dark"}[scheme]
    assert theme() == (scheme, scheme == "light")
    page.click("#theme")
    assert theme() == (other, other == "light")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert theme() == (other, other == "light")


@pytest.mark.parametrize("page", [{"permissions": ["camera"]}], indirect=True)
def test_the_camera(page: sync_api.Page) -> None:
    page.click("#camera2")
    page.wait_for_selector("body[data-state=shown]")
    until(page, "document.getElementById('status').textContent.includes('frames/s')")
    assert page.inner_text("#camera") == "Stop camera"
    page.click("#freeze")
    page.wait_for_timeout(1500)  # a frame that is on its way arrives
    frozen = page.inner_text("#status")
    page.wait_for_timeout(700)
    assert page.inner_text("#status") == frozen and page.inner_text("#freeze") == "Go on"
    with page.expect_download() as download:
        page.click("[data-file='depth.exr']")
    assert download.value.suggested_filename == "camera.depth.exr"
    page.click("#freeze")
    until(page, "before => document.getElementById('status').textContent !== before", frozen)
    page.click("#camera")
    assert page.inner_text("#camera") == "Camera" and not page.is_visible("#freeze")


@pytest.fixture
def canonical(browser: sync_api.Browser, canonical_bundle: Path) -> Iterator[sync_api.Page]:
    """The page of a network whose depth depends on the focal length, with a camera."""
    with served(canonical_bundle, "--backend", "onnxruntime-cpu", "--precision", "fp32") as server, \
            opened(browser, server, permissions=["camera"]) as found:
        yield found


def test_the_camera_does_not_take_the_focal_length_of_the_photo(canonical: sync_api.Page, save: Save) -> None:
    page = canonical
    choose(page, save("person.png", IMAGE))
    assert page.get_attribute("[data-file='depth.exr']", "title") == "OpenEXR, for the focal length that it names"
    page.locator("#film").fill("20")
    page.wait_for_selector("[data-file='depth.exr'][title='OpenEXR, metres']")
    assert page.inner_text("#film-source") == "Focal length, as set"
    page.click("#camera")
    until(page, "document.getElementById('status').textContent.includes('frames/s')")
    assert page.inner_text("#film-source") == "Focal length, a guess" and page.inner_text("#film-value") == "50 mm"


def test_depth_of_a_frozen_frame_follows_the_focal_length(canonical: sync_api.Page) -> None:
    page = canonical
    page.click("#camera2")
    page.wait_for_selector("body[data-state=shown]")
    page.click("#freeze")
    page.wait_for_timeout(500)  # a frame that is on its way arrives
    page.locator("[data-pane=depth] .frame canvas").focus()
    page.keyboard.press("ArrowLeft")
    before = float(values(page)["Depth"].removesuffix(" m"))
    page.locator("#film").fill("100")
    until(page, "before => !document.getElementById('values').textContent.includes(before)", f"{before:.3f} m")
    assert float(values(page)["Depth"].removesuffix(" m")) == pytest.approx(2 * before, rel=0.01)
    assert page.inner_text("#freeze") == "Go on"
    page.click("#freeze")
    until(page, "document.getElementById('status').textContent.includes('frames/s')")


def test_depth_without_a_range_has_a_colour(page: sync_api.Page) -> None:
    level = page.evaluate("""async () => (await import("/static/painters.js")).depthColour(
        {depth: [5], scale: 1, bias: 0, range: [5, 5]}, 0)""")
    assert 0 <= level <= 3 * 255


def test_a_camera_that_is_not_there(page: sync_api.Page) -> None:
    for name, words in (("NotAllowedError", "may not open the camera"), ("NotFoundError", "No camera was found")):
        page.evaluate("""name => {
            navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("", name); };
        }""", name)
        page.click("#camera")
        until(page, PROBLEM, words)
    assert page.inner_text("#camera") == "Camera"


SPY = """() => {
    window.streams = [];
    const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (wanted) => {
        const stream = await real(wanted);
        window.streams.push(stream);
        return stream;
    };
}"""
OPEN = "() => window.streams.filter((one) => one.getTracks().some((track) => track.readyState === 'live')).length"


@pytest.mark.parametrize("page", [{"permissions": ["camera"]}], indirect=True)
def test_a_camera_that_is_stopped_while_it_opens_stays_off(page: sync_api.Page) -> None:
    page.evaluate(SPY)
    page.evaluate("() => { const button = document.getElementById('camera'); button.click(); button.click(); }")
    until(page, "() => window.streams.length === 1")
    page.wait_for_timeout(500)
    assert page.evaluate(OPEN) == 0 and page.inner_text("#camera") == "Camera" and page.is_visible("#welcome")
    page.evaluate("() => { for (let i = 0; i < 3; i++) document.getElementById('camera').click(); }")
    page.wait_for_selector("body[data-state=shown]")
    assert page.evaluate(OPEN) == 1 and page.inner_text("#camera") == "Stop camera"


@pytest.mark.parametrize("page", [{"permissions": ["camera"]}], indirect=True)
def test_a_camera_that_is_unplugged_or_cannot_play_is_told(page: sync_api.Page) -> None:
    page.evaluate(SPY)
    page.evaluate("""() => {
        window.play = HTMLMediaElement.prototype.play;
        HTMLMediaElement.prototype.play = async () => { throw new DOMException("no picture", "NotSupportedError"); };
    }""")
    page.click("#camera")
    until(page, PROBLEM, "The camera cannot be opened: no picture")
    assert page.evaluate(OPEN) == 0 and page.inner_text("#camera") == "Camera" and page.locator("#busy").is_hidden()
    page.evaluate("() => { HTMLMediaElement.prototype.play = window.play; }")
    page.click("#camera")
    page.wait_for_selector("body[data-state=shown]")
    page.evaluate("() => window.streams.at(-1).getTracks()[0].dispatchEvent(new Event('ended'))")
    until(page, PROBLEM, "was disconnected")
    assert page.inner_text("#camera") == "Camera" and not page.is_visible("#freeze")


def test_a_server_that_has_ended_is_told(browser: sync_api.Browser, tiny_bundle: Path, save: Save) -> None:
    context = browser.new_context()
    with served(tiny_bundle, "--backend", "onnxruntime-cpu") as server:
        page = context.new_page()
        page.goto(server.url)
        page.wait_for_selector("body[data-ready]")
        assert not page.is_visible("#compare")
        assert server.end()[0] == 143
    page.set_input_files("#file", save("person.png", IMAGE))
    assert problem(page).startswith("The server does not answer.")
    context.close()
