"""Inputs from everywhere: folders, globs, lists, tars of several writers, memory:// and a web server."""

from __future__ import annotations

import fnmatch
import functools
import http.server
import importlib.util
import io
import itertools
import os
import pickle
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from dpt_deploy.core import places, tar_index
from dpt_deploy.core.errors import BadInput, MissingPackage
from dpt_deploy.core.keys import safe_path
from dpt_deploy.core.patterns import expand
from dpt_deploy.core.shard_writer import ShardWriter
from dpt_deploy.core.storage import Listing, Shard, find_items, shards_of
from dpt_deploy.predict.naming import Names

fsspec = pytest.importorskip("fsspec")

PICTURES = (".png", ".jpg")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Indexes are kept here and not in the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def fill(folder: Path, *names: str) -> Path:
    """Files whose content is their name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def contents(listing: Listing) -> dict[str, bytes]:
    return {item.key: item.read() for item in listing}


def keys(*sources: str | Path, **options: object) -> list[str]:
    return [item.key for item in find_items([str(source) for source in sources], **options)]


def tar_with(path: Path, *members: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def test_a_folder_is_listed_in_order_and_what_is_passed_over_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "b.png", "a.PNG", "notes.md", "sub/c.jpg", "sub.png", ".hidden.png")
    listing = find_items([tmp_path], PICTURES)
    assert [item.key for item in listing] == ["a.PNG", "b.png", "sub.png"]
    assert listing.left_out_line() == "skipped 2 files that are not images: notes.md, sub/"
    assert keys(tmp_path, suffixes=PICTURES, recursive=True) == ["a.PNG", "b.png", "sub.png", "sub/c.jpg"]
    item = next(iter(listing))
    assert item.path == tmp_path / "a.PNG" and item.read() == b"a.PNG" == pickle.loads(pickle.dumps(item)).read()
    with item.open() as file:
        assert file.read() == b"a.PNG"


def test_globs_lists_and_several_sources_have_keys_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "one", "x/1.png", "x/2.jpg", "y/1.png", "y/z/1.png", "[1].png")
    fill(tmp_path / "two" / "one", "1.png")
    assert keys(tmp_path / "one" / "*" / "1.png") == ["x/1.png", "y/1.png"]
    assert keys(tmp_path / "one" / "**" / "1.png") == ["x/1.png", "y/1.png", "y/z/1.png"]
    assert keys(tmp_path / "one" / "**" / "*" / "**" / "1.png") == ["x/1.png", "y/1.png", "y/z/1.png"]
    assert keys(tmp_path / "one" / "[1].png") == ["[1].png"], "a file of this name goes before the pattern"
    assert keys(tmp_path / "one" / "{x,y}" / "1.png") == ["x/1.png", "y/1.png"]
    assert keys(tmp_path / "one" / "x", tmp_path / "two" / "one", tmp_path / "one" / "x") == [
        "x/1.png", "x/2.jpg", "one/1.png", "x-2/1.png", "x-2/2.jpg"]
    files = [tmp_path / "one" / "x" / "1.png", tmp_path / "one" / "y" / "1.png"]
    assert keys(*files) == ["1.png", "1-2.png"]
    outside = fill(tmp_path / "far", "3.png") / "3.png"
    (tmp_path / "one" / "list.txt").write_text(f"x/1.png\n# a comment\n\n../two/one/1.png\n{outside}\nx/gone.png\n")
    listed = list(find_items([tmp_path / "one" / "list.txt"]))
    assert [item.key for item in listed] == ["x/1.png", "up/two/one/1.png", str(outside)[1:], "x/gone.png"]
    assert [item.read() for item in listed[:3]] == [b"x/1.png", b"1.png", b"3.png"]
    with pytest.raises(BadInput, match=r"gone\.png: there is no such file"):
        listed[3].read()
    monkeypatch.chdir(tmp_path / "one")
    assert keys(".", recursive=True)[0] == "[1].png" and keys("*/1.png") == ["x/1.png", "y/1.png"]


def test_names_that_are_not_utf_8_become_keys_that_can_be_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(b"1")
    (item,) = find_items([tmp_path])
    assert item.key.encode() == rb"caf\xe9.png" and item.read() == b"1"


def test_a_link_to_a_folder_above_is_entered_once(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    said: list[str] = []
    listing = find_items([tmp_path], recursive=True, on_problem=said.append)
    assert [item.key for item in listing] == ["a/1.png"] and listing.problems == 1 and "loop is a link" in said[0]


@pytest.mark.parametrize(("sources", "what"), [
    (["gone"], "gone: expected a file, a folder.*no such file or folder"), ([], "received nothing"),
    (["x/*.png"], "x cannot be listed: No such file"), (["shard-{5..1}.tar"], r"range such as.*\{5\.\.1\}"),
    (["{1.." + "9" * 4401 + "}.tar"], "at most 18 digits"), (["9" * 4401], "no such file"),
    (["x" * 300], "no such file"), (["@" + "x" * 300], "there is no file"), (["x" * 300 + "/*.png"], "name too long"),
    (["{0..999}{0..999}{0..999}"], "at most 1000000 files"), (["zzz://bucket/a"], "fsspec knows.*protocol zzz://"),
    (["memory://gone.png"], "no such address"),
])
def test_what_does_not_exist_is_one_sentence(sources: list[str], what: str) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        list(find_items(sources))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("address", "package"), [("s3://user:secret@bucket/a", "s3fs"), ("gs://bucket/a", "gcsfs")])
def test_a_missing_protocol_names_its_package(address: str, package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(MissingPackage, match=rf"{package} is needed.*pip install {package}$") as caught:
        find_items([address])
    assert "secret" not in str(caught.value)


def test_braces_count_with_the_zeros_of_the_first_number() -> None:
    assert list(expand("s-{08..10}.{a,b}{c}")) == [f"s-{n}.{x}{{c}}" for n in ("08", "09", "10") for x in "ab"]


@pytest.mark.parametrize("parts", [1, 3, 7, 16])
def test_shares_are_disjoint_whole_and_equal(parts: int, tmp_path: Path) -> None:
    fill(tmp_path, *(f"{i % 3}/{i}.png" for i in range(20)))
    tar_with(tmp_path / "t.tar", *((f"{i}.png", b"") for i in range(15)))
    shares = [keys(tmp_path, recursive=True, share=(part, parts)) for part in range(parts)]
    together = list(itertools.chain(*shares))
    assert sorted(together) == sorted(keys(tmp_path, recursive=True)) and len(together) == 35
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(BadInput, match="share: expected a part from 0"):
        find_items([tmp_path], share=(parts, parts))


def test_units_can_be_read_in_other_processes(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.txt")
    tar_with(tmp_path / "t.tar", ("a.png", b"a"), ("a.txt", b"t"))
    listing = find_items([tmp_path], PICTURES)
    units = pickle.loads(pickle.dumps(list(listing.units())))
    assert [item.key for unit in units for item in unit.items(PICTURES)] == [item.key for item in listing]
    assert contents(listing) == {"1.png": b"1.png", "t.tar/a.png": b"a"}


WRITERS = ("gnu tar", "posix tar", "webdataset", "python", "ours")


def written(writer: str, folder: Path) -> tuple[Path, dict[str, bytes]]:
    """A tar by one of several programs, and what is in it."""
    long = "l" * 150
    inside = {f"sub/{i:03d}.rgb.png": bytes([i]) * (i * 300) for i in range(8)} | {f"sub/{long}.cls": b"7"}
    path = folder / "shard-000000.tar"
    if writer.endswith("tar"):
        for name, data in inside.items():
            fill(folder / "in", name).joinpath(name).write_bytes(data)
        form = "gnu" if writer.startswith("gnu") else "posix"
        subprocess.run(["tar", f"--format={form}", "--sort=name", "-C", folder / "in", "-cf", path, "."], check=True)
    elif writer == "webdataset":
        webdataset = pytest.importorskip("webdataset")
        with webdataset.TarWriter(str(path)) as sink:
            for name, data in inside.items():
                stem, _, suffix = name.partition(".")
                sink.write({"__key__": stem, suffix: data})
    elif writer == "python":
        tar_with(path, *inside.items(), form=tarfile.PAX_FORMAT)
    else:
        with ShardWriter(folder) as sink:
            for name, data in inside.items():
                stem, _, suffix = name.partition(".")
                sink.add(stem, {suffix: data})
    return path, inside


@pytest.mark.parametrize("writer", WRITERS)
def test_tars_of_every_writer_are_read_and_read_at_random(writer: str, tmp_path: Path, cache: Path) -> None:
    path, inside = written(writer, tmp_path)
    said: list[str] = []
    assert contents(find_items([path], on_problem=said.append)) == inside and not said
    assert contents(find_items([path], (".cls",))) == {key: b"7" for key in inside if key.endswith(".cls")}
    index = tar_index.load_index(str(path))
    for numbers in ([3, 1], [0, len(index) - 1], [5]):
        assert [bytes(data) for data in index.read(numbers)] == [inside[index.names[i]] for i in numbers]
    assert pickle.loads(pickle.dumps(index)).names == index.names
    assert bool(list(cache.rglob("tar-index/*"))) == (writer != "ours"), "our own writer leaves the index beside it"


def test_an_index_is_made_anew_when_the_tar_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_with(tmp_path / "a.tar", ("1.png", b"1"))
    assert tar_index.load_index(str(path)).names == ["1.png"]
    monkeypatch.setattr(tar_index, "make_index", lambda place: pytest.fail("the kept index was not used"))
    assert tar_index.load_index(str(path)).names == ["1.png"]
    monkeypatch.undo()
    tar_with(path, ("2.png", b"2"))
    os.utime(path, ns=(1, 1))
    assert tar_index.load_index(str(path)).names == ["2.png"]


def test_a_damaged_index_and_a_home_that_cannot_be_written_cost_only_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar_with(tmp_path / "a.tar", ("1.png", b"1"), ("2.png", b"2"))
    tar_index.load_index(str(path))
    (kept,) = cache.rglob("tar-index/*")
    whole = kept.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:300] + bytes(100) + whole[400:], b"PK\x03\x04"):
        kept.write_bytes(damaged)
        assert tar_index.load_index(str(path)).names == ["1.png", "2.png"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert tar_index.load_index(str(path)).names == ["1.png", "2.png"]


def forged(path: Path, *names: bytes, starts: tuple[int, ...] | None = None, found: tuple[str, ...] = ()) -> None:
    """An index beside a tar with names and offsets that someone has made up."""
    stamp = places.stamp(str(path))
    count = len(names)
    index = tar_index.TarIndex(
        str(path), stamp, np.frombuffer(b"".join(names), np.uint8), np.cumsum([len(name) for name in names]),
        np.array(starts or [512] * count, np.int64), np.ones(count, np.int64), found)
    tar_index.write_index(index, path.with_name(f"{path.name}.index"))


@pytest.mark.parametrize("name", [
    b"../../x.png", b"/x.png", b"a/../x.png", b"C:/x.png", b"a\nb.png", b"./1.png", b".x.png", b"", b"\xff.png",
    b"2.png\x1b[2J",
])
def test_an_index_with_names_that_no_tar_gives_is_not_used(name: bytes, tmp_path: Path) -> None:
    path = tar_with(tmp_path / "a.tar", ("1.png", b"1"), ("2.png", b"2"))
    forged(path, b"3.png", b"4.png")
    assert keys(path) == ["3.png", "4.png"], "an index is trusted where it can be true"
    forged(path, b"3.png", name)
    assert keys(path) == ["1.png", "2.png"]
    system = fsspec.filesystem("memory")
    for file in sorted(tmp_path.iterdir()):
        system.pipe(f"/forged/{file.name}", file.read_bytes())
    assert keys("memory://forged/a.tar") == ["1.png", "2.png"]


def test_an_index_with_impossible_offsets_or_of_a_huge_size_is_not_used(tmp_path: Path) -> None:
    path = tar_with(tmp_path / "a.tar", ("1.png", b"1"), ("2.png", b"2"))
    for wrong in ((512, 1 << 62), (-1, 512), (512, path.stat().st_size)):
        forged(path, b"3.png", b"4.png", starts=wrong)
        assert keys(path) == ["1.png", "2.png"], wrong
    forged(path, b"3.png", b"3.png")
    assert keys(path) == ["1.png", "2.png"], "the same name twice"
    forged(path, b"3.png", b"4.png", found=("\x1b]0;gotcha\a",))
    assert keys(path) == ["1.png", "2.png"], "a message that would control the terminal"
    index = path.with_name("a.tar.index")
    with zipfile.ZipFile(index, "w", zipfile.ZIP_DEFLATED) as archive:  # 64 MiB of zeros in 64 kB
        archive.writestr("text.npy", bytes(1 << 26))
    assert index.stat().st_size < 1 << 17 and keys(path) == ["1.png", "2.png"]
    os.truncate(index, 1 << 40)  # sparse: reading it would take a terabyte of memory
    assert keys(path) == ["1.png", "2.png"]


def test_a_path_that_becomes_a_key_stays_below_its_folder() -> None:
    names = ("../../x.png", "/x.png", "b/../x.png")
    assert [safe_path(name) for name in names] == ["up/up/x.png", "x.png", "b/up/x.png"]
    stems = Names()
    assert [stems.stem(f"a.tar/{name}", name) for name in names] == ["a/up/up/x", "a/x", "a/b/up/x"]


def test_the_whole_members_of_a_truncated_tar_are_read_and_the_damage_is_named(tmp_path: Path) -> None:
    path = tar_with(tmp_path / "a.tar", *((f"{i}.png", bytes([i]) * 3000) for i in range(4)))
    whole, step = path.read_bytes(), 512 + 3072
    for length, count, what in (
        (3 * step + 1000, 3, "truncated: '3.png' has 488 of its 3000 bytes"),
        (3 * step + 100, 3, "from byte 10752 on"),
        (3 * step, 3, "the mark at its end is missing"), (4 * step - 10, 4, "the mark at its end is missing"),
        (0, 0, "received an empty file"), (100, 0, "no header of one"),
    ):
        path.write_bytes(whole[:length])
        said: list[str] = []
        listing = find_items([path], on_problem=said.append)
        assert contents(listing) == {f"{i}.png": bytes([i]) * 3000 for i in range(count)}
        assert listing.problems == 1 and what in said[0] and str(path) in said[0], (said, what)


def test_members_behind_a_damage_are_found_again(tmp_path: Path) -> None:
    path = tar_with(tmp_path / "a.tar", *((f"{i}.png", bytes([i]) * 3000) for i in range(4)))
    whole, step = path.read_bytes(), 512 + 3072
    for damage, lost, what in (
        (b"\xff" * 700, "1.png", "damaged or truncated from byte 3584 to 7168"),
        (bytes(1024), "1.png", "an end mark at byte 3584, and more members from byte 7168"),
    ):
        path.write_bytes(whole[:step] + damage + whole[step + len(damage):])
        said: list[str] = []
        assert sorted(contents(find_items([path], on_problem=said.append))) == sorted(
            {"0.png", "1.png", "2.png", "3.png"} - {lost})
        assert len(said) == 1 and what in said[0]
    path.write_bytes(whole + tar_with(tmp_path / "b.tar", ("b.png", b"")).read_bytes())  # cat a.tar b.tar
    assert keys(path)[-2:] == ["3.png", "b.png"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../up.png", "a/../../up.png", "C:/x.png", "a\\b.png", "a\nb.png"])
def test_members_that_lead_out_of_the_archive_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tar_with(tmp_path / "a.tar", ("1.png", b"1"), (name, b"x"), ("./2.png", b"2"), ("1.png", b"again"))
    said: list[str] = []
    assert contents(find_items([path], on_problem=said.append)) == {"1.png": b"1", "2.png": b"2"}
    assert len(said) == 2 and "refused" in said[0] and ascii(name).strip("'").replace("\\\\", "\\")[:4] in said[0]
    assert "'1.png' refused: the archive has this name already" in said[1] and all("\n" not in line for line in said)


def test_links_and_devices_are_refused_by_name(tmp_path: Path) -> None:
    members = []
    for name, kind in (("l", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE), ("d", tarfile.CHRTYPE), ("f", tarfile.FIFOTYPE)):
        info = tarfile.TarInfo(f"{name}.png")
        info.type, info.linkname = kind, "/etc/passwd"
        members.append(info)
    said: list[str] = []
    assert keys(tar_with(tmp_path / "a.tar", *members, ("1.png", b"1")), on_problem=said.append) == ["1.png"]
    assert [line.rpartition("a.tar: ")[2].partition(" refused")[0] for line in said] == [
        "'l.png'", "'h.png'", "'d.png'", "'f.png'"]


def test_a_header_that_claims_to_be_huge_takes_no_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    path = tmp_path / "a.tar"
    tar_with(path, ("1.png", b"1"))
    body = path.read_bytes()[:1024]
    path.write_bytes(body + info.tobuf() + body.replace(b"1.png", b"2.png"))
    said: list[str] = []
    assert keys(path, on_problem=said.append)[0] == "1.png" and said
    path.write_bytes(b"\x1f\x8b" + bytes(1000))
    assert keys(path, on_problem=said.append) == [] and "gzip data" in said[-1] and "Decompress it." in said[-1]
    path.write_text("<html>not found</html>" * 100)
    assert keys(path, on_problem=said.append) == [] and "no header of one" in said[-1]


def test_buckets_have_folders_globs_tars_and_lists(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for name in ("b/x/1.png", "b/x/2.png", "b/y/3.png", "b/notes.md"):
        system.pipe(f"/{name}", name.encode())
    path = tar_with(tmp_path / "a.tar", ("m/1.png", b"m1"), ("m/1.txt", b"t"), ("../bad.png", b""))
    system.pipe("/b/a.tar", path.read_bytes())
    said: list[str] = []
    listing = find_items(["memory://b"], PICTURES, recursive=True, on_problem=said.append)
    assert contents(listing) == {"a.tar/m/1.png": b"m1", "x/1.png": b"b/x/1.png", "x/2.png": b"b/x/2.png",
                                 "y/3.png": b"b/y/3.png"}
    assert said == ["memory://b/a.tar: '../bad.png' refused: its path leads out of the archive"]
    assert keys("memory://b/*/1.png") == ["x/1.png"] and keys("memory://b/x/{1,2}.png") == ["1.png", "2.png"]
    system.pipe("/b/list.txt", b"x/1.png\nmemory://b/y/3.png\n")
    assert keys("memory://b/list.txt") == ["x/1.png", "b/y/3.png"]
    assert shards_of("memory://b/a.tar") == shards_of("memory://b") == ["memory://b/a.tar"]
    index = tar_index.load_index("memory://b/a.tar")
    assert index.names == ["m/1.png", "m/1.txt"] and [bytes(data) for data in index.read([1, 0])] == [b"t", b"m1"]
    (item,) = Shard("", "memory://b/a.tar").items(PICTURES)
    assert item.data is None and item.read() == b"m1", "an index is kept now, so the content is read on demand"
    assert keys(f"file://{tmp_path}") == ["a.tar/m/1.png", "a.tar/m/1.txt"]
    with pytest.raises(BadInput, match="changed or is truncated"):
        places.read("memory://b/x/1.png", 5, 100)


class Half(http.server.SimpleHTTPRequestHandler):
    """Knows byte ranges, and closes the connection in the middle of those that reach behind `whole` bytes."""

    whole = 1 << 62
    asked: ClassVar[list[str]] = []

    def log_message(self, *arguments: object) -> None: ...

    def do_GET(self) -> None:
        self.asked.append(self.path)
        data = Path(self.translate_path(self.path))
        if not data.is_file():  # the page of a folder, or 404
            super().do_GET()
            return
        data = data.read_bytes()
        first, last = 0, len(data) - 1
        if span := self.headers.get("Range"):
            first, last = (int(text) for text in span.removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part if first + len(part) <= self.whole else part[: len(part) // 2])
        self.close_connection = True


def test_a_connection_that_is_cut_is_one_sentence(
    server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    pytest.importorskip("aiohttp")
    address, folder = server
    monkeypatch.setattr(places, "_PAUSE", 0.01)
    monkeypatch.setattr(Half, "whole", 2 << 20)
    tar_with(folder / "a.tar", *((f"{i}.png", bytes([i]) * (1 << 20)) for i in range(5)))
    (folder / "list.txt").write_text("0.png\n" * (1 << 19))
    said: list[str] = []
    found = keys(f"{address}/a.tar?token=secret", on_problem=said.append)
    assert found == ["0.png"] and len(said) == 1 and "the connection broke off: " in said[0], said
    assert "Client" in said[0] and "secret" not in said[0] and "\n" not in said[0], "the reason"
    Half.asked.clear()
    with pytest.raises(BadInput, match=r"a\.tar cannot be read: Client\w+: .*connection") as caught:
        tar_index.load_index(f"{address}/a.tar?token=secret")
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert "/a.tar.index?token=secret" in Half.asked and not list(cache.rglob("tar-index/*"))
    with pytest.raises(BadInput, match=r"list\.txt cannot be read: Client"):
        keys(f"{address}/list.txt")


def test_an_index_of_a_web_address_stands_before_its_query(server: tuple[str, Path]) -> None:
    pytest.importorskip("aiohttp")
    address, folder = server
    path = tar_with(folder / "a.tar", ("1.png", b"1"))
    forged(path, b"of the index.png")
    (folder / "list.txt").write_bytes(f"{address}/b/1.png?sig=secret\nc/2.png\n".encode())
    assert keys(f"{address}/a.tar?sig=secret") == ["of the index.png"]
    first, second = find_items([f"{address}/list.txt?sig=secret"])
    assert first.key == f"{address.partition('://')[2]}/b/1.png" and first.place.endswith("/1.png?sig=secret")
    assert (second.key, second.place) == ("c/2.png", f"{address}/c/2.png?sig=secret")


@pytest.mark.parametrize(("place", "index", "record"), [
    ("a/b.tar", "a/b.tar.index", "a/shards.json"), ("b.tar", "b.tar.index", "shards.json"),
    ("a?/b#.tar", "a?/b#.tar.index", "a?/shards.json"),
    ("s3://x/b?.tar", "s3://x/b?.tar.index", "s3://x/shards.json"),
    ("https://h/a/b.tar?x=/y#z", "https://h/a/b.tar.index?x=/y#z", "https://h/a/shards.json?x=/y"),
])
def test_files_beside_a_file(place: str, index: str, record: str) -> None:
    assert (places.with_suffix(place, ".index"), places.sibling(place, "shards.json")) == (index, record)


def test_lists_with_a_byte_order_mark_and_names_with_a_zero_byte(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png")
    (tmp_path / "list.txt").write_text("1.png\n2.png\n", encoding="utf-8-sig")
    assert contents(find_items([tmp_path / "list.txt"])) == {"1.png": b"1.png", "2.png": b"2.png"}
    (tmp_path / "list.txt").write_text("1.png\n", encoding="utf-16")
    with pytest.raises(BadInput, match="expected a list in UTF-8, received UTF-16"):
        keys(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"1\0.png\n")
    (item,) = find_items([tmp_path / "list.txt"])
    with pytest.raises(BadInput, match="cannot be read: embedded null byte"):
        item.read()
    (tmp_path / "list.txt").write_bytes(b"1\0.tar\n")
    said: list[str] = []
    assert keys(tmp_path / "list.txt", on_problem=said.append) == [] and "embedded null" in said[0]


def test_an_index_beside_a_tar_is_neither_an_item_nor_left_out(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.add("1", {"png": b"1"})
    listing = find_items([tmp_path], PICTURES)
    assert [item.key for item in listing] == ["shard-000000.tar/1.png"] and listing.left_out_line() == ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server over a folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Half, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


def test_a_web_server_is_read(server: tuple[str, Path]) -> None:
    address, folder = server
    if not importlib.util.find_spec("aiohttp"):
        with pytest.raises(MissingPackage, match=r"aiohttp is needed.*pip install 'fsspec\[http\]>="):
            find_items([f"{address}/a.tar"])
        pytest.skip("aiohttp is not installed; that the message says so was tried")
    fill(folder, "x/1 a.png", "x/2.png")
    tar_with(folder / "a.tar", ("m/1.png", b"m1" * 5000), ("m/2.png", b"m2"))
    assert contents(find_items([f"{address}/x/"])) == {"1 a.png": b"x/1 a.png", "2.png": b"x/2.png"}
    assert contents(find_items([f"{address}/x/2.png?signature=secret"])) == {"2.png": b"x/2.png"}
    assert contents(find_items([f"{address}/a.tar"])) == {"m/1.png": b"m1" * 5000, "m/2.png": b"m2"}
    index = tar_index.load_index(f"{address}/a.tar")
    assert [bytes(data) for data in index.read([1])] == [b"m2"]
    with pytest.raises(BadInput, match="no such address") as caught:
        find_items([f"{address}/gone.png?signature=secret"])
    assert "secret" not in str(caught.value)


SECRETS = [
    ("http://me:secret@camera/live?token=secret", "http://...@camera/live"),
    ("rtsp://camera/live?user=me&password=secret", "rtsp://camera/live"),
    ("s3://bucket/a.jpg?signature=secret", "s3://bucket/a.jpg"),
    ("http://me:p@secret@host:80/a.jpg#x", "http://...@host:80/a.jpg"),
    ("@https://me:secret@host/list.txt?key=secret", "@https://...@host/list.txt"),
    ("rtsp://me:p?secret@host/live", "rtsp://..."), ("rtsp://me:p#secret@host/live", "rtsp://..."),
    ("rtsp://me:p/secret@host/live", "rtsp://..."), ("http://host?mail=me@secret", "http://..."),
    ("http://[::1]:80/a?secret@x", "http://[::1]:80/a"), ("https://host:80/@me/a@2x.jpg", "https://host:80/@me/a@2x.jpg"),
    ("s3://bucket/IMG#1.jpg", "s3://bucket/IMG#1.jpg"), ("a?b@c.jpg", "a?b@c.jpg"),
]


@pytest.mark.parametrize(("place", "shown"), SECRETS)
def test_messages_show_no_password_and_no_query(place: str, shown: str) -> None:
    assert places.shown(place) == shown
    if place != shown:
        address = place.lstrip("@")
        error = places._refused("s3://b", ValueError(f"cannot reach {address} today, {address}"))
        assert "secret" not in str(error) and "today" in str(error)


def test_different_places_with_one_path_have_keys_of_their_own(tmp_path: Path) -> None:
    fill(tmp_path, "x.jpg", "in/up/x.jpg", "in/a.jpg", f"in{tmp_path}/x.jpg", "in/up/x-2.jpg")
    lines = ["../x.jpg", "up/x.jpg", f"{tmp_path}/x.jpg", str(tmp_path / "x.jpg")[1:], "up/x-2.jpg", "a.jpg", "./a.jpg"]
    (tmp_path / "in" / "list.txt").write_text("\n".join(lines))
    found = keys(tmp_path / "in" / "list.txt")
    assert found[4:] == ["up/x-2.jpg", "a.jpg", "a.jpg"], "the same file twice has one key"
    assert len(set(found[:4])) == 4
    assert all(fnmatch.fnmatchcase(key, f"up/x-{'[0-9a-f]' * 16}.jpg") for key in found[:2])
    (tmp_path / "in" / "list.txt").write_text("\n".join(lines[::-1]))
    assert keys(tmp_path / "in" / "list.txt") == found[::-1], "whatever their order is"
    for part in range(3):
        assert keys(tmp_path / "in" / "list.txt", share=(part, 3)) == found[::-1][part::3]


def test_queries_tell_addresses_apart_and_are_in_no_key(tmp_path: Path) -> None:
    addresses = [f"https://{user}h/img?id={number}&token=secret" for user in ("", "me:secret@") for number in (1, 2)]
    (tmp_path / "list.txt").write_text("\n".join([*addresses, "https://h/other.jpg?token=secret", "http://h/img"]))
    found = keys(tmp_path / "list.txt")
    assert found[:2] == found[2:4] and len(set(found)) == 4 and found[4] == "h/other.jpg"
    assert not any("secret" in key or "id=" in key for key in found)
    found = [item.key for item in find_items(["https://h/{1..2}.jpg?token=secret"])]
    assert found == ["1.jpg", "2.jpg"]
    found = [item.key for item in find_items(["https://h/img.jpg?id={1..2}"])]
    assert len(set(found)) == 2 and all(key.startswith("img-") and key.endswith(".jpg") for key in found)


def test_a_member_that_becomes_shorter_while_it_is_read_is_not_handed_on(tmp_path: Path) -> None:
    path = tar_with(tmp_path / "a.tar", *((f"{i}.png", bytes([i]) * (1 << 20)) for i in range(4)))
    system = fsspec.filesystem("memory")
    system.pipe("/shrinks/a.tar", path.read_bytes())
    said: list[str] = []
    found = {}
    for item in find_items(["memory://shrinks"], PICTURES, on_problem=said.append):
        found[item.key] = len(item.read())
        if len(found) == 2:
            system.store["/shrinks/a.tar"].truncate(5 << 19)
    assert list(found.values()) == [1 << 20] * len(found) and len(said) == 1
    assert "2.png has " in said[0] and "of its 1048576 bytes" in said[0]


def test_protocols_are_the_same_in_upper_case(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/upper/a.png", b"a")
    (tmp_path / "list.txt").write_text("MEMORY://upper/a.png\na.png\n")
    fill(tmp_path, "a.png")
    for root in ("MEMORY://upper", "Memory://upper/*.png", "MEMORY://upper/a.png"):
        assert list(contents(find_items([root])).values()) == [b"a"], root
    for root in (f"@{tmp_path}/list.txt", f"@FILE://{tmp_path}/list.txt"):
        assert contents(find_items([root])) == {"upper/a.png": b"a", "a.png": b"a.png"}, root


def test_shards_have_a_largest_size_and_count_and_the_same_bytes_every_time(tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        with ShardWriter(folder, most_samples=4, most_bytes=20_000) as writer:
            for i in range(10):
                writer.add(f"{i:07d}", {"png": bytes([i]) * (9000 if i > 7 else 10), "json": b"{}"})
        assert [path.name for path in writer.paths] == [f"shard-{i:06d}.tar" for i in range(4)]
    shards = [sorted((tmp_path / name).iterdir()) for name in ("one", "two")]
    assert [path.name for path in shards[0]] == [f"shard-{i:06d}.tar{end}" for i in range(4) for end in ("", ".index")]
    for a, b in zip(*shards, strict=True):
        assert a.suffix == ".index" or a.read_bytes() == b.read_bytes()
    assert len(keys(tmp_path / "one")) == 20 and len(shards_of(tmp_path / "one")) == 4
    listed = subprocess.run(["tar", "-tf", shards[0][0]], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines()[:2] == ["0000000.png", "0000000.json"] and not listed.stderr


def test_a_writer_that_fails_leaves_no_shard_that_is_not_whole(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ShardWriter(tmp_path, most_samples=2) as writer:
        for i in range(3):
            writer.add(f"{i}", {"png": b"1"})
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-000000.tar", "shard-000000.tar.index"]
    for stem, reason in (("a.b", "a dot in its last"), ("../a", "leads out"), ("/a", "leads out"), ("a\n", "printed"),
                         ("a\t", "printed"), ("", "hidden"), (".x/1", "hidden"), ("a//b", "empty"), ("./a", "empty"),
                         ("a\\b", "a backslash"), ("C:x", "begins with C:"), ("\udcff", "printed")):
        with pytest.raises(BadInput, match=f"expected the name of a sample.*{reason}"), \
                ShardWriter(tmp_path / "refused") as writer:
            writer.add(stem, {"png": b""})
    with pytest.raises(BadInput, match="the shard has it already"), ShardWriter(tmp_path / "refused") as writer:
        writer.add("a", {"png": b""})
        writer.add("a", {"json": b""})  # members of a sample may come one by one
        writer.add("a", {"png": b""})
    assert not (tmp_path / "refused").exists() or not list((tmp_path / "refused").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"), ShardWriter(tmp_path / "file") as writer:
        writer.add("a", {"png": b""})
