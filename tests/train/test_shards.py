"""Training on tar shards: the same samples, the same weights, and every damage named."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import locked
from dpt_deploy.core.shard_writer import ShardWriter
from dpt_deploy.core.tar_index import load_index
from dpt_deploy.model import create_multitask_dpt_model, save_checkpoint
from dpt_deploy.predict.reader import Reader
from tests.train.conftest import tensors_equal
from train.check import CheckConfig
from train.check import main as check
from train.config import TrainConfig
from train.data import exr, shard_files
from train.data.cache import CacheSource
from train.data.dataset import MapDataset, TrainBatches, ValBatches, create_loader
from train.data.shards import ShardSource
from train.data.sources import Source, open_source
from train.evaluate import EvaluateConfig, evaluate
from train.labelled import open_labelled
from train.loop.trainer import Trainer
from train.prepare import PrepareConfig, prepare, verify

fsspec = pytest.importorskip("fsspec")

ROLES = ("rgb.png", "alpha.png", "depth.exr", "normal.exr", "cam.txt")


@pytest.fixture(autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Indexes are kept here and not in the user's own cache; one thread is as fast for networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def packed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original files of `data` in several shards."""
    folder = tmp_path_factory.mktemp("packed")
    written = prepare(PrepareConfig(data, folder, shards=True, originals=True, workers=1, shard_megabytes=1))
    assert written == (24, 0)
    return folder


