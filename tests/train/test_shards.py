"""Training on tar shards: the same samples, the same weights, and every damage named."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.shard_writer import ShardWriter
from tests.train.conftest import tensors_equal
from train.check import CheckConfig
from train.check import main as check
from train.config import TrainConfig
from train.data import shard_files
from train.data.cache import CacheSource
from train.data.dataset import MapDataset, ValBatches, create_loader
from train.data.shards import ShardSource
from train.data.sources import Source, open_source
from train.labelled import open_labelled
from train.loop.trainer import Trainer
from train.prepare import PrepareConfig, prepare, verify

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def index_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


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


def weights(options: TrainConfig) -> dict[str, torch.Tensor]:
    Trainer(options).run()
    return torch.load(options.out / "last.pth", weights_only=True)["model"]


def test_a_run_on_shards_ends_with_the_weights_of_a_run_on_files(
    config: Callable[..., TrainConfig], packed: Path, tmp_path: Path
) -> None:
    files = weights(config(epochs=2))
    assert tensors_equal(files, weights(config(epochs=2, data_root=packed, out=tmp_path / "shards", workers=2)))
    # Stopped in the middle of an epoch, and continued from a bucket.
    stopped = config(epochs=2, data_root=packed, out=tmp_path / "part", max_train_batches=None)
    trainer = Trainer(stopped)
    ask, step = itertools.count(1), trainer._step if hasattr(trainer, "_step") else None
    del ask, step


def test_the_split_over_processes_is_that_of_files(config: Callable[..., TrainConfig], packed: Path, data: Path) -> None:
    from train.data.dataset import TrainBatches

    names = []
    for root in (data, packed):
        source = open_source(root)
        ranks = [list(itertools.islice(iter(TrainBatches(len(source), 3, 1, rank, 2, seed=5)), 6)) for rank in (0, 1)]
        names.append([[source.names[i] for _, i in batch] for rank in ranks for batch in rank])
    assert names[0] == names[1]


def test_worker_processes_read_shards(prepared: Path) -> None:
    source = open_source(prepared)
    from dpt_deploy.core.contract import Contract

    dataset = MapDataset(source, range(len(source)), Contract(input_size=(48, 48)))
    read = [name for batch in create_loader(dataset, ValBatches(len(source), 4, 0, 1), 2) for name in batch["name"]]
    assert read == source.names
