"""Large runs end with each result once, whatever is broken, killed, shared or started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest

from dpt_deploy.core import places, tar_index
from dpt_deploy.core.errors import BackendError, BadInput, ContractError
from dpt_deploy.core.storage import Item
from dpt_deploy.predict.__main__ import PredictConfig, main
from dpt_deploy.predict.batches import MOST_FAULTS, Batches, Work
from dpt_deploy.predict.formats import FORMATS
from dpt_deploy.predict.outputs import Files
from dpt_deploy.predict.sources import find_sources
from dpt_deploy.runtime import Runtime, load
from tests.cpp.toy import make_toy

SIZES = ((24, 32), (32, 24), (16, 16))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose depth is the red channel plus 1 [m]."""
    return make_toy(tmp_path_factory.mktemp("toy") / "bundle").folder


def picture(number: int, scale: int = 1) -> np.ndarray:
    """uint8 (H, W, 3) RGB whose red channel is `number` modulo 50."""
    height, width = SIZES[number % len(SIZES)]
    image = np.zeros((scale * height, scale * width, 3), np.uint8)
    image[..., 0] = number % 50
    return image


def fill(folder: Path, count: int, broken: int = 0, scale: int = 1) -> list[str]:
    """PNG files in two folders, every `broken`-th one truncated. Returns the keys of those that can be decoded."""
    good = []
    for number in range(count):
        path = folder / ("odd" if number % 2 else "") / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = cv2.imencode(".png", picture(number, scale)[..., ::-1])[1].tobytes()
        fine = not broken or number % broken != broken - 1
        path.write_bytes(data if fine else data[: len(data) // 2])
        good += [path.relative_to(folder).as_posix()] * fine
    return good


def journal(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((out / "_journal").glob("part-*.jsonl")):
        for text in path.read_text().splitlines():
            if text.endswith("}"):
                yield json.loads(text)


def done(out: Path) -> Counter[str]:
    """How often the journal says that an image is done whose files are there."""
    found: Counter[str] = Counter()
    pending: Counter[str] = Counter()
    for line in journal(out):
        if "files" in line:
            found[line["key"]] += all((out / name).stat().st_size == size for name, size, _ in line["files"])
        elif "in" in line:
            pending[line["key"]] += 1
        elif "shard" in line:
            found += pending if (out / line["shard"]).exists() else Counter()
            pending.clear()
    return found


def once(out: Path, keys: list[str]) -> None:
    """Each image has its result, and has it once."""
    assert done(out) == Counter(dict.fromkeys(keys, 1))


def command(toy: Path, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "dpt_deploy.predict", str(toy), *map(str, arguments), "--threads", "1"]


def start(toy: Path, *arguments: object) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command(toy, *arguments), stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def wait_for(process: subprocess.Popen[str], out: Path, images: int) -> None:
    """Wait until that many images are in the journal."""
    for _ in range(6000):
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        if sum("key" in line for line in journal(out)) >= images:
            return
        time.sleep(0.01)
    raise AssertionError("nothing came of it in a minute")


def test_many_images_get_small_files_and_a_short_table(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = fill(tmp_path / "in", 130, broken=10)
    out = tmp_path / "out"
    assert main(PredictConfig(toy, (str(tmp_path / "in"),), out, recursive=True)) == 1
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 30 and "117 done, 13 failed" in said and said.count("skipped  ") == 6
    once(out, good)
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".npz", ".jsonl", ".json"}
    failures = {line["key"]: line["failed"] for line in journal(out) if "failed" in line}
    assert len(failures) == 13 and all("cannot be decoded" in reason for reason in failures.values())
    for number in (0, 1, 8, 128):
        name = f"{'odd/' if number % 2 else ''}{number:04d}"
        with np.load(out / f"{name}.npz") as maps:
            assert (maps["depth"] == number % 50 + 1).all() and maps["depth"].shape == SIZES[number % 3]
    with pytest.raises(BadInput, match="--resume"):
        main(PredictConfig(toy, (str(tmp_path / "in"),), out, recursive=True))
    with pytest.raises(BadInput, match=r'"npz" and is now "exr".*--out'):
        main(PredictConfig(toy, (str(tmp_path / "in"),), out, recursive=True, resume=True, format="exr"))


SLOWLY = ("--batch", 1, "--workers", 1)
"""So that a run of large images takes some seconds, and is not over before the signal comes."""


@pytest.mark.parametrize("format", ["png16", "tar"])
def test_killed_and_started_again_gives_each_result_once(toy: Path, tmp_path: Path, format: str) -> None:
    good = fill(tmp_path / "in", 400, broken=50, scale=8)
    out = tmp_path / "out"
    options = (tmp_path / "in", "--recursive", "--out", out, "--format", format, "--shard-size", 20)
    process = start(toy, *options, *SLOWLY)
    wait_for(process, out, 40)
    process.kill()
    process.communicate(timeout=60)
    before = done(out)
    assert 40 <= len(before) < len(good)
    again = subprocess.run(command(toy, *options, "--resume"), capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert again.returncode == 1 and f"8 failed, {len(before)} done before" in again.stdout, again.stderr
    once(out, good)
    if format == "tar":
        members: Counter[str] = Counter()
        for path in out.glob("*.tar"):
            with tarfile.open(path) as tar:
                members.update(tar.getnames())
        stems = [key.removesuffix(".png") for key in good]
        assert members == Counter(f"{stem}.{head}.png" for stem in stems for head in ("depth", "normals", "alpha"))
    else:
        assert len(list(out.rglob("*.png"))) == 3 * len(good)


def test_a_signal_ends_a_run_that_can_go_on(toy: Path, tmp_path: Path) -> None:
    good = fill(tmp_path / "in", 300, scale=8)
    out = tmp_path / "out"
    process = start(toy, tmp_path / "in", "--recursive", "--out", out, "--format", "tar", "--shard-size", 30, *SLOWLY)
    wait_for(process, out, 30)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and " done" in said and not errors
    assert 30 <= len(done(out)) < 300 and not list(out.glob(".*"))  # the shard that was open is complete
    assert main(PredictConfig(toy, (str(tmp_path / "in"),), out, recursive=True, format="tar", resume=True)) == 0
    once(out, good)


def test_files_that_are_lost_or_changed_are_made_again(toy: Path, tmp_path: Path) -> None:
    good = fill(tmp_path / "in", 12)
    run = PredictConfig(toy, (str(tmp_path / "in"),), tmp_path / "out", recursive=True, resume=True)
    assert main(run) == 0
    (tmp_path / "out" / "0002.npz").unlink()
    (tmp_path / "out" / "0004.npz").write_bytes(b"")
    assert main(run) == 0
    assert set(done(tmp_path / "out")) == set(good)
    keys = [line["key"] for line in journal(tmp_path / "out") if "key" in line]
    assert Counter(keys) == Counter(good) + Counter(["0002.png", "0004.png"])


def test_shares_are_disjoint_and_together_whole(toy: Path, tmp_path: Path) -> None:
    good = fill(tmp_path / "in", 50, broken=25)
    shares: list[int] = []
    for part in (2, 1, 3):
        main(PredictConfig(toy, (str(tmp_path / "in"),), tmp_path / "out", recursive=True, shard=(part, 3)))
        shares.append(len(done(tmp_path / "out")) - sum(shares))
    assert sum(shares) == 48 and min(shares) >= 14
    once(tmp_path / "out", good)


def test_every_kind_of_source(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a glob, two lists, a tar of WebDataset's naming and a bucket give the same maps."""
    folder = tmp_path / "in"
    good = fill(folder, 6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with tarfile.open("shard-000000.tar", "w") as tar:
        for key in good:
            tar.add(folder / key, key)
        tar.add(folder / "0000.png", "0000.json")
    Path("list.txt").write_text("".join(f"in/{key}\n" for key in good))
    Path("names").write_text("".join(f"in/{key}\n" for key in good))
    bucket = fsspec.filesystem("memory")
    for key in good:
        bucket.pipe(f"/photos/{key}", (folder / key).read_bytes())
    bucket.pipe("/shards/a.tar", Path("shard-000000.tar").read_bytes())
    sources = {"in": "", "in/**/*.png": "", "list.txt": "in/", "@names": "in/", "shard-000000.tar": "",
               "memory://photos": "", "memory://shards/*.tar": "a/"}
    for number, (source, prefix) in enumerate(sources.items()):
        out = tmp_path / f"out{number}"
        assert main(PredictConfig(toy, (source,), out, recursive=True, format="npz", look="none")) == 0
        for key in good:
            with np.load(out / f"{prefix}{key.removesuffix('.png')}.npz") as maps:
                assert (maps["depth"] == int(Path(key).stem) + 1).all(), source
    assert main(PredictConfig(toy, ("in", "shard-000000.tar"), tmp_path / "both", recursive=True, resume=True)) == 0
    assert len(list((tmp_path / "both").rglob("*.npz"))) == 2 * len(good)
    with pytest.raises(BadInput, match=r"none\*: expected images, found none"):
        main(PredictConfig(toy, ("in/none*",), tmp_path / "none"))
    with pytest.raises(BadInput, match=r"@gone: expected @ and a list of files"):
        main(PredictConfig(toy, ("@gone",), tmp_path / "none"))


def test_a_lying_index_beside_a_tar_writes_nothing_outside_of_the_output_folder(toy: Path, tmp_path: Path) -> None:
    fill(tmp_path / "in", 2)
    archive = tmp_path / "in" / "a.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "in" / "0000.png", "0000.png")
    (member,) = tar_index.make_index(str(archive)).members()
    lie = tar_index.from_members(str(archive), places.stamp(str(archive)),
                                 [member._replace(name="../../../escaped.png")], [])
    tar_index.write_index(lie, archive.with_name("a.tar.index"))
    out = tmp_path / "deep" / "er" / "out"
    assert main(PredictConfig(toy, (str(archive), str(tmp_path / "in" / "0000.png")), out, format="npz")) == 0
    assert not list(tmp_path.rglob("escaped*")) and len(list(out.rglob("0000.npz"))) == 2


def test_results_are_no_inputs(toy: Path, tmp_path: Path) -> None:
    good = fill(tmp_path, 4)
    for _ in range(2):
        main(PredictConfig(toy, (str(tmp_path),), tmp_path, recursive=True, format="png16", look="panel", resume=True))
    once(tmp_path, good)


@pytest.mark.parametrize(("options", "said"), [
    ({"maps": ("depth",), "forms": {"depth": "float16"}, "format": "png16"}, "holds depth as uint16-mm"),
    ({"look": "panel", "format": "zarr"}, "a zarr shard holds arrays only"),
    ({"ray": True, "sources": ("0",)}, "--ray: expected images, received 0"),
    ({"out": Path("/dev/null/out"), "resume": True}, "cannot write /dev/null/out: Not a directory"),
])
def test_options_that_do_not_fit_end_the_run_at_once(
    toy: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    fill(tmp_path / "in", 2)
    with pytest.raises(BadInput, match=said):
        main(PredictConfig(**{"bundle": toy, "sources": (str(tmp_path / "in"),), "out": tmp_path / "out"} | options))
    assert not (tmp_path / "out").exists()


class Spy:
    """A runtime that notes the sizes of its batches, and fails as it is told."""

    def __init__(self, runtime: Runtime, fails: Any = None) -> None:
        self.runtime, self.fails, self.calls = runtime, fails, []

    def __call__(self, images: list[np.ndarray]) -> Any:
        self.calls.append([image.shape[:2] for image in images])
        if self.fails and (error := self.fails(images)):
            raise error
        return self.runtime(images)


def works(folder: Path, keys: list[str]) -> list[Work]:
    return [Work(key, key.removesuffix(".png"), Item(key, str(folder / key))) for key in keys]


def run(spy: Spy, folder: Path, keys: list[str], **options: Any) -> list[Any]:
    files = Files(folder / "out", "npz", dict(FORMATS["npz"].forms), "none", None)
    return list(Batches(spy, files, 10_000, 4, 2, **options).run(works(folder, keys)))


def test_images_of_one_size_run_together(toy: Path, tmp_path: Path) -> None:
    keys = fill(tmp_path, 48)
    with load(toy, "onnxruntime-cpu") as runtime:
        spy = Spy(runtime)
        outcomes = run(spy, tmp_path, keys)
        assert Counter(map(len, spy.calls)) == {4: 12} and all(len(set(call)) == 1 for call in spy.calls)
        assert {outcome.work.key for outcome in outcomes} == set(keys)
        serial = Spy(runtime)
        assert len(run(serial, tmp_path, keys[:5], serial=True)) == 5 and set(map(len, serial.calls)) == {1}
        bounded = Spy(runtime)  # a bound smaller than an image: one after the other, and no deadlock
        assert len(run(bounded, tmp_path, keys[:9], most_pixels=1)) == 9


def test_an_image_that_the_backend_refuses_fails_alone(toy: Path, tmp_path: Path) -> None:
    keys = fill(tmp_path, 12)

    def refuse(images: list[np.ndarray]) -> Exception | None:
        return ContractError("outside the profile") if any(image[0, 0, 0] == 3 for image in images) else None

    with load(toy, "onnxruntime-cpu") as runtime:
        outcomes = run(Spy(runtime, refuse), tmp_path, keys)
    assert [outcome.reason.split(": ")[-1] for outcome in outcomes if outcome.failed] == ["outside the profile"]
    assert len(outcomes) == 12


def test_a_backend_that_is_gone_ends_the_run(toy: Path, tmp_path: Path) -> None:
    keys = fill(tmp_path, 2 * MOST_FAULTS)
    with load(toy, "onnxruntime-cpu") as runtime, pytest.raises(BackendError, match="device lost"):
        run(Spy(runtime, lambda images: BackendError("device lost")), tmp_path, keys)


def test_a_name_too_long_fails_alone_and_a_full_disk_ends_the_run(toy: Path, tmp_path: Path) -> None:
    keys = fill(tmp_path, 6)
    long = [Work("long", "x" * 300, Item("0000.png", str(tmp_path / "0000.png")))]
    files = Files(tmp_path / "out", "npz", dict(FORMATS["npz"].forms), "none", None)
    with load(toy, "onnxruntime-cpu") as runtime:
        outcomes = list(Batches(runtime, files, 10_000, 4, 2).run(long + works(tmp_path, keys)))
        assert [outcome.work.key for outcome in outcomes if outcome.failed] == ["long"]
        full = Files(Path("/dev/full"), "npz", dict(FORMATS["npz"].forms), "none", None)
        full.encode = lambda *arguments: _full()
        with pytest.raises(BadInput, match="No space left"):
            list(Batches(runtime, full, 10_000, 4, 2).run(works(tmp_path, keys)))


def _full() -> None:
    from dpt_deploy.core.files import cannot_write

    try:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")
    except OSError as error:
        raise cannot_write("/dev/full", error) from error


def test_pages_and_animations(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwritemulti(str(tmp_path / "scan.tiff"), [picture(n)[..., ::-1] for n in (3, 4, 5)])
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(tmp_path / "scan.tiff", "scan.tiff")
    out = tmp_path / "out"
    assert main(PredictConfig(toy, (str(tmp_path / "scan.tiff"),), out, resume=True)) == 0
    assert sorted(path.name for path in out.glob("*.npz")) == [f"scan.page{n}.npz" for n in (1, 2, 3)]
    assert main(PredictConfig(toy, (str(tmp_path / "s.tar"),), tmp_path / "tar", resume=True)) == 1
    assert "only the first of its pages is predicted" in capsys.readouterr().out


def test_sources_are_told_apart(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    found = find_sources([str(tmp_path), "rtsp://camera/stream", "http://camera/live", "memory://photos/*.png", "0"])
    assert found.videos == ["rtsp://camera/stream", "http://camera/live", "0"]
    assert [source.text for source in found.listing.sources] == [str(tmp_path), "memory://photos/*.png"]


def test_a_cluster_that_does_not_answer_is_named_at_once(toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    fill(tmp_path / "in", 2)
    with pytest.raises(BadInput, match=r"Ray cluster at 127\.0\.0\.1:1, but nothing answers there.*Check the address"):
        main(PredictConfig(toy, (str(tmp_path / "in"),), tmp_path / "out", ray_address="127.0.0.1:1"))


def test_ray_gives_each_result_once_though_an_actor_dies(toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    good = fill(tmp_path / "in", 250, broken=50, scale=8)
    out = tmp_path / "out"
    process = start(toy, tmp_path / "in", "--recursive", "--out", out, "--ray", *SLOWLY)
    wait_for(process, out, 5)
    first = next((out / "_journal").glob("part-*-0.jsonl")).read_text().splitlines()[0]
    os.kill(json.loads(first)["run"]["pid"], signal.SIGKILL)
    said, errors = process.communicate(timeout=200)
    assert process.returncode == 1 and "245 done, 5 failed" in said, errors
    assert any("begun" in line for line in journal(out))  # after a death, one at a time
    once(out, good)
    assert "Traceback" not in errors and "rror" not in errors
    # Without Ray, the same folder goes on.
    assert main(PredictConfig(toy, (str(tmp_path / "in"),), out, recursive=True, resume=True)) == 1
    once(out, good)
