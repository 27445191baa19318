"""Read the tensors of a checkpoint file or folder, whatever wrote it. No code in it is executed.

Files: PyTorch (`.pth`, `.pt`, `.ckpt`, `.bin`) and safetensors. Folders: Hugging Face, with one file or with shards and
their index, and distributed checkpoints of PyTorch (DCP, FSDP).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import BadCheckpoint, BadInput, first_line

AVERAGED = ("ema", "model_ema", "params_ema", "ema_state_dict", "ema_model", "state_dict_ema", "averaged", "swa",
            "teacher")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module", "generator")
SHARD = re.compile(r".*-\d{5}-of-\d{5}\.(safetensors|bin)")
MAX_DEPTH = 4  # of entries inside entries
MAX_EXPANSION = 4  # bytes of a tensor per byte of the file
SAVE = "torch.save(model.state_dict(), path)"


@dataclass(frozen=True)
class Weights:
    """One set of named tensors of a checkpoint."""

    entry: str
    """Where it lies in the file, such as ema.module; "" for the file itself."""
    tensors: dict[str, torch.Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Of the state dict, by module name."""


def read_weights(path: Path) -> list[Weights]:
    """All sets of named tensors in a file or folder, the file's own first.

    Raises:
        BadInput: There is no such file or folder.
        BadCheckpoint: It cannot be read, is damaged, or has no named tensors.
    """
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        raise BadInput(f"expected a checkpoint file such as best_model.pth, but there is no file {path}. "
                       "Check the path.")
    if path.is_dir():
        content, metadata = _read_folder(path)
    elif SHARD.fullmatch(path.name):
        raise BadCheckpoint(f"{path}: this is one shard of several. Pass the folder with its index: {path.parent}")
    elif path.suffix == ".safetensors":
        content, metadata = _read_safetensors(path)
    else:
        content = _read_torch(path)
        metadata = getattr(content, "_metadata", {})
    if not isinstance(content, Mapping):
        raise BadCheckpoint(f"{path}: expected a state dict, received a {type(content).__name__}. Save it with {SAVE}.")
    found = list(_tensor_sets(content, metadata))
    if not found:
        raise BadCheckpoint(
            f"{path}: expected a state dict of tensors, received the keys {sorted(map(str, content))[:8]}. "
            f"Save it with {SAVE}."
        )
    return found


def _tensor_sets(content: Mapping[Any, Any], metadata: Mapping[str, Any], entry: str = "") -> Iterator[Weights]:
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if tensors:
        yield Weights(entry, tensors, metadata if isinstance(metadata, Mapping) else {})
    if entry.count(".") + 1 < MAX_DEPTH:
        for key, inner in content.items():
            if isinstance(key, str) and isinstance(inner, Mapping):
                yield from _tensor_sets(inner, getattr(inner, "_metadata", {}), f"{entry}.{key}".lstrip("."))


def choose(path: Path, found: list[Weights], wanted: str | None = None) -> tuple[Weights, str | None]:
    """The weights to use, and a note if there was a choice. Averaged weights come first: training reports on them.

    Args:
        path: The file, for messages.
        found: What `read_weights` returned.
        wanted: The entry to use, such as state_dict or ema.module.

    Raises:
        BadInput: The file has no entry `wanted`.
    """
    names = [weights.entry for weights in found]
    if wanted is not None:
        inside = [weights for weights in found if weights.entry == wanted or weights.entry.startswith(f"{wanted}.")]
        if not inside:
            raise BadInput(f"--weights-entry: {path} has the entries {', '.join(filter(None, names)) or 'none'}, "
                           f"received {wanted}.")
        return inside[0], f"weights read from the entry {inside[0].entry!r}, as requested"
    # What looks like a network comes first: optimizer states hold tensors too.
    networks = [one for one in found if any(key.endswith("proj.weight") or "blocks." in key for key in one.tensors)]
    networks = networks or [one for one in found if not one.entry or one.entry.split(".")[0] in AVERAGED + WRAPPERS]
    networks = networks or found
    averaged = [one for one in networks if set(one.entry.split(".")) & set(AVERAGED)]
    known = [one for one in networks if not one.entry or set(one.entry.split(".")) & set(WRAPPERS)]
    chosen = (averaged or known or networks)[0]
    others = [one.entry or "the file itself" for one in networks if one is not chosen]
    if not chosen.entry and not others:
        return chosen, None
    note = f"weights read from the entry {chosen.entry!r}" if chosen.entry else "weights read from the file itself"
    if others:
        average = " (averaged weights)" if averaged else ""
        note += f"{average}; the file also has {', '.join(others[:4])}: --weights-entry ENTRY takes another"
    return chosen, note


