"""Bundles travel to the hub and back through its real client, against a server that speaks its protocol."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpt_deploy import hub
from dpt_deploy.build.__main__ import BuildConfig
from dpt_deploy.build.__main__ import main as build
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadBundle, BadInput
from dpt_deploy.doctor.__main__ import DoctorConfig
from dpt_deploy.doctor.__main__ import main as doctor
from dpt_deploy.parity.__main__ import ParityConfig
from dpt_deploy.parity.__main__ import main as parity
from tests.tiny import own_bundle, tiny_bundle

__all__ = ["own_bundle", "tiny_bundle"]
ROOT = Path(__file__).resolve().parents[1]
NAME = "people/three-heads"


class Hub(http.server.ThreadingHTTPServer):
    """Repositories in memory: for each commit its files, and the newest commit."""

    commits: dict[str, dict[str, bytes]]
    newest: str | None = None
    branches: dict[str, str]
    """Commits by the names of other branches."""
    parents: list[str | None]
    """The commits that pushes were made on."""
    refusals: list[int]
    """The statuses that the next commits are answered with instead."""
    validated: list[str]
    """What the client sent to check the metadata of the card."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urllib.parse.urlsplit(self.path).path
        if path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['Host']}/{NAME}", "name": NAME})
        elif path == "/api/validate-yaml":  # of README.md
            self.server.validated.append(json.loads(body)["content"])
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]
            self.answer({"files": files})
        elif "/commit/" in path and self.server.refusals:
            self.answer({"error": "the commit is refused"}, self.server.refusals.pop(0))
        elif "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = dict(self.server.commits.get(self.server.newest, {}))
            for line in lines:
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            self.server.parents.append(lines[0]["value"].get("parentCommit"))
            oid = hashlib.sha1(body).hexdigest()
            self.server.commits[oid], self.server.newest = files, oid
            self.answer({"success": True, "commitOid": oid,
                         "commitUrl": f"http://{self.headers['Host']}/{NAME}/commit/{oid}"})
        else:
            self.answer({"error": f"no such address {path}"}, 404)

    def do_GET(self, body: bool = True) -> None:
        quoted = urllib.parse.urlsplit(self.path).path
        path = urllib.parse.unquote(quoted)
        revision = urllib.parse.unquote(quoted.partition("/revision/")[2])
        if path.startswith(f"/api/models/{NAME}/tree/"):
            files = self.server.commits[path.split("/")[6]]
            self.answer([{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                         for name, data in files.items()])
        elif path.startswith(f"/api/models/{NAME}"):
            sha = self.server.branches.get(revision, revision if revision in self.server.commits else
                                           self.server.newest)
            self.answer({"id": NAME, "sha": sha, "siblings": [{"rfilename": name}
                                                              for name in self.server.commits.get(sha, {})]})
        elif path.startswith(f"/{NAME}/resolve/"):
            commit, _, name = path.removeprefix(f"/{NAME}/resolve/").partition("/")
            data = self.server.commits[commit][name]
            self.send_response(200)
            for key, value in {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit,
                               "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)
        else:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def answer(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", "Content-Length": str(len(data)),
                          **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub(("127.0.0.1", 0), Handler) as running:
        running.commits, running.validated, running.branches, running.parents = {}, [], {}, []
        running.refusals = []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def program(code: str, tmp_path: Path, server: Hub | None, *arguments: str, **environment: str) -> str:
    """What a program prints that has its cache in `tmp_path` and takes `server` for the hub; its error if it fails."""
    address = f"http://127.0.0.1:{server.server_address[1]}" if server else "http://127.0.0.1:9"
    own = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0",
           "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_none", "HF_HUB_DISABLE_XET": "1",
           "HF_HUB_DISABLE_TELEMETRY": "1", "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=os.environ | own | environment, text=True,
                          capture_output=True, timeout=120)
    return done.stdout.strip() if done.returncode == 0 else f"{done.returncode}: {done.stderr.strip().splitlines()[-1]}"


PUSH = """
import sys
from dpt_deploy import cli, hub
from dpt_deploy.core.bundle import Bundle
with cli.exit_on_error():
    print(hub.push(Bundle.open(sys.argv[1]), sys.argv[2]))
"""
LOAD = """
import sys, numpy, dpt_deploy
from dpt_deploy import cli
with cli.exit_on_error(), dpt_deploy.load(sys.argv[1], "onnxruntime-cpu") as runtime:
    print(runtime.bundle.folder, float(runtime(numpy.zeros((60, 80, 3), "uint8")).depth.sum()))
"""


def test_a_bundle_is_pushed_and_loaded_by_revision_and_then_offline(
    tiny_bundle: Path, tmp_path: Path, server: Hub
) -> None:
    address = program(PUSH, tmp_path, server, str(tiny_bundle), NAME)
    assert address == f"hf://{NAME}@{server.newest}"
    pushed = server.commits[server.newest]
    assert set(pushed) == {"README.md", "manifest.json", *(one.file for one in Bundle.open(tiny_bundle).artifacts
                                                           if one.kind != "cache")}
    assert server.validated == [pushed["README.md"].decode()]
    front = pushed["README.md"].decode().split("---")[1]
    assert "library_name: dpt-deploy" in front and "pipeline_tag: depth-estimation" in front and "- onnx" in front
    folder, total = program(LOAD, tmp_path, server, address).split()
    assert "snapshots" in folder and not (Path(folder) / "reference.npz").exists()
    assert program(LOAD, tmp_path, None, str(tiny_bundle)).split()[1] == total
    # Without a network: from the cache, by commit and by branch, and with HF_HUB_OFFLINE.
    assert program(LOAD, tmp_path, server, f"hf://{NAME}").split()[1] == total
    for wanted in (address, f"hf://{NAME}"):
        assert program(LOAD, tmp_path, None, wanted).split()[1] == total
    assert program(LOAD, tmp_path, None, address, HF_HUB_OFFLINE="1").split()[1] == total


def test_what_the_hub_lacks_is_one_sentence(tmp_path: Path, server: Hub) -> None:
    server.commits["0" * 40], server.newest = {"README.md": b"nothing"}, "0" * 40
    assert program(LOAD, tmp_path, server, f"hf://{NAME}").startswith("2: ") and "no manifest.json" in \
        program(LOAD, tmp_path, server, f"hf://{NAME}")
    assert "neither in the cache" in program(LOAD, tmp_path, server, "hf://people/other")
    assert "neither in the cache" in program(LOAD, tmp_path, None, f"hf://{NAME}@main")


def cached(bundle: Path, root: Path) -> Path:
    """A bundle as the hub's client caches it: links into a folder of contents."""
    snapshot = root / "models--people--three-heads" / "snapshots" / ("1" * 40)
    blobs = snapshot.parents[1] / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in bundle.iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    return snapshot


def test_links_of_the_cache_are_followed_and_their_hashes_checked(tiny_bundle: Path, tmp_path: Path) -> None:
    snapshot = cached(tiny_bundle, tmp_path)
    bundle = Bundle.open(snapshot)
    graph = bundle.find("onnx", graph="frame", precision="fp32")[0]
    assert bundle.intact(graph)
    blob = snapshot.parents[1] / "blobs" / graph.file
    blob.write_bytes(blob.read_bytes()[:-1] + b"\0")
    with pytest.raises(BadBundle, match="does not match"):
        bundle.path(graph)


def test_links_to_anywhere_else_are_refused_in_the_cache_too(tiny_bundle: Path, tmp_path: Path) -> None:
    snapshot = cached(tiny_bundle, tmp_path)
    bundle = Bundle.open(snapshot)
    graph = bundle.find("onnx", graph="frame", precision="fp32")[0]
    (snapshot / graph.file).unlink()
    (snapshot / graph.file).symlink_to(tiny_bundle / graph.file)
    with pytest.raises(BadBundle, match="outside the bundle"):
        bundle.path(graph)


@pytest.mark.parametrize("address", ["hf://", "hf://one", "hf://a/b/../c", "hf://a/../b", "hf://a/b@", "hf://a b/c",
                                     "hf://-a/b", "hf://a/b@main/x\n", "hf://a/b@x%2F", "hf://a/b@x%2F%2Fy",
                                     "hf://a/b@%2Fx", "hf://a/b@x%2F..%2Fy", "hf://a/b@x%00",
                                     "hf://a/b@refs/heads/main", "hf://a/b@refs%2Fheads%2Fmain", "hf://a/b@refs/x",
                                     "hf://a/b@refs/tags/v1/models", "hf://a/b@refs/pr/x", "hf://a/b@refs/pr",
                                     "hf://a/b@refs%2Fpr%2F3%2Fx", "hf://a/b@refs/", "hf://a/b@refs/convert"])
def test_addresses_of_another_form_are_refused(address: str) -> None:
    with pytest.raises(BadInput, match="OWNER/NAME"):
        hub.parse_address(address)


def test_addresses_have_three_parts() -> None:
    assert hub.parse_address("hf://a/b@v1.0/models/large") == hub.Address("a/b", "v1.0", "models/large")
    assert hub.parse_address(Path("hf://a/b")) == hub.Address("a/b")
    assert str(hub.parse_address("hf://a/b@v1")) == "hf://a/b@v1"
    assert hub.parse_address("hf://a/b@feature%2Fx/models") == hub.Address("a/b", "feature/x", "models")
    assert hub.parse_address("hf://a/b@refs/pr/3/models") == hub.Address("a/b", "refs/pr/3", "models")
    assert hub.parse_address("hf://a/b@refs/convert/onnx") == hub.Address("a/b", "refs/convert/onnx")
    assert hub.parse_address("hf://a/b@refs-x/models") == hub.Address("a/b", "refs-x", "models")
    for text in ("hf://a/b@feature%2Fx/models", "hf://a/b@refs%2Fpr%2F3"):
        assert str(hub.parse_address(text)) == text


def test_commands_that_need_a_folder_say_how_to_copy_it() -> None:
    wanted = ("hf download a/b --revision feature/x --include 'models/*' --local-dir engines/b, then pass "
              "engines/b/models.")
    for main, config in ((parity, ParityConfig), (doctor, DoctorConfig), (build, BuildConfig)):
        with pytest.raises(BadBundle, match="received an address of the hub") as raised:
            main(config(Path("hf://a/b@feature%2Fx/models")))
        assert str(raised.value).startswith("hf://a/b@feature%2Fx/models: ") and str(raised.value).endswith(wanted)


def test_a_push_removes_what_only_an_earlier_bundle_had(
    tiny_bundle: Path, own_bundle: Path, tmp_path: Path, server: Hub
) -> None:
    bundle, first = Bundle.open(own_bundle), "0" * 40
    (own_bundle / "old.engine").write_bytes(b"an engine")
    bundle.add("old.engine", "engine", graph="frame", precision="fp32", details={"builder": "tensorrt"})
    server.commits[first] = {name: (own_bundle / name).read_bytes() for name in ("manifest.json", "old.engine")}
    server.commits[first]["notes.txt"], server.newest = b"of the user", first
    assert program(PUSH, tmp_path, server, str(tiny_bundle), NAME).startswith("hf://")
    assert server.parents == [first]
    now = server.commits[server.newest]
    assert "old.engine" not in now and now["notes.txt"] == b"of the user"
    assert {"README.md", "manifest.json", *(one.file for one in Bundle.open(tiny_bundle).artifacts
                                            if one.kind != "cache")} == set(now) - {"notes.txt"}


def test_a_failed_push_says_what_to_do(own_bundle: Path, tmp_path: Path, server: Hub) -> None:
    """Only who lacks a token is told to log in."""
    advice = {401: "Log in with: hf auth login", 403: "Log in with: hf auth login", 409: "Run the command again",
              412: "changed the repository meanwhile", 503: "Wait a while", 400: "Check the name"}
    server.commits["0" * 40], server.newest, server.refusals = {}, "0" * 40, list(advice)
    code = f"""
import sys
from dpt_deploy import hub
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadInput
import huggingface_hub
for i in range({len(advice) + 1}):
    if i == {len(advice)}:  # nothing listens there
        huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"
    try:
        hub.push(Bundle.open(sys.argv[1]), "{NAME}")
    except BadInput as error:
        print(error)
"""
    bundle = Bundle.open(own_bundle)
    bundle.update(artifacts=())
    bundle.save()
    lines = program(code, tmp_path, server, str(own_bundle)).splitlines()
    for line, wanted in zip(lines, [*advice.values(), "cannot be reached"], strict=True):
        assert line.startswith(f"--push {NAME}: ") and wanted in line, line
        assert ("hf auth login" in line) == ("Log in" in wanted), line


def test_engines_of_others_give_a_warning(
    own_bundle: Path, tmp_path: Path, server: Hub
) -> None:
    bundle = Bundle.open(own_bundle)
    (own_bundle / "one.engine").write_bytes(b"an engine")
    bundle.add("one.engine", "engine", graph="frame", precision="fp32", details={"builder": "tensorrt"})
    files = {path.name: path.read_bytes() for path in own_bundle.iterdir()}
    server.commits["0" * 40], server.branches["feature/x"] = files, "0" * 40
    code = f"import sys; sys.stderr = sys.stdout\n{LOAD}"
    said, loaded = program(code, tmp_path, server, f"hf://{NAME}@feature%2Fx",
                           HF_HUB_DISABLE_PROGRESS_BARS="1").splitlines()
    assert said.startswith(f"warning: hf://{NAME}@feature%2Fx has engines, and an engine can run any code")
    assert "snapshots" in loaded
    assert f"hf download {NAME} --revision feature/x --local-dir engines/three-heads --exclude '*.engine'" in said


def test_a_damaged_bundle_is_not_pushed(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    (own_bundle / bundle.find("onnx")[0].file).write_bytes(b"")
    with pytest.raises(BadBundle), contextlib.suppress(KeyError):
        hub.push(bundle, NAME)
    with pytest.raises(BadInput, match="OWNER/NAME"):
        hub.push(bundle, "no-owner")