@pytest.fixture(scope="session")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data` at 48x48, letterboxed into it from a size that is not square, in several shards."""
    folder = tmp_path_factory.mktemp("prepared")
    assert prepare(PrepareConfig(data, folder, (48, 48), shards=True, workers=1)) == (24, 0)
    return folder


def same(a: Source, b: Source) -> None:
    """Both sources give the same samples in the same order."""
    assert a.names == b.names and a.kinds == b.kinds
    for i in range(len(a)):
        one, other = a.read(i), b.read(i)
        for field in ("rgb", "depth", "normals", "alpha", "intrinsics", "inside"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=f"{i} {field}")


def test_packed_files_are_the_samples_of_the_folder_wherever_they_lie(data: Path, packed: Path) -> None:
    folder = open_source(data)
    shards = open_source(packed)
    assert isinstance(shards, ShardSource) and not shards.incomplete and shards.fingerprint() == folder.fingerprint()
    same(folder, shards)
    system = fsspec.filesystem("memory")
    for path in packed.iterdir():
        system.pipe(f"/bucket/{path.name}", path.read_bytes())
    count = len(list(packed.glob("*.tar")))
    for root in ("memory://bucket", f"memory://bucket/shard-{{000000..{count - 1:06d}}}.tar", packed / "shard-*.tar",
                 f"{packed}/shard-{{000000..{count - 1:06d}}}.tar"):
        same(folder, open_source(root))


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_the_original_names_inside_a_tar_of_another_program_are_samples_too(
    form: str, data: Path, tmp_path: Path
) -> None:
    for chunk in sorted(data.iterdir()):
        subprocess.run(["tar", f"--format={form}", "--sort=name", "-C", data, "-cf", tmp_path / f"{chunk.name}.tar",
                        chunk.name], check=True)
    same(open_source(data), open_source(tmp_path))
    assert len(open_source(tmp_path / "SynthHuman_0000.tar")) == 8


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_shards_of_the_webdataset_package_are_read_and_ours_by_it(data: Path, packed: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    folder = open_source(data)
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as sink:
        for i, name in enumerate(folder.names):
            files = {file.partition("_")[0] + Path(file).suffix: content for file, content in folder.files(i)}
            sink.write({"__key__": name} | files)
    same(folder, open_source(tmp_path / "0.tar"))
    read = [sample for path in sorted(packed.glob("*.tar"))
            for sample in webdataset.WebDataset(str(path), shardshuffle=False)]
    assert [sample["__key__"] for sample in read] == folder.names
    assert read[0]["rgb.png"] == folder.files(0)[0][1] and len(read[0]["cam.txt"]) > 20


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_prepared_shards_hold_what_a_cache_holds(resize: str, data: Path, tmp_path: Path) -> None:
    for shards in (False, True):
        options = PrepareConfig(data, tmp_path / str(shards), (32, 48), resize, shards=shards, workers=1)
        prepare(options)
        assert verify(options) == 24
    cache, source = open_source(tmp_path / "False"), open_source(tmp_path / "True")
    assert isinstance(cache, CacheSource)
    assert source.input_size == (32, 48) == cache.input_size and source.resize == resize
    same(cache, source)


def killed_at(trainer: Trainer, step: int) -> None:
    """Run until `step` begins, where the process dies without warning."""
    original = trainer.stepper

    def step_or_die(*args: object) -> object:
        if trainer.progress.total_steps == step:
            raise RuntimeError("killed")
        return original(*args)

    trainer.stepper = step_or_die
    with pytest.raises(RuntimeError, match="killed"):
        trainer.run()


def assert_same_weights(a: Path, b: Path) -> None:
    one, other = (torch.load(path / "final_model.pth", weights_only=True) for path in (a, b))
    assert tensors_equal(one, other)


def test_a_run_on_shards_ends_with_the_weights_of_one_on_files_also_after_a_kill(
    config: Callable[..., TrainConfig], packed: Path, tmp_path: Path
) -> None:
    run = functools.partial(config, epochs=2, max_train_batches=3, max_val_batches=1, samples=1)
    Trainer(run(out=tmp_path / "files")).run()
    # Killed within an epoch on files, continued within the same epoch on shards, and in the next one on a bucket.
    save = {"out": tmp_path / "broken", "save_minutes": 1e-9}
    killed_at(Trainer(run(**save)), 2)
    system = fsspec.filesystem("memory")
    for path in packed.iterdir():
        system.pipe(f"/run/{path.name}", path.read_bytes())
    killed_at(Trainer(run(**save, data_root=packed, resume="auto")), 5)
    Trainer(run(**save, data_root="memory://run", resume="auto")).run()
    assert_same_weights(tmp_path / "files", tmp_path / "broken")


def test_the_split_over_processes_is_that_of_files(packed: Path, data: Path) -> None:
    names = []
    for root in (data, packed):
        source = open_source(root)
        ranks = [list(itertools.islice(iter(TrainBatches(len(source), 3, 1, rank, 2, seed=5)), 6)) for rank in (0, 1)]
        names.append([[source.names[i] for _, i in batch] for rank in ranks for batch in rank])
    assert names[0] == names[1]


def test_worker_processes_read_shards(prepared: Path) -> None:
    source = open_source(prepared)
    with pytest.raises(BadInput, match="prepared with --resize stretch"):
        MapDataset(source, range(len(source)), Contract(input_size=(48, 48), resize="letterbox"))
    dataset = MapDataset(source, range(len(source)), Contract(input_size=(48, 48)))
    read = [name for batch in create_loader(dataset, ValBatches(len(source), 4, 0, 1), 2) for name in batch["name"]]
    assert read == source.names


def test_check_evaluation_and_labelled_data_take_shards(
    packed: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for root in (data, packed):
        assert check(CheckConfig(root, max_samples=6)) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    save_checkpoint(tmp_path / "m.pth", create_multitask_dpt_model("test_vit", 8, pretrained=False))
    results = [evaluate(EvaluateConfig(tmp_path / "m.pth", root, max_samples=3, workers=0))["metrics"]
               for root in (data, packed)]
    assert results[0] == results[1]
    chosen = [open_labelled(root, Contract(input_size=(48, 48)), {}, count=5)
              for root in (data, packed, f"{packed}/*.tar")]
    assert len({labelled.frame(3).tobytes() for labelled in chosen}) == 1 and len(chosen[1]) == 5


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_a_damaged_shard_costs_its_samples_and_is_named(
    packed: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(packed, tmp_path / "packed")
    (folder / "shards.json").unlink()
    last = sorted(folder.glob("*.tar"))[-1]
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    source = open_source(folder)
    assert 0 < len(source) < 24 and any(f"{last}: truncated" in line for line in source.incomplete)
    assert source.names == open_source(packed).names[: len(source)]
    assert check(CheckConfig(folder, max_samples=1)) == 1
    assert f"incomplete sample skipped: {last}: truncated" in capsys.readouterr().out
    folder = copied(prepared, tmp_path / "prepared")
    shard = folder / "shard-000000.tar"
    source = open_source(folder)
    whole = shard.read_bytes()
    at = whole.index(b"NUMPY") + 3000
    for damaged, what in (
        (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:], r"sample 0000000 is damaged \(its checksum differs\)"),
        (whole.replace(b"NUMPY", b"NUMPX", 1), r"rgb\.npy is not uint8 of 48x48x3"),
        (whole.replace(b'{"format": 2', b'{"format": 9', 1), "expected shards of format 2, received 9"),
        (whole.replace(b'"box"', b'"bax"', 1), r"sample 0000000 is damaged \(its checksum differs\)"),
        (whole.replace(b'"kind": "face"', b'"kind": "farm"', 1), r"\(its checksum differs\)"),
        (whole[:3000], r"expected \d+ bytes, received 3000.*truncated"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(BadInput, match=what) as caught:
            source.read(0)
        assert str(shard) in str(caught.value) and "\n" not in str(caught.value)


def test_an_interrupted_or_incomplete_set_is_not_taken_for_a_whole_one(
    data: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PrepareConfig(data, tmp_path / "out", shards=True, originals=True, workers=1, shard_megabytes=1)
    add = ShardWriter.add

    def killed(self: ShardWriter, stem: str, members: dict[str, bytes]) -> Path:
        if stem == "0000007":
            self.finish()  # one shard is whole
            raise KeyboardInterrupt
        return add(self, stem, members)

    monkeypatch.setattr(shard_files.ShardWriter, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(options)
    monkeypatch.undo()
    system = fsspec.filesystem("memory")
    for path in (tmp_path / "out").iterdir():
        system.pipe(f"/interrupted/{path.name}", path.read_bytes())
    (tmp_path / "list.txt").write_text("out/shard-000000.tar\n")
    for root in ("out", "out/*.tar", "out/shard-{000000..000000}.tar", "out/shard-000000.tar", "list.txt",
                 "memory://interrupted", "memory://interrupted/shard-000000.tar"):
        with pytest.raises(BadInput, match=r"writing of these shards was interrupted.*train\.prepare --shards"):
            open_source(root if "://" in root else tmp_path / root)
    assert prepare(options) == (24, 0) and verify(options) == 24
    for path in packed.iterdir():
        assert path.suffix == ".index" or path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    with pytest.raises(BadInput, match=r"holds \d tars already, such as shard-000000\.tar"):
        prepare(options)
    (tmp_path / "out" / "shard-000000.tar").unlink()
    with pytest.raises(BadInput, match=r"1 is missing, such as shard-000000\.tar"):
        open_source(tmp_path / "out")


def test_what_others_keep_beside_an_interrupted_set_is_not_deleted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    samples = [("0000000", {"sample.json": b"{}"})]

    def again() -> tuple[int, int]:
        return shard_files.write_shards(out, iter(samples), "x", most_bytes=1 << 20)

    assert again() == (1, 1)
    record = out / shard_files.RECORD
    record.write_text(json.dumps({"format": shard_files.FORMAT, "whole": False}))
    (out / "shard-000007.tar").write_text("of a longer run")
    (out / "x.tar").mkdir()
    for name in ("holiday-photos.tar", "shard-1.tar", "my-shard-000000.tar", "SHARD-000000.TAR"):
        (out / name).write_text("not ours")
        with pytest.raises(BadInput, match=rf"received {name} too\. Move it"):
            again()
        assert (out / name).read_text() == "not ours" and (out / "shard-000007.tar").exists()
        (out / name).unlink()
    assert again() == (1, 1) and json.loads(record.read_text())["whole"]
    assert sorted(path.name for path in out.glob("*.tar")) == ["shard-000000.tar", "x.tar"]


def test_a_folder_with_the_name_of_a_tar_holds_no_shard(data: Path, tmp_path: Path) -> None:
    folder = copied(data / "SynthHuman_0000", tmp_path / "root")
    (folder / "old.tar").mkdir()
    assert len(open_source(folder)) == 8


@pytest.mark.parametrize("inner", [False, True])
def test_a_data_root_that_cannot_be_listed_is_named(inner: bool) -> None:
    folder = Path(tempfile.mkdtemp())
    os.chmod(folder, 0o755)
    closed = folder / "in" if inner else folder
    closed.mkdir(exist_ok=True)
    os.chmod(closed, 0)
    if root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(BadInput, match=rf"{closed} cannot be listed: Permission denied"):
            open_source(folder)
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(folder)


def test_a_folder_that_lacks_a_shard_is_refused_wherever_it_lies(data: Path, tmp_path: Path) -> None:
    folder = open_source(data)
    samples = ((name, dict(zip(ROLES, (content for _, content in folder.files(i)), strict=True)))
               for i, name in enumerate(folder.names))
    assert shard_files.write_shards(tmp_path / "set", samples, "x", most_bytes=200_000)[1] > 1
    (tmp_path / "set" / "shard-000000.tar").unlink()
    system = fsspec.filesystem("memory")
    for path in (tmp_path / "set").iterdir():
        system.pipe(f"/lacking/{path.name}", path.read_bytes())
    for root in (tmp_path / "set", f"{tmp_path}/set/", "memory://lacking", "memory://lacking/",
                 "MEMORY://lacking"):
        with pytest.raises(BadInput, match=r"1 is missing, such as shard-000000\.tar.*delete the folder and make"):
            open_source(root)
    for root in (f"{tmp_path}/set/*.tar", "memory://lacking/*.tar"):
        assert 0 < len(open_source(root)) < 24, "who names some of the shards gets these"


def test_two_processes_that_write_to_one_folder_do_not_mix(data: Path, tmp_path: Path) -> None:
    for shards in (True, False):
        options = PrepareConfig(data, tmp_path / str(shards), (32, 32), shards=shards, workers=0)
        with locked(options.out, create=True), pytest.raises(BadInput, match="another process is writing here"):
            prepare(options)
        assert not options.out.exists()
        prepare(options)
        with locked(options.out), pytest.raises(BadInput, match="another process is writing here"):
            prepare(options)
        assert verify(options) == 24


def test_the_advice_of_a_failed_verification_works(data: Path, tmp_path: Path) -> None:
    for shards in (True, False):
        options = PrepareConfig(data, tmp_path / str(shards), (32, 32), shards=shards, workers=0)
        prepare(options)
        changed = dataclasses.replace(options, input_size=(16, 16))
        with pytest.raises(BadInput, match="or with other options") as caught:
            verify(changed)
        if "Delete the folder" in str(caught.value):
            shutil.rmtree(options.out)
        assert prepare(changed) == (24, 0) and verify(changed) == 24


def rewritten(folder: Path, **changes: object) -> Path:
    """A set of one prepared sample, whose sample.json says something else, with a checksum that fits."""
    common = {"format": 2, "name": "0000000", "kind": "face", "box": [0, 0, 16, 16],
              "intrinsics": [[50, 0, 8], [0, 50, 8], [0, 0, 1]], "input_size": [16, 16], "resize": "stretch",
              "source": "x"}
    record = common | changes
    shapes = {"rgb": (np.uint8, 3), "depth": (np.float16, 0), "normals": (np.float16, 3), "alpha": (np.uint8, 0)}
    members, checksum = {}, 0
    for name, (dtype, channels) in shapes.items():
        file = io.BytesIO()
        np.save(file, np.zeros((16, 16, channels) if channels else (16, 16), dtype))
        members[f"{name}.npy"] = file.getvalue()
        checksum = zlib.crc32(file.getvalue(), checksum)
    checksum = zlib.crc32(json.dumps(record, sort_keys=True).encode(), checksum)
    members["sample.json"] = json.dumps(record | {"crc32": checksum}).encode()
    with ShardWriter(folder) as writer:
        writer.add("0000000", members)
    return folder


@pytest.mark.parametrize("changes", [
    {"box": [0, 0, float("inf"), 16]}, {"box": [0, 0, float("nan"), 16]}, {"box": [0, 0, 16]}, {"box": None},
    {"input_size": [16]}, {"input_size": [16, 1e3]}, {"input_size": 16}, {"input_size": [16, 0]},
    {"input_size": [16, True]}, {"resize": ["stretch"]}, {"resize": "crop"}, {"format": 10**4200}, {"format": None},
    {"intrinsics": [[10**4200, 0, 8], [0, 50, 8], [0, 0, 1]]}, {"intrinsics": [[float("nan")] * 3] * 3},
    {"intrinsics": "x"}, {"name": "0000001"}, {"name": None}, {"name": 10**4200},
])
def test_nonsense_in_a_record_is_one_sentence(changes: dict[str, object], tmp_path: Path) -> None:
    assert open_source(rewritten(tmp_path / "good")).read(0).kind == "face"
    with pytest.raises(BadInput, match=r"is damaged|expected shards of format") as caught:
        open_source(rewritten(tmp_path / "bad", **changes)).read(0)
    assert len(str(caught.value)) < 400 + len(str(tmp_path)) and "\n" not in str(caught.value)


def test_numbers_too_long_and_other_damages_are_one_sentence(data: Path, tmp_path: Path) -> None:
    folder = rewritten(tmp_path / "set")
    for text in ("9" * 4401, "[" * 100_000, '{"whole": true, "shards": 3}', '{"whole": true, "shards": [3]}', "[]", ""):
        (folder / "shards.json").write_text(text)
        with pytest.raises(BadInput, match=r"shards\.json: expected the record of a set of shards"):
            open_source(folder)
    with ShardWriter(tmp_path / "many") as writer:
        writer.add("0" * 4401, {"rgb.png": b""})
    with pytest.raises(BadInput, match="found 1 tars with 1 other members"):
        open_source(tmp_path / "many")
    for root in ("x" * 300, "x" * 300 + ".tar"):
        with pytest.raises(BadInput, match=r"found nothing there|no such file"):
            open_source(tmp_path / root)
        with pytest.raises(BadInput, match=r"cannot write .*File name too long"):
            prepare(PrepareConfig(data, tmp_path / root, shards=True))


def test_names_too_long_for_the_file_system_are_one_sentence(config: Callable[..., TrainConfig], data: Path) -> None:
    long = Path("x" * 300)
    for call in (lambda: Trainer(config(out=long)).run(), lambda: Trainer(config(out=long, resume="auto")).run(),
                 lambda: evaluate(EvaluateConfig(long, data, workers=0)), lambda: Reader(long),
                 lambda: exr.read_depth(long), lambda: CacheSource.open(long)):
        with pytest.raises(BadInput, match=r"no file x|File name too long|it is missing|cannot be read") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_samples_of_one_number_in_two_folders_are_not_mixed(data: Path, tmp_path: Path) -> None:
    source = open_source(data)
    files = {suffix: [source.files(i)[role][1] for i in (0, 1)]
             for role, suffix in enumerate(ROLES)}
    with ShardWriter(tmp_path) as writer:
        for suffix, both in files.items():  # role by role, so that the members of both samples take turns
            for folder, content in zip("ab", both, strict=True):
                if (folder, suffix) != ("a", "depth.exr"):
                    writer.add(f"{folder}/0000000", {suffix: content})
    found = open_source(tmp_path)
    assert len(found) == 1 and [content for _, content in found.files(0)] == [both[1] for both in files.values()]
    assert found.incomplete == ["shard-000000.tar, sample a/0000000: no depth.exr"]


def test_few_shards_are_open_at_a_time(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        with ShardWriter(tmp_path, first=number) as writer:
            one = rewritten(tmp_path / "one", name=str(number))
            index = load_index(str(one / "shard-000000.tar"))
            writer.add(f"{number}", {name.partition(".")[2]: data for name, data in
                                     zip(index.names, index.read(range(5)), strict=True)})
    monkeypatch.setattr("train.data.shards.MOST_MAPS", 3)
    source, before = open_source(f"{tmp_path}/*.tar"), len(os.listdir("/proc/self/fd"))
    read = [source.read(i) for i in (*range(12), 11, 10, 9, 0)]
    del read[1:]
    assert len(source._maps) == 3 and list(source._maps)[-1] == 0
    assert len(os.listdir("/proc/self/fd")) <= before + 4, "three maps, and the one that a sample holds"
    assert not read[0].rgb.any(), "its map is gone from the list, and still readable"


def test_a_set_that_was_made_from_other_data_or_is_damaged_is_not_verified(
    data: Path, prepared: Path, packed: Path, tmp_path: Path
) -> None:
    options = PrepareConfig(data, prepared, (48, 48), workers=1, verify=True)
    with pytest.raises(BadInput, match="from other data or with other options"):
        verify(dataclasses.replace(options, input_size=(32, 32)))
    folder = copied(packed, tmp_path / "copy")
    last = sorted(folder.glob("*.tar"))[-1]
    last.write_bytes(last.read_bytes()[:-3000])
    with pytest.raises(BadInput, match=r"is damaged: .*truncated"):
        verify(PrepareConfig(data, folder, shards=True, originals=True))


@pytest.mark.parametrize(("root", "what"), [
    ("empty.tar", "received an empty file"), ("{0..3}.tar", r"0\.tar: there is no such file"),
    ("gone/*.tar", "cannot be listed"), ("memory://nothing", "there is no such address"),
    ("other.tar", "found 1 tars with 1 other members.*prepare --shards"), ("some", "1 incomplete ones.*no alpha.png"),
])
def test_a_root_without_samples_says_what_is_expected(root: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "empty.tar").write_bytes(b"")
    for name, stem in (("other.tar", "photo"), ("some/a.tar", "0000001")):
        with ShardWriter(tmp_path / "w" / stem) as writer:
            writer.add(stem, {"rgb.png": b""})
        (tmp_path / name).parent.mkdir(exist_ok=True)
        writer.paths[0].rename(tmp_path / name)
    with pytest.raises(BadInput, match=what) as caught:
        open_source(root if "://" in root else tmp_path / root)
    assert "\n" not in str(caught.value)


def test_mixed_and_repeated_samples_are_named(packed: Path, prepared: Path, tmp_path: Path) -> None:
    for folder, name in ((packed, "a.tar"), (prepared, "b.tar")):
        shutil.copy(folder / "shard-000000.tar", tmp_path / name)
    with pytest.raises(BadInput, match="found shards of both"):
        open_source(tmp_path)
    shutil.copy(tmp_path / "a.tar", tmp_path / "b.tar")
    source = open_source(tmp_path)
    assert len(source.incomplete) == len(source) and "b.tar, sample 0000000: there is one" in source.incomplete[0]


def test_unpacked_samples_and_tars_in_one_folder_are_refused(data: Path, packed: Path, tmp_path: Path) -> None:
    folder = copied(data / "SynthHuman_0000", tmp_path / "both")
    shutil.copy(packed / "shard-000000.tar", folder / "a.TAR")
    with pytest.raises(BadInput, match=r"found 8 unpacked samples and 1 tars, such as a\.TAR.*both/\*\.TAR"):
        open_source(folder)
    assert isinstance(open_source(f"{folder}/*.TAR"), ShardSource)
    cache = tmp_path / "cache"
    prepare(PrepareConfig(data, cache, (16, 16), workers=0))
    shutil.copy(packed / "shard-000000.tar", cache)
    with pytest.raises(BadInput, match="found a cache and 1 tars"):
        open_source(cache)


def test_the_command_lines_take_addresses(data: Path, tmp_path: Path, root: Path) -> None:
    def dpt(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=root, check=False)

    made = dpt("train.prepare", "--shards", "--data-root", str(data), "--out", f"{tmp_path}/s", "--input-size", "32",
               "--workers", "0")
    assert made.returncode == 0 and f"--data-root {tmp_path}/s --input-size 32x32" in made.stdout, made.stderr
    refused = dpt("train.prepare", "--out", f"{tmp_path}/x", "--data-root", "memory://none")
    assert refused.returncode == 2 and "memory://none: expected a file" in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr
    for options, what in (
        (PrepareConfig(data, tmp_path / "x", originals=True), "--originals: expected --shards as well"),
        (PrepareConfig(f"file://{tmp_path}/s", tmp_path / "x"), "received samples that are prepared already"),
        (PrepareConfig(data, data, shards=True), "expected another folder than --data-root"),
    ):
        with pytest.raises(BadInput, match=what):
            prepare(options)
