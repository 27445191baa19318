"""Options of engines: what a builder cannot do is one sentence before anything is attempted; names differ."""

from __future__ import annotations

import dataclasses

import onnx
import pytest

from dpt_deploy.backends import device
from dpt_deploy.backends.engines import incompatibility
from dpt_deploy.build import EngineOptions, build_engines, choose_builder, refit
from dpt_deploy.build import __main__ as command
from dpt_deploy.build import engine as engine_module
from dpt_deploy.build.engine import Builder
from dpt_deploy.build.options import check_builder
from dpt_deploy.build.refit import check_same_architecture, refit_engines
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BackendError, BadBundle, BadInput, BuildError
from tests.tiny import change_details, own_bundle, tiny_bundle  # noqa: F401


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"version_compatible": True}, "lean library"),
        ({"hardware_compatible": True}, "every GPU that it supports"),
        ({"weights": "refittable"}, "only if a GPU is visible"),
        ({"weights": "stripped"}, "only if a GPU is visible"),
    ],
)
def test_tensorrt_rtx_refuses_before_anything_is_attempted(own_bundle, options, part, monkeypatch):  # noqa: F811
    monkeypatch.setattr(device, "compute_capability", lambda: None)
    monkeypatch.setattr(engine_module.subprocess, "run", lambda *_, **__: pytest.fail("a build was attempted"))
    bundle = Bundle.open(own_bundle)
    with pytest.raises(BackendError, match=part) as caught:
        build_engines(bundle, EngineOptions("tensorrt-rtx", **options), pytest.fail)
    assert str(caught.value).count(". ") == 0 and str(caught.value).startswith("--")
    assert len(Bundle.open(own_bundle).find("engine")) == 2


def test_tensorrt_takes_them_all_on_ampere():
    options = EngineOptions("tensorrt", weights="refittable", version_compatible=True, hardware_compatible=True)
    check_builder(options, "tensorrt", "11.4.1.9", "9.0")
    with pytest.raises(BackendError, match=r"7\.5"):
        check_builder(options, "tensorrt", "11.4.1.9", "7.5")
    with pytest.raises(BackendError, match="lose biases"):
        check_builder(options, "tensorrt", "11.3.0.2", "9.0")
    check_builder(dataclasses.replace(options, weights="stripped"), "tensorrt", "11.3.0.2", "9.0")


def test_a_gpu_lets_tensorrt_rtx_build_refittable_engines():
    check_builder(EngineOptions(weights="refittable"), "tensorrt-rtx", "1.7.1", "8.9")


def test_engines_of_different_options_have_different_names(monkeypatch):
    monkeypatch.setattr(device, "compute_capability", lambda: "9.0")
    trt = Builder("tensorrt", "11.4.1.9")
    variants = [
        {}, {"weights": "refittable"}, {"weights": "stripped"}, {"version_compatible": True},
        {"hardware_compatible": True}, {"hardware_compatible": True, "weights": "refittable"},
    ]
    names = [trt.file_name("frame", "fp16", EngineOptions(**variant)) for variant in variants]
    assert len(set(names)) == len(names)
    assert names[0] == trt.file_name("frame", "fp16") == "frame.fp16.trt11.4-sm90.engine"
    assert "sm90" not in names[4]
    assert trt.timing_file == "timing.trt11.4-sm90.cache"


def test_the_runtime_takes_what_an_engine_was_built_to_fit(own_bundle):  # noqa: F811
    bundle = Bundle.open(own_bundle)
    (engine,) = bundle.find("engine", graph="frame")

    def fits(version, capability, **details):
        made = {"builder": "tensorrt", "builder_version": "11.4.1", "compute_capability": "8.9"} | details
        changed = engine.model_copy(update={"details": engine.details.model_copy(update=made)})
        return incompatibility(bundle, changed, version, capability)

    assert fits("11.4.1", "8.9") is None
    assert "11.5.0 is installed" in fits("11.5.0", "8.9")
    assert fits("11.5.0", "8.9", version_compatible=True) is None
    assert fits("12.0.1", "8.9", version_compatible=True) is None
    assert "11.3.0 is installed" in fits("11.3.0", "8.9", version_compatible=True)
    assert "compute capability 8.9" in fits("11.4.1", "10.0")
    assert fits("11.4.1", "10.0", hardware_compatible=True) is None
    assert "compute capability 8.9" in fits("11.4.1", "7.5", hardware_compatible=True)
    assert f"--refit {own_bundle}" in fits("11.4.1", "8.9", weights="stripped")
    assert fits("11.4.1", "8.9", weights="refittable") is None


