"""python -m demo.view_picture [BUNDLE]: make docs/view.png, the picture of the page, with the demonstration's bundle.

It needs Chromium, and the bundle that `make demo` exports.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from dpt_deploy.cli import exit_on_error
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import replacing
from dpt_deploy.report.writers import write_png
from train.data.synthetic.scene import generate

from . import __main__ as demo

OUT = demo.ROOT / "docs" / "view.png"
SCENE, SIZE = 18, 640  # a face that the training did not see
WINDOW = {"width": 1220, "height": 840}
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def main(bundle: Path) -> None:
    """Start the page, show it a generated person, and write what it looks like."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise BadInput("expected Chromium, found none. Run: apt-get install chromium")
    if not bundle.is_dir():
        raise BadInput(f"expected a bundle, but there is no folder {bundle}. Run: make demo")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "person.png"
        write_png(image, generate(demo.SEED, SCENE, SIZE, SIZE).rgb)
        command = [sys.executable, "-m", "dpt_deploy.view", bundle, "--no-browser", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                found = (line.split()[4] for line in server.stdout if line.startswith("The page is at "))
                if (url := next(found, None)) is None:
                    raise BadInput("the page did not start; the line above says why.")
                with replacing(OUT) as temporary:
                    picture(chromium, url, image, temporary)
            finally:
                server.terminate()
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


def picture(chromium: str, url: str, image: Path, out: Path) -> None:
    """Write the page with an image to `out`: dark, the normals as clay under a lamp, a value under the pointer."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport=WINDOW, color_scheme="dark", reduced_motion="reduce")
        page.goto(url)
        page.set_input_files("#file", image)
        page.wait_for_selector("body[data-state=shown]")
        page.click("[data-mode=clay]")
        box = page.locator("[data-pane=depth] .frame").bounding_box()
        page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.45 * box["height"])
        page.wait_for_timeout(1500)
        page.evaluate("window.scrollTo(0, 0)")
        Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(out, "PNG", optimize=True)
        browser.close()


if __name__ == "__main__":
    with exit_on_error():
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else demo.BUNDLE)
