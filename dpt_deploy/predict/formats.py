"""The formats of maps: how each is encoded, in which forms, and whether the files stand alone or in shards."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from ..core import compact
from ..core.contract import DEPTHS, HEADS, DepthKind
from ..core.errors import BadInput, missing_package
from ..report.writers import DEPTH_TEXT, maps_exr_bytes, normals_text, png_bytes
from ..runtime import Prediction

FormatName = Literal["full", "npz", "exr", "png16", "zarr", "tar", "tar-npz"]
Maps = Mapping[str, np.ndarray]
Forms = Mapping[str, str]
Meanings = Mapping[str, str]
"""By head, what the numbers of a map are, in words."""

FOCAL_ADVICE = "Pass the camera's focal length with --focal, --fov or --intrinsics"
PNG_KEY = "dpt-deploy"
"""Keyword of the text in PNG files: JSON with head, form, unit, scale and offset: value = scale * stored + offset."""
_FLOATS, _UNSIGNED = ("float16", "float32"), ("uint8", "uint16", "uint16-mm")


@dataclass(frozen=True)
class Format:
    """One format of the results."""

    forms: Forms
    """The form in which each map is stored, unless the user chooses another."""
    encode: Callable[[Maps, Forms, Meanings], dict[str, bytes]] | None = None
    """Stored maps by head, their forms and meanings -> the content of each file, by the end of its name. None: see
    `full`."""
    allowed: tuple[str, ...] = ()
    """Names of forms that it can hold; () for all."""
    shards: Literal["tar", "zarr"] | None = None
    """The kind of shard that the files go into."""

    def chosen_forms(
        self, name: str, wanted: Forms, heads: tuple[str, ...], depth_kind: DepthKind = "metric"
    ) -> dict[str, str]:
        """The form of each head. Raises `BadInput` for one that does not exist or does not fit."""
        if unknown := [head for head in wanted if head not in HEADS]:
            raise BadInput(f"--forms: expected names among {', '.join(HEADS)}, received {', '.join(unknown)}.")
        for head, form in wanted.items():
            compact.form(head, form)
            fitting = [one for one in compact.FORMS[head] if not self.allowed or one in self.allowed]
            if form not in fitting:
                raise BadInput(f"--forms: {name} holds {head} as {' or '.join(fitting)}, received {form}.")
        if wanted and self.encode is None:
            raise BadInput(f"--forms: --format {name} stores float32. Choose another format, such as npz.")
        chosen = {head: wanted.get(head, self.forms[head]) for head in heads}
        if depth_kind != "metric" and chosen.get("depth") == "uint16-mm":
            free = [one for one in compact.FORMS["depth"] if one != "uint16-mm" and self.encode
                    and (not self.allowed or one in self.allowed)]
            advice = f"Pass --forms depth={free[0]}" if free else "Choose --format npz, or leave depth out with --maps"
            raise BadInput(f"depth: expected depth in metres to store it as uint16-mm, received a bundle with "
                           f"{DEPTHS[depth_kind]}. {advice}.")
        return chosen


def store(prediction: Prediction, forms: Forms) -> dict[str, np.ndarray]:
    """The maps of a prediction by head in their forms. Raises `BadInput` for millimetres of depth without metres."""
    if forms.get("depth") == "uint16-mm" and not prediction.depth_in_metres:
        raise BadInput(f"depth: expected depth in metres to store it as uint16-mm, received "
                       f"{prediction.depth_meaning}. {FOCAL_ADVICE}, or choose --format npz.")
    return {head: compact.encode(head, form, prediction.maps[head]) for head, form in forms.items()}


def _npz(stored: Maps, forms: Forms, meanings: Meanings) -> dict[str, bytes]:
    data = io.BytesIO()
    # np.savez_compressed takes level 6: up to three times as long, for files that are 3 % smaller.
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        texts = {"forms": dict(forms), "meaning": {head: meanings[head] for head in stored}}
        for name, values in {**{name: np.array(json.dumps(text)) for name, text in texts.items()}, **stored}.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, values, allow_pickle=False)
            file.writestr(f"{name}.npy", member.getvalue())
    return {"npz": data.getvalue()}


def _exr(stored: Maps, forms: Forms, meanings: Meanings) -> dict[str, bytes]:
    return {"exr": maps_exr_bytes(stored, meanings.get("depth"))}


def _png(stored: Maps, forms: Forms, meanings: Meanings) -> dict[str, bytes]:
    texts = {("depth", "uint16-mm"): DEPTH_TEXT, ("normals", "uint16"): normals_text()}
    return {f"{head}.png": png_bytes(values, {PNG_KEY: json.dumps(description(head, forms[head], meanings[head])),
                                              **texts.get((head, forms[head]), {})})
            for head, values in stored.items()}


def description(head: str, form: str, meaning: str) -> dict[str, str | float]:
    """What the numbers of a stored map mean, for its metadata."""
    found: dict[str, str | float] = {"head": head, "form": form, "meaning": meaning}
    if form == "uint16-mm":
        found |= {"scale": 0.001, "offset": 0, "no_depth": 0}
    elif form in _UNSIGNED:
        top = np.iinfo(form).max
        found |= {"scale": 2 / top, "offset": -1} if head == "normals" else {"scale": 1 / top, "offset": 0}
    return found


def _zarr(stored: Maps, forms: Forms, meanings: Meanings) -> dict[str, bytes]:
    found = {"zarr.json": zarr_group()}
    for head, values in stored.items():
        metadata, compress = _zarr_array(head, forms[head], meanings[head], values.shape, values.dtype.str)
        chunk = "/".join(["c", *["0"] * values.ndim])
        found |= {f"{head}/zarr.json": metadata, f"{head}/{chunk}": compress(np.ascontiguousarray(values))}
    return found


@functools.cache
def zarr_group() -> bytes:
    """The metadata of a group."""
    return _zarr_files(lambda zarr, store: zarr.create_group(store=store))["zarr.json"]


@functools.lru_cache(maxsize=256)
def _zarr_array(
    head: str, form: str, meaning: str, shape: tuple[int, ...], dtype: str
) -> tuple[bytes, Callable[..., bytes]]:
    """zarr's own metadata of an array with one chunk, and what compresses the chunk; a call of zarr takes 6 ms."""
    from numcodecs import Zstd

    written = _zarr_files(lambda zarr, store: zarr.create_array(
        store=store, shape=shape, chunks=shape, dtype=dtype, attributes=description(head, form, meaning),
        compressors=zarr.codecs.ZstdCodec(level=3)))
    return written["zarr.json"], Zstd(level=3).encode