def test_none_builds_nothing_and_bad_words_are_refused():
    assert choose_builder(EngineOptions("none", version_compatible=True)) is None
    with pytest.raises(BadInput, match="--weights"):
        EngineOptions(weights="some")


def test_the_timing_cache_is_kept_and_handed_to_the_next_build(own_bundle, monkeypatch):  # noqa: F811
    """With a builder that only pretends: what the orders say, and what becomes of the files."""
    orders = []

    def pretend(order, builder, failure):
        orders.append(order)
        with open(order["plan"], "wb") as file:
            file.write(b"plan")
        if order["new_timings"]:
            with open(order["new_timings"], "wb") as file:
                file.write(b"timings")
        passed = {"status": "passed", "attention": {"status": "passed", "layers": 6, "blocks": 6},
                  "flops": {"share": 1.0}}
        return {"layers": 1, "attention_layers": 6, "certificate": passed}

    monkeypatch.setattr("dpt_deploy.build.choose_builder", lambda options: Builder("tensorrt", "11.4.1"))
    monkeypatch.setattr(engine_module, "run_builder", pretend)
    monkeypatch.setattr(device, "compute_capability", lambda: "9.0")
    bundle = Bundle.open(own_bundle)
    build_engines(bundle, EngineOptions("tensorrt", hardware_compatible=True), lambda line: None)
    assert [bool(order["old_timings"]) for order in orders] == [False, True]
    assert orders[0]["variant"] == {"hardware_compatible": True}
    (cache,) = [a for a in Bundle.open(own_bundle).artifacts if a.file == "timing.trt11.4-sm90.cache"]
    assert bundle.intact(cache) and cache.kind == "cache"
    build_engines(bundle, EngineOptions("tensorrt", timing_cache=False), lambda line: None)
    assert [bool(order["new_timings"]) for order in orders] == [True, True, False, False]


@pytest.mark.parametrize("broken_link", [False, True])
def test_engines_and_caches_that_a_copy_lacks_are_no_longer_listed(own_bundle, broken_link):  # noqa: F811
    """As after a download without them: a verdict would fail, and say that they are missing."""
    bundle = Bundle.open(own_bundle)
    (own_bundle / "timing.trt11.4-sm90.cache").write_bytes(b"timings")
    bundle.add("timing.trt11.4-sm90.cache", "cache")
    kept = own_bundle / bundle.find("engine", graph="frame")[0].file
    for path in (own_bundle / bundle.find("engine", graph="model")[0].file, own_bundle / "timing.trt11.4-sm90.cache"):
        path.unlink()
        if broken_link:
            path.symlink_to("nowhere")
    build_engines(Bundle.open(own_bundle), EngineOptions("none"), pytest.fail)
    again = Bundle.open(own_bundle)
    assert [engine.file for engine in again.find("engine")] == [kept.name] and not again.find("cache")
    assert kept.is_file() and all(again.intact(one) for one in again.artifacts if one.kind != "reference")
    assert not [path for path in own_bundle.iterdir() if path.is_symlink()]


def test_a_refit_of_an_import_says_what_to_build(own_bundle):  # noqa: F811
    bundle = Bundle.open(own_bundle)
    (engine,) = bundle.find("engine", graph="frame")
    for graph in bundle.find("onnx", precision=engine.precision):
        bundle.remove(graph)
    with pytest.raises(BadBundle, match=r"no frame graph in fp16\. Export it with --precision fp16\.$"):
        refit.target_graph(bundle, engine)
    bundle.update(options={"description": {}})
    with pytest.raises(BadBundle, match=r"FP32 graphs only\. Build .*: python -m dpt_deploy\.build .*own$"):
        refit.target_graph(bundle, engine)


def test_a_refit_needs_an_engine_made_for_it(own_bundle, tiny_bundle):  # noqa: F811
    with pytest.raises(BadBundle, match=r"no engine with refittable weights.*--weights refittable"):
        refit_engines(Bundle.open(own_bundle), Bundle.open(tiny_bundle))
    with pytest.raises(BadBundle, match="no engine with stripped weights"):
        refit_engines(Bundle.open(own_bundle), Bundle.open(own_bundle))


