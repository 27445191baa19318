"""Bundles on the Hugging Face Hub: push one, and load one by its address, from the cache where that has it.

An address is hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME@REVISION/FOLDER; see `core.hub_address`.
Files are checked against the hashes of the bundle's manifest when they are loaded, as in any bundle. These find damage.
They come from the author of the files, so they do not tell whether to trust the files.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from pathlib import Path
from typing import Any

from .core.bundle import MANIFEST, MODEL_CARD, Bundle
from .core.errors import BadBundle, BadInput, DptWarning, first_line, missing_package
from .core.hub_address import NAME, Address, parse_address
from .core.manifest import Manifest
from .core.version import __version__

LIBRARY = "dpt-deploy"
NOT_NEEDED = {"reference", "cache"}
"""Kinds of files that a runtime does not read."""
NETWORK = ("httpx", "httpcore", "requests", "urllib3")
"""What the names of the modules begin with whose exceptions without a response mean that the network failed. Which of
them it is depends on the version of huggingface_hub."""
PIPELINES = {"depth": "depth-estimation", "alpha": "image-segmentation", "normals": "image-feature-extraction"}
TAGS = {"depth": "depth-estimation", "normals": "surface-normals", "alpha": "image-matting"}


def download(address: str | Path) -> Path:
    """The folder of a bundle in the hub's cache on this machine; missing files are fetched.

    The parity reference stays on the hub. A bundle with engines gives a `DptWarning`, because an engine can run any
    code. Without a network, or with HF_HUB_OFFLINE=1, what the cache has is used.

    Raises:
        BadInput: The address has another form, or there is no such repository, revision or access to it.
        BadBundle: The repository holds no bundle.
        MissingPackage: huggingface_hub is not installed.
    """
    wanted = parse_address(address)
    prefix = f"{wanted.folder}/" if wanted.folder else ""
    root = _fetched(wanted, [f"{prefix}{MANIFEST}"])
    folder = root / wanted.folder
    if not (folder / MANIFEST).is_file():
        raise BadBundle(f"{wanted}: expected a bundle, but it has no {prefix}{MANIFEST}. Push one with: "
                        f"python -m dpt_deploy.export best_model.pth --push {wanted.repository}")
    manifest = Manifest.read(folder / MANIFEST)
    if any(artifact.kind == "engine" for artifact in manifest.artifacts):
        warnings.warn(f"{wanted} has engines, and an engine can run any code on this machine. Load it only if you "
                      f"trust {wanted.repository.partition('/')[0]}; else copy it without engines and build your own: "
                      f"{wanted.download_command} --exclude '*.engine', then python -m dpt_deploy.build {wanted.local}",
                      DptWarning, stacklevel=4)  # the caller of load
    files = [artifact.file for artifact in manifest.artifacts if artifact.kind not in NOT_NEEDED]
    # The commit of the manifest, so that the files are of the same one.
    return _fetched(Address(wanted.repository, root.name, wanted.folder),
                    [prefix + name for name in (MANIFEST, *files)]) / wanted.folder


def push(bundle: Bundle, repository: str, private: bool | None = None) -> str:
    """Upload a bundle, with its model card as README.md. Returns the address of the new commit.

    Files of an earlier bundle there that this one does not have are deleted; what no bundle listed is kept.

    Args:
        bundle: The bundle; all of its files must be intact.
        repository: OWNER/NAME; it is made if it does not exist.
        private: Of a new repository. None takes the account's default.

    Raises:
        BadInput: The name has another form, nobody is logged in, the hub refused or cannot be reached, or the
            repository was changed meanwhile.
        BadBundle: A file is damaged.
        MissingPackage: huggingface_hub is not installed.
    """
    wanted = check_repository(repository)
    hub = _hub("push a bundle")
    for artifact in bundle.artifacts:
        bundle.path(artifact)
    names = [MANIFEST, *(artifact.file for artifact in bundle.artifacts if artifact.kind != "cache")]
    operations: list[Any] = [hub.CommitOperationAdd(name, str(bundle.folder / name)) for name in names]
    operations.append(hub.CommitOperationAdd("README.md", readme(bundle).encode()))
    api = hub.HfApi(library_name=LIBRARY, library_version=__version__)
    try:
        api.create_repo(wanted, private=private, exist_ok=True)
        now = api.model_info(wanted)
        there = {file.rfilename for file in now.siblings or ()}
        stale = _files_of_earlier(hub, wanted, now.sha) & there - {*names, "README.md"} if MANIFEST in there else set()
        operations += [hub.CommitOperationDelete(name) for name in sorted(stale)]
        # Of the commit that was looked at: a push from elsewhere in between is refused.
        commit = api.create_commit(wanted, operations, parent_commit=now.sha,
                                   commit_message=f"Bundle {bundle.name}, dpt-deploy {__version__}")
    except Exception as error:  # of the hub, of the network and of the disk; they have no common base class
        raise BadInput(f"--push {wanted}: {_push_fault(hub, error)}") from error
    return str(Address(wanted, commit.oid))


def _push_fault(hub: Any, error: Exception) -> str:
    """Why a push failed, and what to do."""
    reason, status = first_line(error), getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, hub.errors.LocalTokenNotFoundError):
        return f"the hub refused ({reason}). Log in with: hf auth login; the token needs the right to write there."
    if status in (409, 412):
        return f"somebody else changed the repository meanwhile ({reason}). Run the command again."
    if status == 429 or (status or 0) >= 500:
        return f"the hub cannot take it now ({reason}). Wait a while, then run the command again."
    if status is not None:
        return f"the hub refused ({reason}). Check the name of the repository and the bundle."
    if type(error).__module__.startswith(NETWORK) or isinstance(error, ConnectionError | TimeoutError):
        return f"the hub cannot be reached ({reason}). Check the network and HF_HUB_OFFLINE, then run it again."
    return f"the bundle cannot be sent ({reason}). Check its files, then run the command again."


def check_repository(repository: str) -> str:
    """The name of a repository. Raises `BadInput` unless it is OWNER/NAME, `MissingPackage` without huggingface_hub."""
    if not re.fullmatch(rf"{NAME}/{NAME}", repository) or ".." in repository or "--" in repository:
        raise BadInput(f"--push: expected OWNER/NAME, received {repository!r:.200}.")
    _hub("push a bundle")
    return repository


def readme(bundle: Bundle) -> str:
    """The model card with the metadata that the hub reads."""
    hub, heads = _hub("write the hub's card"), bundle.contract.heads
    card = bundle.folder / MODEL_CARD
    backbone = bundle.manifest.model.backbone
    data = hub.ModelCardData(
        library_name=LIBRARY, pipeline_tag=PIPELINES[heads[0] if "depth" not in heads else "depth"],
        tags=[LIBRARY, "onnx", *(["tensorrt"] if bundle.find("engine") else []), *(TAGS[head] for head in heads)],
        base_model=f"timm/{backbone}" if "." in backbone else None,
    )
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {bundle.name}\n"
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _files_of_earlier(hub: Any, repository: str, revision: str) -> set[str]:
    """The files that the manifest of a commit lists; none if it cannot be read."""
    path = hub.hf_hub_download(repository, MANIFEST, revision=revision, library_name=LIBRARY,
                               library_version=__version__)
    with contextlib.suppress(BadBundle):
        return {artifact.file for artifact in Manifest.read(Path(path)).artifacts}
    return set()


def _fetched(address: Address, patterns: list[str]) -> Path:
    """The snapshot of a repository with the files of `patterns`, from the cache or the network."""
    hub = _hub("load a bundle from the hub")
    escaped = [re.sub(r"([*?\[])", r"[\1]", pattern) for pattern in patterns]
    try:
        return Path(hub.snapshot_download(address.repository, revision=address.revision, allow_patterns=escaped,
                                          library_name=LIBRARY, library_version=__version__))
    except Exception as error:  # of the hub, of the network and of the disk; they have no common base class
        raise BadInput(f"{address}: it is neither in the cache nor can it be fetched ({first_line(error)}). Check the "
                       "name, the revision and the network; for a private repository: hf auth login") from error


def _hub(why: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise missing_package("huggingface_hub", "hub", why) from error
    return huggingface_hub
