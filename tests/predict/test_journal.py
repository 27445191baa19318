"""A journal says what is done, survives its process, and refuses what does not belong to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.hashes import Hashes, hashed
from dpt_deploy.predict.journal import Journal, Part, Written, part_path, read_done, read_part, written
from dpt_deploy.predict.naming import Names

IDENTITY = {"checkpoint": "a", "look": "none"}


def file(out: Path, name: str, data: bytes = b"data") -> Written:
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return written(out, path)


def journal(out: Path, **options: Any) -> Journal:
    return Journal(out, options.pop("identity", IDENTITY), **options)


def test_what_is_done_and_there_is_skipped(tmp_path: Path) -> None:
    first = journal(tmp_path)
    for name in "abc":
        first.part.done(f"{name}.png", name, (1, 2), [file(tmp_path, f"{name}.npz")])
    first.part.failed("d.png", "truncated")
    first.close()
    (tmp_path / "a.npz").unlink()
    (tmp_path / "b.npz").write_bytes(b"longer than before")
    second = journal(tmp_path, resume=True)
    assert [hashed(f"{name}.png") in second.done.keys for name in "abcd"] == [False, False, True, False]
    assert second.done.count == 1
    second.close()


def test_verify_compares_the_content(tmp_path: Path) -> None:
    first = journal(tmp_path)
    first.part.done("a.png", "a", (1, 2), [file(tmp_path, "a.npz", b"1234")])
    first.close()
    (tmp_path / "a.npz").write_bytes(b"1235")
    for verify, count in ((False, 1), (True, 0)):
        again = journal(tmp_path, resume=True, verify=verify)
        again.close()
        assert again.done.count == count


def test_a_shard_counts_when_it_has_its_name(tmp_path: Path) -> None:
    """The process may be killed before the shard's line, between the line and the name, and after it."""
    first = journal(tmp_path)
    there, gone = file(tmp_path, "maps-0.tar"), Written("maps-1.tar", 4, 0)
    first.part.shard(there, [{"key": "a.png", "stem": "a"}, {"key": "b.png", "stem": "b"}])
    first.part.shard(gone, [{"key": "c.png", "stem": "c"}])
    first.close()
    path = part_path(first.folder, 0)
    path.write_text(path.read_text() + json.dumps({"key": "d.png", "stem": "d", "in": "maps-0.tar"}) + "\n")
    found = read_done(first.folder, tmp_path)
    assert [hashed(f"{name}.png") in found.keys for name in "abcd"] == [True, True, False, False]
    part = read_part(path, tmp_path)
    assert part.done == {"a.png", "b.png"} and part.attempts == 1


@pytest.mark.parametrize("damage", [
    b'{"key": "z.png", "fil', b"\xff\xfe\n", b'{"files": 3}\n', b"[1]\n\n", b"null\n", b"[" * 100_000 + b"\n",
    b'{"key": 5, "stem": 5, "files": []}\n', b'{"key": "k", "stem": "s", "files": [["\\u0000", 1, 1]]}\n',
    b'{"key": ' + b"9" * 4401 + b"}\n", b'{"shard": "' + b"x" * 300 + b'", "bytes": 1, "crc": 1}\n',
], ids=lambda damage: repr(damage[:20]))
def test_damaged_lines_are_passed_over(tmp_path: Path, damage: bytes) -> None:
    first = journal(tmp_path)
    first.part.done("a.png", "a", (1, 2), [file(tmp_path, "a.npz")])
    first.close()
    path = part_path(first.folder, 0)
    path.write_bytes(path.read_bytes() + damage)
    with Part(path, "1/1") as part:
        part.done("b.png", "b", (1, 2), [file(tmp_path, "b.npz")])
    assert read_done(first.folder, tmp_path).count == 2
    assert {"a.png", "b.png"} <= read_part(path, tmp_path).done


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "5", '{"journal": ' + "9" * 4401 + "}", "\x00"])
def test_a_damaged_record_of_a_run_is_one_sentence(tmp_path: Path, text: str) -> None:
    journal(tmp_path).close()
    (tmp_path / "_journal" / "run.json").write_text(text)
    with pytest.raises(BadInput, match=r"run\.json cannot be read: .*Choose another folder") as caught:
        journal(tmp_path, resume=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(tmp_path))


def test_another_process_with_a_damaged_part_is_still_another_process(tmp_path: Path) -> None:
    other = journal(tmp_path, share="1/2")
    for damage in ('{"run": 5}', '{"run": {"share": "x"}}', "{"):
        other.part.path.write_text(damage + "\n")
        with pytest.raises(BadInput, match="another process is writing here"):
            journal(tmp_path, share="2/2", resume=True)
    other.close()


def test_results_of_another_run_are_refused_with_advice(tmp_path: Path) -> None:
    journal(tmp_path).close()
    with pytest.raises(BadInput, match=r"earlier run.*--resume.*--out"):
        journal(tmp_path)
    with pytest.raises(BadInput, match=r'checkpoint was "a" and is now "b".*same options.*--out'):
        journal(tmp_path, identity=IDENTITY | {"checkpoint": "b"}, resume=True)
    (tmp_path / "_journal" / "run.json").write_text("{")
    with pytest.raises(BadInput, match=r"run\.json cannot be read"):
        journal(tmp_path, resume=True)


def test_two_processes_do_not_do_the_same_work(tmp_path: Path) -> None:
    third = journal(tmp_path, share="3/16")
    journal(tmp_path, share="4/16").close()
    for share in ("3/16", "1/1", "3/8"):
        with pytest.raises(BadInput, match=r"another process is writing here.*part-00000.*--shard"):
            journal(tmp_path, share=share, resume=True)
    third.close()
    journal(tmp_path, resume=True).close()


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = ("import os, sys; from pathlib import Path; from dpt_deploy.predict.journal import Journal; "
            f"journal = Journal(Path(sys.argv[1]), {IDENTITY!r}); os.kill(os.getpid(), 9)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    again = journal(tmp_path, resume=True)
    assert again.number == 1
    again.close()


def test_an_image_that_kills_its_process_is_known(tmp_path: Path) -> None:
    path = tmp_path / "part-00000-3.jsonl"
    for _ in range(2):
        with Part(path, "1/1") as part:
            part.begun("a.png")
            part.done("a.png", "a", (1, 2), [file(tmp_path, "a.npz")])
            part.begun("b.png")
            part.failed("b.png", "truncated")
            part.begun("c.png")
    found = read_part(path, tmp_path)
    assert found.died_with == ["c.png", "c.png"] and found.attempts == 2 and found.done == {"a.png"}


def test_names_are_those_of_the_inputs() -> None:
    names = Names()
    assert [names.stem(key) for key in ("a.jpg", "b/a.jpg", "a.png", "a.b.jpg", ".x", "c", "a.jpg")] == [
        "a", "b/a", "a.png", "a.b", ".x", "c", None]
    assert [names.stem(f"s.tar/{member}", member) for member in ("0.rgb.png", "0.bgr.png", "d/1.jpg")] == [
        "s/0", "s/0.bgr", "s/d/1"]
    dotless = Names(dots=False)
    assert [dotless.stem(key) for key in ("v1.2/a.b.jpg", "v1.2/a.b.png", "v1.2/a_b.jpg")] == [
        "v1.2/a_b", "v1.2/a_b_png", "v1.2/a_b_jpg"]


def test_names_in_a_journal_stay_with_their_images() -> None:
    kept = Hashes()
    kept.put(hashed("a"), hashed("a.png"))
    names = Names(kept)
    assert [names.stem(key) for key in ("a.bmp", "a.png", "a.png")] == ["a.bmp", "a", None]
