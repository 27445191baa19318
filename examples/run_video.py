"""Run a bundle on a video or a camera, frame by frame, while the next frames are being read.

    python examples/run_video.py engines/best_model people.mp4     # a file
    python examples/run_video.py engines/best_model 0              # a camera, until Ctrl-C

`Runtime.stream` iterates its source in a thread of its own and yields the maps in order. It reads at most a few frames
ahead, so memory stays bounded. `dpt predict BUNDLE people.mp4` writes a video of the maps instead.
"""

import sys
from collections.abc import Iterator

import cv2
import numpy as np

import dpt_deploy
from dpt_deploy.cli import exit_on_error


def frames(source: str) -> Iterator[np.ndarray]:
    """The frames of a video or camera, uint8 (H, W, 3) RGB."""
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if not capture.isOpened():
        sys.exit(f"cannot open {source}")
    try:
        while (read := capture.read())[0]:
            yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


def main(bundle: str, source: str) -> int:
    with dpt_deploy.load(bundle) as runtime:
        print(runtime.reason)
        for number, prediction in enumerate(runtime.stream(frames(source))):
            print(f"frame {number}: nearest point {prediction.depth.min():.2f} m, "
                  f"foreground {prediction.alpha.mean():.0%}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/run_video.py BUNDLE VIDEO_OR_CAMERA")
    with exit_on_error():
        sys.exit(main(*sys.argv[1:]))
