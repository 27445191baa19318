"""python -m demo: export the demonstration checkpoint, judge it, and show predictions and metrics."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from demo.photographs import photographs
from dpt_deploy import load
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.files import write_json
from dpt_deploy.report.panel import panel
from dpt_deploy.report.prediction_files import write_prediction
from dpt_deploy.report.terminal import plain_console
from dpt_deploy.report.writers import write_png
from dpt_deploy.runtime import Prediction, Runtime
from train.data.synthetic.scene import Scene, generate, kind_of
from train.evaluate import EvaluateConfig, evaluate
from train.monitoring.tables import metrics_table
from train.synthetic import SyntheticConfig, write_dataset

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "demo" / "model" / "best_model.pth"
BUNDLE, OUT = ROOT / "engines" / "demo", ROOT / "runs" / "demo"
SEED, COUNT, SIZE = 777_001, 48, 128  # a seed that the training did not use
PANEL_SCENES = (0, 1, 2)  # a face, a full body, an upper body
# Faces and upper bodies only: a full body has about 1200 foreground pixels at 128 px, so that an IoU budget of 0.999
# allows a single wrong pixel. At 512 px, to exercise the resize in the frame graph.
PARITY_SCENES, PARITY_SIZE = (0, 2, 3, 5), 512

console = plain_console(soft_wrap=True)


def main(verbose: bool = False) -> int:
    """Exit status: that of the export."""
    start = time.monotonic()
    status = export()
    if status == 2:
        return status
    with load(BUNDLE) as runtime:
        console.print("\n2. Predict", style="bold")
        console.print(runtime.reason if verbose else runtime.summary)
        scenes = [generate(SEED, number, SIZE, SIZE) for number in PANEL_SCENES]
        predictions = runtime([scene.rgb for scene in scenes])
        pictures = predict_photographs(runtime)
    rows = []
    for number, scene, prediction in zip(PANEL_SCENES, scenes, predictions, strict=True):
        rows.append(panel(scene.rgb, prediction, f"held out, {kind_of(number)}"))
        rows.append(panel(scene.rgb, ground_truth(scene), "ground truth"))
    rows += pictures
    write_png(OUT / "panel.png", stack(rows))
    print_scores()
    print_outputs(runtime.bundle, time.monotonic() - start)
    return status


def export() -> int:
    """Run the export command; returns its exit status."""
    for number in PARITY_SCENES:
        scene = generate(SEED, number, PARITY_SIZE, PARITY_SIZE)
        write_png(OUT / "held_out" / f"{kind_of(number)}_{number}.png", scene.rgb)
    arguments = [CHECKPOINT, "--out", BUNDLE, "--images", OUT / "held_out"]
    shown = " ".join(str(a.relative_to(ROOT)) if isinstance(a, Path) else a for a in arguments)
    console.print(Text.assemble(("1. Export", "bold"), f": python -m dpt_deploy.export {shown}"))
    return subprocess.run([sys.executable, "-m", "dpt_deploy.export", *map(str, arguments)], cwd=ROOT).returncode


def predict_photographs(runtime: Runtime) -> list[np.ndarray]:
    """Panels of photographs, of which the training has seen none; each photograph's maps are written too."""
    rows = []
    for name, image in photographs().items():
        prediction = runtime(image)
        write_prediction(OUT, name.lower().replace(" ", "_"), image, prediction, name)
        rows.append(panel(image, prediction, f"a photograph: {name}"))
    return rows


def ground_truth(scene: Scene) -> Prediction:
    """The maps of the generator."""
    return Prediction(scene.depth.astype(np.float32), scene.normals, scene.alpha)


def stack(rows: list[np.ndarray]) -> np.ndarray:
    """Stack panels vertically, uint8 (H, W, 3) RGB."""
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])


def print_scores() -> None:
    """Print task metrics of the bundle on held-out images, next to those of constant predictions."""
    data = OUT / "cache"
    write_dataset(SyntheticConfig(data, COUNT, (SIZE, SIZE), SEED, workers=1, prepared=True))
    result = evaluate(EvaluateConfig(BUNDLE, data, workers=0))
    console.print(f"The bundle on {COUNT} held-out generated images ({SIZE} px, seed {SEED}):")
    console.print(metrics_table(result["metrics"], result["constant"]))
    write_json(OUT / "metrics.json", result)


def print_outputs(bundle: Bundle, seconds: float) -> None:
    """Print the output files and the verdict."""
    table = Table("output", "path", title=f"Done in {seconds:.0f} s", title_justify="left")
    outputs = {"panel picture": OUT / "panel.png", "photographs: panels, maps, depth": OUT / "*.panel.png",
               "metrics": OUT / "metrics.json", "bundle: graphs, engines, reference": BUNDLE,
               "parity report": BUNDLE / "report.html"}
    for name, path in outputs.items():
        table.add_row(name, str(path.relative_to(ROOT)))
    console.print(table)
    console.print(bundle.last_report().verdict, style="bold")


if __name__ == "__main__":
    if wrong := [argument for argument in sys.argv[1:] if argument not in ("-v", "--verbose")]:
        print(f"error: expected no option but --verbose, received {wrong[0]}", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(verbose=len(sys.argv) > 1))
