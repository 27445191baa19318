"""Run a bundle on an image: depth, normals and alpha at the image's own size.

    python examples/run_image.py engines/best_model photo.jpg result

Writes `result.npz` with the maps, `result.depth.exr` with the depth, and `result.panel.png` with the image and its
maps side by side. Needs neither torch nor the checkpoint.
"""

import sys
from pathlib import Path

import dpt_deploy
from dpt_deploy.cli import exit_on_error
from dpt_deploy.report.prediction_files import write_prediction
from dpt_deploy.runtime.image import read_image


def main(bundle: str, photo: str, result: str) -> int:
    image = read_image(photo)  # uint8 (H, W, 3) RGB; any array of this kind will do
    with dpt_deploy.load(bundle) as runtime:
        print(runtime.reason)  # the backend that runs, and why each preferred one does not
        prediction = runtime(image)
    person = prediction.alpha > 0.5
    if person.any():
        print(f"foreground: {person.mean():.0%} of the image, at a median depth of "
              f"{sorted(prediction.depth[person])[person.sum() // 2]:.2f} m")
    target = Path(result)
    for file in write_prediction(target.parent, target.name, image, prediction, Path(photo).name):
        print("wrote", file)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python examples/run_image.py BUNDLE IMAGE RESULT")
    with exit_on_error():
        sys.exit(main(*sys.argv[1:]))