def _zarr_files(create: Callable[..., object]) -> dict[str, bytes]:
    try:
        import zarr
    except ImportError as error:
        raise missing_package("zarr", "batch", "write zarr shards") from error
    content: dict[str, object] = {}
    create(zarr, zarr.storage.MemoryStore(content))
    return {name: value.to_bytes() for name, value in content.items()}


def _forms(depth: str, normals: str, alpha: str) -> Forms:
    return MappingProxyType({"depth": depth, "normals": normals, "alpha": alpha})


FORMATS: Mapping[str, Format] = MappingProxyType({
    "full": Format(_forms("float32", "float32", "float32")),
    "npz": Format(_forms("float16", "float16", "float16"), _npz),
    "exr": Format(_forms("float16", "float16", "float16"), _exr, _FLOATS),
    "png16": Format(_forms("uint16-mm", "uint16", "uint8"), _png, _UNSIGNED),
    "zarr": Format(_forms("float16", "float16", "float16"), _zarr, shards="zarr"),
    "tar": Format(_forms("uint16-mm", "uint16", "uint8"), _png, _UNSIGNED, "tar"),
    "tar-npz": Format(_forms("float16", "float16", "float16"), _npz, shards="tar"),
})
"""By name. `full`, for a few images, is what `report.prediction_files` writes: .npz and depth as .exr in float32, and
the panel. The others are for many: smaller, in forms whose errors `core.compact` states."""
