"""python -m demo: export the demonstration checkpoint, judge it, and look at what it sees."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dpt_deploy import load
from dpt_deploy.bundle import Bundle
from dpt_deploy.files import write_json
from dpt_deploy.parity.judge import last_report
from dpt_deploy.predict import panel, write_png
from dpt_deploy.predict.__main__ import write_results
from dpt_deploy.runtime import Prediction, Runtime
from train.scores import Scores
from train.synthetic import Scene, generate, kind_of

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "demo" / "model" / "best_model.pth"
BUNDLE, OUT = ROOT / "engines" / "demo", ROOT / "runs" / "demo"
SEED, COUNT, SIZE = 777_001, 48, 128  # a seed that training never saw
SHOWN = (0, 1, 2)  # a face, a full body, an upper body
# Parity is judged on faces and upper bodies: a full body has some 1200 foreground pixels at 128 px, where the budget of
# 0.999 for IoU is a single pixel. Written at 512 px, so that the resize of the frame graph has something to do.
JUDGED, JUDGED_SIZE = (0, 2, 3, 5), 512

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Exit status 0 if the export's verdict is."""
    begin = time.monotonic()
    status = export()
    if status == 2:
        return status
    with load(BUNDLE) as runtime:
        console.print("\n[bold]2. Predict[/]")
        console.print(runtime.reason, markup=False)
        scenes = [generate(SEED, number, SIZE, SIZE) for number in range(COUNT)]
        predictions = runtime([scene.rgb for scene in scenes])
        photograph, seen = predict_photograph(runtime)
    rows = []
    for i in SHOWN:
        rows.append(panel(scenes[i].rgb, predictions[i], f"held out, {kind_of(i)}"))
        rows.append(panel(scenes[i].rgb, truth(scenes[i]), "truth"))
    rows.append(panel(photograph, seen, "a photograph: out of its domain"))
    write_png(OUT / "panel.png", stack(rows))
    print_scores(scenes, predictions)
    print_made(runtime.bundle, time.monotonic() - begin)
    return status


def export() -> int:
    """Run the exporter as a user would; its exit status."""
    for number in JUDGED:
        scene = generate(SEED, number, JUDGED_SIZE, JUDGED_SIZE)
        write_png(OUT / "held_out" / f"{kind_of(number)}_{number}.png", scene.rgb)
    arguments = [CHECKPOINT, "--out", BUNDLE, "--images", OUT / "held_out"]
    shown = " ".join(str(a.relative_to(ROOT)) if isinstance(a, Path) else a for a in arguments)
    console.print(f"[bold]1. Export[/]: python -m dpt_deploy.export {shown}", markup=True)
    return subprocess.run([sys.executable, "-m", "dpt_deploy.export", *map(str, arguments)], cwd=ROOT).returncode


def predict_photograph(runtime: Runtime) -> tuple[np.ndarray, Prediction]:
    """NASA's portrait of the astronaut Eileen Collins (public domain), and what the model makes of it."""
    from skimage.data import astronaut

    image = np.ascontiguousarray(astronaut())
    prediction = runtime(image)
    write_results(OUT, "astronaut", image, prediction, "astronaut")
    return image, prediction


def truth(scene: Scene) -> Prediction:
    """The generator's own maps."""
    return Prediction(scene.depth.astype(np.float32), scene.normals, scene.alpha)


def stack(rows: list[np.ndarray]) -> np.ndarray:
    """Panels one below the other, uint8 (H, W, 3) RGB."""
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])


def print_scores(scenes: list[Scene], predictions: list[Prediction]) -> None:
    """Task metrics of the exported bundle on held-out images, beside what the best constants score."""
    depth = np.concatenate([scene.depth[np.isfinite(scene.depth)] for scene in scenes])
    normal = np.concatenate([scene.normals[scene.alpha > 0.5] for scene in scenes]).mean(axis=0)
    alpha = np.concatenate([scene.alpha.ravel() for scene in scenes]).mean()
    shape = (SIZE, SIZE)
    constant = Prediction(
        np.full(shape, np.median(depth)), np.broadcast_to(normal / np.linalg.norm(normal), (*shape, 3)),
        np.full(shape, alpha),
    )
    ours, constants = score(scenes, predictions), score(scenes, [constant] * len(scenes))
    # IoU counts alpha above 0.5: the constant that says foreground everywhere scores best.
    constants["alpha_iou"] = score(scenes, [Prediction(alpha=np.ones(shape))] * len(scenes))["alpha_iou"]
    title = f"The bundle on {COUNT} held-out generated images ({SIZE} px, seed {SEED})"
    table = Table("", "this bundle", "constant prediction", title=title, title_justify="left")
    for key, name in (("depth_abs_rel", "depth AbsRel"), ("normals_mean", "normals mean [deg]"),
                      ("alpha_iou", "alpha IoU"), ("alpha_mae", "alpha MAE")):
        table.add_row(name, f"{ours[key]:.3f}", f"{constants[key]:.3f}")
    console.print(table)
    write_json(OUT / "metrics.json", {"bundle": ours, "constant": constants})


def score(scenes: list[Scene], predictions: list[Prediction]) -> dict[str, float]:
    """Metrics of `train.scores` over all images."""
    scores = Scores()
    for i, (scene, prediction) in enumerate(zip(scenes, predictions, strict=True)):
        depth = np.where(np.isfinite(scene.depth), scene.depth, 0.0)
        batch = {
            "inside": torch.ones(1, 1, *depth.shape, dtype=torch.bool), "kind": [kind_of(i)],
            "depth": batched(depth), "normals": batched(scene.normals), "alpha": batched(scene.alpha),
        }
        scores.add({head: batched(value) for head, value in prediction.maps.items()}, batch)
    return scores.table()["all"]


def batched(value: np.ndarray) -> torch.Tensor:
    """(H, W) or (H, W, C) -> float32 (1, C, H, W)."""
    value = np.ascontiguousarray(value, np.float32)
    return torch.from_numpy(value.reshape(*value.shape[:2], -1)).permute(2, 0, 1)[None]


def print_made(bundle: Bundle, seconds: float) -> None:
    """Where everything is, and the verdict."""
    table = Table("made", "where", title=f"Done in {seconds:.0f} s", title_justify="left")
    for what, path in (
        ("panel picture", OUT / "panel.png"), ("photograph: panel, maps, depth", OUT / "astronaut.panel.png"),
        ("metrics", OUT / "metrics.json"), ("bundle: graphs, engines, reference", BUNDLE),
        ("parity report", BUNDLE / "report.html"),
    ):
        table.add_row(what, str(path.relative_to(ROOT)))
    console.print(table)
    console.print(last_report(bundle).verdict, style="bold")


if __name__ == "__main__":
    sys.exit(main())