def test_a_refit_without_a_gpu_is_refused(own_bundle, tiny_bundle, monkeypatch):  # noqa: F811
    source = Bundle.open(own_bundle)
    for engine in source.find("engine"):
        change_details(source, engine, weights="refittable")
    monkeypatch.setattr(device, "compute_capability", lambda: None)
    with pytest.raises(BackendError, match="no GPU is visible"):
        refit_engines(Bundle.open(tiny_bundle), source)


def test_a_stripped_engine_gets_its_weights_back(own_bundle, monkeypatch):  # noqa: F811
    """With a GPU and a builder that only pretend."""
    bundle = Bundle.open(own_bundle)
    (engine,) = bundle.find("engine", graph="frame")
    bundle.remove(bundle.find("engine", graph="model")[0])
    engine = change_details(bundle, engine, weights="stripped")
    version = engine.details.builder_version
    assert "--refit" in incompatibility(bundle, engine, version, "8.9")

    def pretend(order, builder, failure):
        with open(order["plan"], "wb") as file:
            file.write(b"filled")
        return {"plan_bytes": 6}

    monkeypatch.setattr(refit, "run_builder", pretend)
    monkeypatch.setattr(refit, "find_builder", lambda name: Builder(name, version))
    monkeypatch.setattr(device, "compute_capability", lambda: "8.9")
    engine = change_details(bundle, engine, builder_version="0.1")
    with pytest.raises(BackendError, match=r"built by tensorrt-rtx 0\.1.*--weights stripped"):
        refit_engines(bundle, bundle, lambda line: None)
    change_details(bundle, engine, builder_version=version)
    (filled,) = refit_engines(bundle, bundle, lambda line: None)
    assert bundle.path(filled).read_bytes() == b"filled" and filled.details.weights == "fixed"
    assert incompatibility(bundle, filled, version, "8.9") is None


@pytest.mark.parametrize("builder", ["tensorrt-rtx", "none"])
def test_a_precision_without_a_graph_is_refused(own_bundle, builder):  # noqa: F811
    with pytest.raises(BadInput, match=r"--precisions: .*graphs in fp32, fp16, received bf16\..*--precision bf16"):
        build_engines(Bundle.open(own_bundle), EngineOptions(builder), pytest.fail, ("fp16", "bf16"))


def test_a_bad_budget_is_refused_before_anything_is_built(own_bundle, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(command, "build_engines", lambda *_, **__: pytest.fail("a build was attempted"))
    (tmp_path / "budget.json").write_text("{}")
    with pytest.raises(BadInput, match="expected a budget"):
        command.main(command.BuildConfig(own_bundle, budget=tmp_path / "budget.json"))


def altered(path, out, change):
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, out)
    return out


def test_new_values_are_the_same_architecture(tiny_bundle, tmp_path):  # noqa: F811
    def train(graph):
        for tensor in graph.initializer:
            if tensor.name == "heads.depth.conv3.weight":
                tensor.raw_data = bytes(len(tensor.raw_data))

    old = tiny_bundle / "model.fp16.onnx"
    check_same_architecture(old, altered(old, tmp_path / "new.onnx", train))


@pytest.mark.parametrize("what", ["shape", "name", "node", "constant", "attribute"])
def test_another_architecture_is_refused_with_what_differs(tiny_bundle, tmp_path, what):  # noqa: F811
    def change(graph):
        weight = next(tensor for tensor in graph.initializer if tensor.name == "heads.depth.conv3.weight")
        if what == "shape":
            weight.dims.append(1)
        elif what == "name":
            weight.name = "heads.depth.conv4.weight"
        elif what == "node":
            del graph.node[-1]
        elif what == "constant":
            next(t for t in graph.initializer if "." not in t.name and t.raw_data).raw_data += b"x"
        else:
            next(n for n in graph.node if n.op_type == "LayerNormalization").attribute[0].i += 1

    old = tiny_bundle / "model.fp16.onnx"
    with pytest.raises(BuildError, match=r"not the same architecture.*differences.*dpt_deploy.build"):
        check_same_architecture(old, altered(old, tmp_path / "new.onnx", change))
    with pytest.raises(BuildError, match="not the same architecture"):
        check_same_architecture(old, tiny_bundle / "model.fp32.onnx")