def _read_folder(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (path / name).is_file():
            return _read_shards(path, path / name), {}
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return _read_safetensors(path / name) if name.endswith("s") else (_read_torch(path / name), {})
    if (path / ".metadata").is_file():
        return _read_distributed(path), {}
    raise BadInput(
        f"expected a checkpoint file, received the folder {path}, which has neither model.safetensors, an index of "
        "shards (model.safetensors.index.json) nor a distributed checkpoint (.metadata). Pass a file."
    )


def _read_shards(path: Path, index: Path) -> dict[str, Any]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(names.values()))
        if any(Path(shard).name != shard for shard in shards):
            raise ValueError("a shard lies outside the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadCheckpoint(f"{index}: expected an index of shards ({first_line(error)}). Copy it again.") from error
    if missing := [shard for shard in shards if not os.path.isfile(path / shard)]:
        raise BadCheckpoint(f"{path}: {len(missing)} of {len(shards)} shards are missing ({missing[0]}). "
                            "Copy them too.")
    content: dict[str, Any] = {}
    for shard in shards:
        content |= _read_safetensors(path / shard)[0] if shard.endswith(".safetensors") else _read_torch(path / shard)
    if missing := sorted(set(names) - set(content)):
        raise BadCheckpoint(f"{path}: the shards lack {len(missing)} tensors of their index ({missing[0]}). "
                            "Copy them again.")
    return content


def _read_distributed(path: Path) -> dict[str, Any]:
    """The tensors of a distributed checkpoint, by dotted name, read in this process alone."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    class Reader(FileSystemReader):
        """Reads the metadata, a pickle, with the classes that describe tensors and no others."""

        def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
            with open(path / ".metadata", "rb") as file:
                metadata = _MetadataUnpickler(file).load()
            files = [getattr(place, "relative_path", None) for place in (metadata.storage_data or {}).values()]
            if outside := [file for file in files if not isinstance(file, str) or Path(file).name != file]:
                raise BadCheckpoint(f"{path}: its metadata names the file {outside[0]!r}, which is not in the folder.")
            if metadata.storage_meta is not None:
                metadata.storage_meta.load_id = self.load_id
            return metadata

    try:
        reader = Reader(path)
        entries = reader.read_metadata().state_dict_metadata
        described = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
        _check_declared(path, {name: entry.size.numel() for name, entry in described.items()})
        tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in described.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(tensors, storage_reader=reader, no_dist=True)
    except (MemoryError, BadCheckpoint):
        raise
    except Exception as error:  # torch.distributed raises exceptions of many types for a damaged folder
        raise BadCheckpoint(f"{path}: the distributed checkpoint cannot be read ({first_line(error)}). Copy it again, "
                            f"or convert it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} "
                            "checkpoint.pth") from error
    return tensors


_METADATA = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath"},
    "collections": {"OrderedDict"},
}
"""All that the metadata of a distributed checkpoint may name, by module. An exact list: a name with dots would reach
anything from any class."""


class _MetadataUnpickler(pickle.Unpickler):
    """Loads classes that describe tensors and files; anything else in the pickle is refused before it runs."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _METADATA.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its metadata names {module}.{name}, which is not loaded because that runs code")


def _read_safetensors(path: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, {"": file.metadata() or {}}  # noqa: SIM118
    except MemoryError:
        raise
    except Exception as error:  # safetensors raises exceptions of many types
        raise BadCheckpoint(f"{path}: expected a safetensors file, but it cannot be read ({first_line(error)}). "
                            "Copy it again.") from error


def _read_torch(path: Path) -> Any:
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_NUMPY), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sparse and quantized tensors are refused later, by name
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises exceptions of many types for a damaged file
        raise BadCheckpoint(f"{path}: {_refusal(path, error)}") from error


def _numpy_globals() -> list[Any]:
    """What a pickled NumPy array or scalar names. None of it runs code of the file."""
    array, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    types = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    return [np.dtype, np.ndarray, array, scalar, (array, "numpy.core.multiarray._reconstruct"),
            (scalar, "numpy.core.multiarray.scalar"), *types]


_NUMPY = _numpy_globals()


