"""The throughput benchmark times batches and streams."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import throughput
from benchmarks.results import RESULTS


def test_throughput_of_batches_and_streams(tiny_bundle: Path, tmp_path: Path) -> None:
    config = throughput.ThroughputConfig(tiny_bundle, "onnxruntime-cpu", frame_size=(60, 80), batches=(1, 2),
                                         max_frames=3, rounds=1, out=tmp_path)
    assert throughput.main(config) == 0
    result = json.loads((tmp_path / "throughput.json").read_text())
    assert len(result["rows"]) == 4 and all(row["frames_per_s"] > 0 for row in result["rows"])
    committed = json.loads((RESULTS / "cpu_throughput.json").read_text())
    assert set(result) == set(committed), "result files keep their format"
    assert set(result["rows"][0]) == set(committed["rows"][0])