def _check_archive(path: Path) -> None:
    """Verify the checksums of a PyTorch archive: a flipped bit changes a weight and nothing else."""
    try:
        if not zipfile.is_zipfile(path):
            return  # the format before PyTorch 1.6, or no checkpoint at all
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise BadCheckpoint(f"{path}: expected a checkpoint, received a TorchScript program. Save the weights "
                                    f"of the model it was made from: {SAVE}")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise BadCheckpoint(f"{path}: expected a PyTorch checkpoint, received an archive with compressed "
                                    f"entries, which torch.save does not write. Save it with {SAVE}.")
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError):
        bad = "its directory"
    if bad is not None:
        raise BadCheckpoint(f"{path}: expected a PyTorch checkpoint, but the file is damaged: the checksum of {bad} "
                            "does not match. Copy it again.")


def _refusal(path: Path, error: Exception) -> str:
    """Why torch.load with weights_only=True refused a file, and what to do."""
    names = _foreign_classes(path)
    if not names:
        return ("expected a PyTorch checkpoint, but torch.load with weights_only=True failed "
                f"({type(error).__name__}): the file is truncated or has another format. Copy it again, or save it "
                f"with {SAVE}.")
    name = names[0]
    if any(part.startswith("torch.nn.modules") for part in names):
        what, expression = f"a pickled module of the class {name}", "torch.load(path, weights_only=False).state_dict()"
    else:
        what = f"a file that also holds an object of the class {name}"
        expression = "torch.load(path, weights_only=False)['state_dict']"
    return (f"expected a state dict of tensors, received {what}, which weights_only=True does not load, because "
            f"loading it runs code. If you trust the file, convert it where that class is installed: "
            f"torch.save({expression}, 'weights.pth')")


def _foreign_classes(path: Path) -> list[str]:
    """The classes and functions that a file names and that `weights_only` refuses, the outermost first."""
    with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with zipfile.ZipFile(path) as archive:
            (entry,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            pickled = archive.read(entry)
        return sorted(names, key=lambda name: pickled.find(" ".join(name.rsplit(".", 1)).replace(" ", "\n").encode()))
    return []


def _check_declared(path: Path, elements: Mapping[str, int]) -> None:
    """Refuse tensors that are much larger than the files that hold them, before memory is taken for them."""
    size = _bytes(path)
    for key, count in elements.items():
        if count > MAX_EXPANSION * size + 1024:
            raise BadCheckpoint(f"{path}: {key} is declared with {count:,} elements in {size:,} bytes. Copy it again.")


def _bytes(path: Path) -> int:
    """The bytes of a file, or of the files in a folder."""
    return sum(one.stat().st_size for one in path.iterdir() if one.is_file()) if path.is_dir() else path.stat().st_size


def check_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as float32, where they are floating-point; others, such as counters, as they are.

    Raises `BadCheckpoint` for tensors that are no weights: sparse, quantized, nested, 8-bit, complex, without data,
    larger than their file, integers, or not finite.
    """
    size = _bytes(path)
    checked: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        if fault := _fault(key, value, size):
            raise BadCheckpoint(f"{path}: expected floating-point weights, but {key} is {fault}")
        if value.is_floating_point():
            single = value.float()  # a float64 value may exceed its range
            if not (torch.isfinite(value).all() and torch.isfinite(single).all()):
                raise BadCheckpoint(f"{path}: expected finite weights, but {key} contains NaN, Inf or values beyond "
                                    "the range of float32. Use an earlier checkpoint.")
            value = single
        checked[key] = value
    return checked


def _fault(key: str, value: torch.Tensor, size: int) -> str | None:
    """Why a tensor cannot be a weight, or None."""
    kind = str(value.dtype).removeprefix("torch.")
    if value.is_nested:
        return "a nested tensor. Save dense tensors."
    if value.layout is not torch.strided:
        return f"sparse ({str(value.layout).removeprefix('torch.')}). Save value.to_dense()."
    if value.is_quantized or (not value.dtype.is_floating_point and "q" in kind):
        return f"quantized ({kind}). Save the weights before quantization."
    if value.is_meta:
        return "on the meta device: it has no data. Load the weights before saving."
    if kind.startswith("float8") or kind.startswith("float4"):
        return f"{kind}, of too few bits to be exported. Save the weights in float32, float16 or bfloat16."
    if value.is_complex():
        return f"{kind}. Save real weights."
    if value.numel() * value.element_size() > MAX_EXPANSION * size + 1024:
        return (f"declared with {value.numel():,} elements in a file of {size:,} bytes (an expanded tensor). Save "
                "value.contiguous().")
    if not value.is_floating_point() and key.endswith((".weight", ".bias")):
        return f"of integers ({kind}). Save the weights in float32, float16 or bfloat16."
    return None
