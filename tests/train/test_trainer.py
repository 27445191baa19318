"""Whole runs: what they leave behind, going on after a kill, bad losses, several processes."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from dpt_deploy.core.errors import BadInput, DptError
from dpt_deploy.model import create_multitask_dpt_model, load_model, read_checkpoint
from train.loop import memory, setup, state
from train.loop.optim import rate_factor
from train.loop.process import Stopped
from train.loop.trainer import Trainer
from train.loop.validation import Validated
from train.monitoring.tables import write_curves


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def table(run: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    return list(csv.DictReader(io.StringIO((run / "metrics.csv").read_text())))


def assert_same_bits(a: Path, b: Path) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different, f"{len(different)} of {len(one)} tensors differ, such as {different[:3]}"


def stop_at(trainer: Trainer, step: int) -> None:
    """Make the trainer be killed, without warning, when it begins `step`."""
    original = trainer.stepper

    def step_or_die(*args):
        if trainer.progress.total_steps == step:
            raise RuntimeError("killed")
        return original(*args)

    trainer.stepper = step_or_die


def spied(validation, then: Callable[[], object] = lambda: None) -> list[str]:
    """The names of the images that a validation has seen, as it goes; `then` is called at its first batch."""
    per_image, seen = validation.losses.per_image, []

    def spy(outputs, batch):
        first = not seen
        seen.extend(batch["name"])
        if first:
            then()
        return per_image(outputs, batch)

    validation.losses = SimpleNamespace(per_image=spy, heads=validation.losses.heads)
    return seen


def test_a_run_leaves_what_the_guide_lists(config, capsys):
    run = config(epochs=2, ema=0.9, tensorboard=True)
    row = Trainer(run).run()
    out = run.out
    for name in ("checkpoint_epoch_01.pth", "checkpoint_epoch_02.pth", "best_model.pth", "final_model.pth", "last.pth",
                 "training_samples/epoch_01.png", "training_samples/epoch_02.png", "metrics.csv", "curves.png",
                 "metrics.json", "run.json", "config.yaml"):
        assert (out / name).stat().st_size > 0, name
    assert list((out / "tensorboard").iterdir())
    rows = table(out)
    assert [r["epoch"] for r in rows] == ["1", "2"]
    for name in ("train_loss", "train_depth", "train_normals", "train_alpha", "val_loss", "val_depth", "val_normals",
                 "val_alpha", "depth_abs_rel", "normals_mean", "alpha_iou"):
        assert float(rows[1][name]) == pytest.approx(row[name])
    record = json.loads((out / "run.json").read_text())
    assert record["versions"]["torch"] and record["data"]["fingerprint"] and record["config"]["ema"] == 0.9
    text = capsys.readouterr().out
    assert "AbsRel" in text and "constant" in text and "epoch 2/2" in text


def test_best_model_loads_as_the_guide_says_and_describes_itself(config):
    run = config(epochs=1)
    Trainer(run).run()
    model = create_multitask_dpt_model("test_vit", features=8, backbone_kwargs={"img_size": 64})
    model.load_state_dict(torch.load(run.out / "best_model.pth"))
    checkpoint = read_checkpoint(run.out / "best_model.pth")
    assert checkpoint.contract.input_size == (64, 64)
    assert checkpoint.training["config"]["lr"] == run.lr
    assert checkpoint.training["metrics"]["epoch"] == 1
    assert load_model(checkpoint).heads["depth"].activation.depth_scale == 1.0, "the guide's default is 5"


def test_best_model_is_the_epoch_of_the_lowest_validation_loss(config):
    run = config(epochs=3, lr=3e-2, warmup=0.0)
    Trainer(run).run()
    rows = table(run.out)
    best = min(rows, key=lambda row: float(row["val_loss"]))["epoch"]
    assert_same_bits(run.out / "best_model.pth", run.out / f"checkpoint_epoch_{int(best):02d}.pth")


@pytest.mark.parametrize(("amp", "killed_at", "accumulate"), [
    ("fp32", 2, 1), ("fp32", 5, 1), pytest.param("bf16", 7, 1, marks=pytest.mark.slow), ("fp16", 5, 1), ("fp32", 3, 2),
])
def test_a_run_goes_on_bit_for_bit_after_a_kill(config, tmp_path, amp, killed_at, accumulate):
    common = {"epochs": 2, "ema": 0.9, "amp": amp, "backbone_kwargs": ("img_size=64", "drop_path_rate=0.3"),
              "accumulate": accumulate}
    whole = config(out=tmp_path / "whole", **common)
    Trainer(whole).run()
    broken = config(out=tmp_path / "broken", save_minutes=1e-9, **common)  # saves after every step
    trainer = Trainer(broken)
    stop_at(trainer, killed_at)
    with pytest.raises(RuntimeError, match="killed"):
        trainer.run()
    torch.rand(100)  # whatever else has drawn random numbers since
    Trainer(config(out=tmp_path / "broken", resume="auto", **common)).run()
    for name in ("final_model.pth", "best_model.pth", "checkpoint_epoch_01.pth"):
        assert_same_bits(tmp_path / "broken" / name, tmp_path / "whole" / name)
    columns = ("epoch", "train_loss", "val_loss", "depth_abs_rel")
    tables = [[[row[c] for c in columns] for row in table(tmp_path / name)] for name in ("whole", "broken")]
    assert tables[0] == tables[1]


def test_a_run_goes_on_from_an_older_save_after_a_kill(config, tmp_path):
    common = {"epochs": 2, "ema": 0.9}
    Trainer(config(out=tmp_path / "whole", **common)).run()
    trainer = Trainer(config(out=tmp_path / "broken", **common))  # saves at the ends of epochs alone
    stop_at(trainer, 7)
    with pytest.raises(RuntimeError, match="killed"):
        trainer.run()
    Trainer(config(out=tmp_path / "broken", resume="auto", **common)).run()
    assert_same_bits(tmp_path / "broken" / "final_model.pth", tmp_path / "whole" / "final_model.pth")


def test_the_loss_scale_is_that_of_the_save(config):
    common = {"amp": "fp16", "epochs": 2, "max_train_batches": 2}
    trainer = Trainer(config(**common))
    handle = trainer.model.heads["depth"].conv3.weight.register_hook(lambda grad: grad * float("inf"))
    stop_at(trainer, 2)
    with pytest.raises(RuntimeError, match="killed"):
        trainer.run()
    handle.remove()
    again = Trainer(config(resume="auto", **common))
    assert again.optimization.scaler.get_scale() == 65536 / 4, "two overflows"
    assert again.optimization.scaler.state_dict() == trainer.optimization.scaler.state_dict()


def test_tensorboard_holds_every_epoch_once_after_resuming(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    common = {"epochs": 3, "max_train_batches": 2, "tensorboard": True}
    trainer = Trainer(config(**common))
    stop_at(trainer, 3)
    with pytest.raises(RuntimeError, match="killed"):
        trainer.run()
    last = trainer.last.read_bytes()
    for _ in range(2):  # the second time from a state older than what the event files hold
        trainer.last.write_bytes(last)
        Trainer(config(resume="auto", **common)).run()
    events = EventAccumulator(str(trainer.config.out / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val/loss")] == [1, 2, 3]


def test_resuming_another_config_or_other_data_is_refused(config, tmp_path):
    run = config(epochs=2)
    trainer = Trainer(run)
    stop_at(trainer, 5)
    with pytest.raises(RuntimeError):
        trainer.run()
    with pytest.raises(BadInput, match=r"lr was 0\.001, now 0\.002"):
        Trainer(config(epochs=2, lr=2e-3, resume="auto"))
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(DptError, match=r"last\.pth"):
        Trainer(config(epochs=2, resume=str(tmp_path / "bad.pth"), out=tmp_path / "other"))
    progress, _ = state.load(run.out / "last.pth", run, trainer.resolved, trainer.data.fingerprint)
    with pytest.raises(BadInput, match="run on other data"):
        state.load(run.out / "last.pth", run, trainer.resolved, "other")
    assert progress.epoch == 1
    for name, there, here in (("amp", "fp32", "fp16"), ("backbone_lr_scale", 1.0, 0.1), ("images_per_step", 4, 8)):
        with pytest.raises(BadInput, match=re.escape(f"{name} was {there!r}, now {here!r}")):
            state.load(run.out / "last.pth", run, trainer.resolved | {name: here}, trainer.data.fingerprint)


def test_a_run_is_extended(config, capsys):
    Trainer(config(epochs=2)).run()
    capsys.readouterr()
    trainer = Trainer(config(epochs=4, resume="auto"))
    rates = []
    original = trainer.stepper

    def record(*args):
        rates.append(max(group["lr"] for group in trainer.optimization.optimizer.param_groups))
        return original(*args)

    trainer.stepper = record
    trainer.run()
    steps = trainer.batches.steps
    assert rates == [1e-3 * rate_factor(step, 4 * steps, 0.05) for step in range(2 * steps, 4 * steps)]
    assert trainer.progress.total_steps == 4 * steps
    assert [row["epoch"] for row in table(trainer.config.out)] == ["1", "2", "3", "4"]
    before = 1e-3 * rate_factor(2 * steps - 1, 2 * steps, 0.05)
    said = rf"epochs: 2 before, 4 now.*step {2 * steps} of {4 * steps}: .*from {before:.2e} to {rates[0]:.2e}"
    assert re.search(said, capsys.readouterr().out)
    Trainer(config(epochs=4, resume="auto")).run()
    text = capsys.readouterr().out
    assert "all 4 epochs are done" in text and "before" not in text


def test_fewer_epochs_than_are_done_are_refused(config):
    trainer = Trainer(config(epochs=4))
    stop_at(trainer, 10)
    with pytest.raises(RuntimeError):
        trainer.run()
    with pytest.raises(BadInput, match=r"beyond --epochs 1: 2 epochs are done\. Give --epochs 2 or more"):
        Trainer(config(epochs=1, resume="auto"))
    trainer.save_state()
    with pytest.raises(BadInput, match=r"--epochs 2: 2 epochs and 2 steps of the next are done\. Give --epochs 3"):
        Trainer(config(epochs=2, resume="auto"))
    assert Trainer(config(epochs=3, resume="auto")).run()["epoch"] == 3


@pytest.mark.parametrize("validation_seconds", [pytest.param(20, marks=pytest.mark.slow), 100])
def test_a_kill_loses_no_more_than_the_minutes_between_saves(config, monkeypatch, validation_seconds):
    trainer = Trainer(config(epochs=4, save_minutes=1, batch_size=2))
    clock, lost, saves = [0.0], [0.0], []
    monkeypatch.setattr("train.loop.trainer.time", SimpleNamespace(monotonic=lambda: clock[0]))
    step, validate, save = trainer.stepper, trainer.validation.run, state.save

    def work(seconds: float) -> None:
        clock[0] += seconds
        lost[0] += seconds
        assert lost[0] <= 60 or lost[0] == validation_seconds, "no state lies within a validation"

    def slow_step(*args):
        work(11)
        return step(*args)

    def slow_validation(*args, **options):
        work(validation_seconds)
        return validate(*args, **options)

    def slow_save(*args):
        clock[0] += 4
        save(*args)
        lost[0] = 0.0
        saves.append(clock[0])

    trainer.stepper, trainer.validation.run = slow_step, slow_validation
    monkeypatch.setattr(state, "save", slow_save)
    monkeypatch.setattr(trainer, "_save_weights", lambda name: None)
    trainer.run()
    assert 8 <= len(saves) <= 16, "one before and one after each validation, and some between"


def test_the_end_shows_the_best_epoch(config, capsys):
    trainer = Trainer(config(epochs=3, max_train_batches=1))
    losses, run = iter([1.0, 0.5, 0.6]), trainer.validation.run

    def validate(*args, **options):
        validated = run(*args, **options)
        return dataclasses.replace(validated, row=validated.row | {"val_loss": next(losses)})

    trainer.validation.run = validate
    trainer.run()
    tables = capsys.readouterr().out.split("depth AbsRel  ")
    assert len(tables) == 5, "three epochs, and the best again"
    assert re.search(r"best: epoch 2/3 .*val 0\.5000", tables[3])
    assert tables[4].splitlines()[0] == tables[2].splitlines()[0] != tables[3].splitlines()[0]
    stored = json.loads((trainer.config.out / "metrics.json").read_text())
    assert (stored["epoch"], stored["best"]["epoch"]) == (3, 2)
    Trainer(config(epochs=3, max_train_batches=1, resume="auto")).run()
    assert capsys.readouterr().out.count(f"depth AbsRel  {tables[2].splitlines()[0]}") == 1, "also in a later process"


@pytest.mark.parametrize("count", [1, 2, 3, 47])
def test_curves_have_whole_epochs(count, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: (figures.append(figure),
                                                                             save(figure, *args, **options)))
    write_curves(tmp_path / "curves.png", [{"epoch": i + 1, "train_loss": 1 / (i + 1)} for i in range(count)], {})
    (axes,) = figures[0].axes
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == round(tick) and 1 <= tick <= count for tick in ticks)


def test_a_state_with_the_option_names_of_earlier_versions_resumes(config):
    trainer = Trainer(config(epochs=2, input_size=(64, 64)))
    stop_at(trainer, 5)
    with pytest.raises(RuntimeError):
        trainer.run()
    content = torch.load(trainer.last, weights_only=True)
    for new, old, value in (("heads", "tasks", ["depth", "normals", "alpha"]), ("max_train_batches", None, None),
                            ("max_val_batches", "limit_val_batches", 0), ("input_size", "input_size", 64)):
        del content["config"][new]
        content["config"] |= {old or "limit_train_batches": value or 0}
    torch.save(content, trainer.last)
    again = Trainer(config(epochs=2, input_size=(64, 64), resume="auto"))
    assert again.progress.epoch == 1
    with pytest.raises(BadInput, match="heads was"):
        Trainer(config(epochs=2, input_size=(64, 64), heads=("alpha",), resume="auto"))
    with pytest.raises(BadInput, match="input_size was '64x64', now None"):
        Trainer(config(epochs=2, resume="auto"))


def test_a_network_of_a_non_square_input_trains(config):
    run = config(max_train_batches=1, input_size=(48, 64), backbone_kwargs=())
    Trainer(run).run()
    assert read_checkpoint(run.out / "best_model.pth").contract.input_size == (48, 64)


def test_the_steps_count_not_how_they_are_made(config):
    run = config(epochs=2, batch_size=4)
    trainer = Trainer(run)
    stop_at(trainer, 5)
    with pytest.raises(RuntimeError):
        trainer.run()
    again = Trainer(config(epochs=2, batch_size=2, accumulate=2, resume="auto"))
    assert again.progress.epoch == 1
    again.run()
    assert again.progress.total_steps == 8
    with pytest.raises(BadInput, match="images_per_step was 4, now 2"):
        Trainer(config(epochs=2, batch_size=2, resume="auto"))


def test_a_folder_that_holds_a_run_is_not_overwritten(config, tmp_path):
    run = config(max_train_batches=1)
    Trainer(run).run()
    with pytest.raises(BadInput, match="--resume auto"):
        Trainer(run)
    other = config(max_train_batches=1, out=tmp_path / "other")
    Trainer(other).run()
    with pytest.raises(BadInput, match="--resume auto"):
        Trainer(config(max_train_batches=1, resume=str(other.out / "last.pth")))
    Trainer(config(max_train_batches=1, resume=str(run.out / "last.pth")))


def test_an_unwritable_output_folder_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        Trainer(config(out=tmp_path / "file" / "run"))


def test_accumulation_equals_a_larger_batch(config, tmp_path):
    for name, changes in (("a", {"batch_size": 8}), ("b", {"batch_size": 2, "accumulate": 4})):
        Trainer(config(out=tmp_path / name, **changes)).run()
    a, b = weights(tmp_path / "a" / "final_model.pth"), weights(tmp_path / "b" / "final_model.pth")
    assert max((a[key] - b[key]).abs().max().item() for key in a) < 1e-5


def test_only_the_latest_checkpoints_are_kept(config):
    run = config(epochs=4, max_train_batches=1, keep=2)
    Trainer(run).run()
    kept = sorted(path.name for path in run.out.glob("checkpoint_*"))
    assert kept == ["checkpoint_epoch_03.pth", "checkpoint_epoch_04.pth"]


def test_the_latest_checkpoints_are_the_latest_beyond_epoch_99_too(config):
    trainer = Trainer(config(epochs=101, max_train_batches=1, max_val_batches=1, keep=2))
    trainer.progress.epoch = 98
    for epoch in (97, 98):
        (trainer.config.out / f"checkpoint_epoch_{epoch}.pth").touch()
    trainer.run()
    kept = {path.name for path in trainer.config.out.glob("checkpoint_*")}
    assert kept == {"checkpoint_epoch_100.pth", "checkpoint_epoch_101.pth"}


def test_a_run_stops_early_when_nothing_improves(config):
    run = config(epochs=30, early_stopping=2, lr=1e-12, warmup=0.0, max_train_batches=1, augment=False)
    trainer = Trainer(run)
    losses = iter([1.0, 0.5, 0.6, 0.7, 0.1])
    trainer.validation.run = lambda *_, **__: Validated({"val_loss": next(losses)}, {}, {})
    assert trainer.run()["epoch"] == 4
    assert trainer.progress.best_epoch == 2


def test_batch_limits_bound_an_epoch(config):
    trainer = Trainer(config(batch_size=2, max_train_batches=2, max_val_batches=1))
    seen = spied(trainer.validation)
    trainer.run()
    assert trainer.progress.total_steps == 2
    assert len(seen) == 2 < len(trainer.data.val_positions)


def test_one_loss_that_is_not_finite_skips_its_step(config, capsys):
    trainer = Trainer(config())
    original, calls = trainer.stepper.per_image, []

    def sometimes_nan(batch):
        calls.append(batch["name"])
        losses = original(batch)
        bad = torch.tensor([1.0, 1.0, float("nan"), 1.0])
        return {k: v * bad for k, v in losses.items()} if len(calls) == 2 else losses

    trainer.stepper.per_image = sometimes_nan
    trainer.run()
    assert trainer.progress.skipped == 1
    text = capsys.readouterr().out
    assert calls[1][2] in text
    assert not any(name in text for name in calls[1] if name != calls[1][2]), "only the image to blame"
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_ten_bad_losses_in_a_row_stop_the_run_with_advice(config):
    trainer = Trainer(config(epochs=5))
    trainer.stepper.per_image = lambda batch: {"loss": torch.full((4,), float("inf"), requires_grad=True)}
    with pytest.raises(DptError, match=r"ten|10 steps.*--lr"):
        trainer.run()


def test_a_gradient_that_is_not_finite_skips_too(config):
    trainer = Trainer(config(max_train_batches=2))
    head = trainer.model.heads["depth"].conv3.weight
    handle = head.register_hook(lambda grad: grad * float("nan"))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.run()
    handle.remove()
    assert trainer.progress.skipped == 2
    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())


def test_overflows_of_the_loss_scaler_are_no_failure(config):
    trainer = Trainer(config(amp="fp16", max_train_batches=2, epochs=1))
    assert trainer.optimization.scaler.is_enabled()
    handle = trainer.model.heads["depth"].conv3.weight.register_hook(lambda grad: grad * float("inf"))
    trainer.run()
    handle.remove()
    assert (trainer.progress.overflows, trainer.progress.skipped) == (2, 0)


def test_overflows_that_no_scale_mends_stop_the_run(config):
    trainer = Trainer(config(amp="fp16", epochs=20))
    trainer.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trainer.model.heads["depth"].conv3.weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(DptError, match="gradient has not been finite for 10 steps"):
        trainer.run()
    assert trainer.progress.overflows == 2, "at scales 2 and 1"


@pytest.mark.parametrize("how", ["init", "resume"])
def test_weights_that_would_be_replaced_are_not_fetched(config, tmp_path, monkeypatch, how):
    asked = []
    create = setup.create_multitask_dpt_model

    def recording(*args):
        asked.append(args[3])
        return create(*args[:3], False, *args[4:])

    monkeypatch.setattr(setup, "create_multitask_dpt_model", recording)
    run = config(pretrained=True, max_train_batches=1)
    Trainer(run).run()
    if how == "init":
        Trainer(config(pretrained=True, init=run.out / "best_model.pth", out=tmp_path / "other"))
    else:
        Trainer(config(pretrained=True, max_train_batches=1, resume="auto"))
    assert asked == [True, False]


def test_broken_samples_are_named_and_skipped_up_to_a_limit(config, capsys):
    trainer = Trainer(config(check_data=False))
    read, bad = trainer.data.source.read, set(trainer.data.train_positions[:2])

    def sometimes(position):
        if position in bad:
            raise BadInput(f"sample {position} is broken")
        return read(position)

    trainer.data.source.read = sometimes
    trainer.run()
    text = capsys.readouterr().out
    assert all(f"sample {position} is broken" in text for position in bad)
    bad = set(trainer.data.train_positions[:5])
    trainer = Trainer(config(check_data=False, max_broken=2, out=trainer.config.out / "again"))
    trainer.data.source.read = sometimes
    with pytest.raises(BadInput, match="--max-broken 2"):
        trainer.run()


@pytest.mark.parametrize("fits", [3, 0])
def test_out_of_memory_is_answered_with_a_batch_size_that_was_tried(config, fits):
    trainer = Trainer(config(batch_size=12, accumulate=2))
    original = trainer.stepper.per_image

    def limited(batch):
        if len(batch["pixels"]) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(batch)

    trainer.stepper.per_image = limited
    expected = r"--batch-size 3 --accumulate 8.*--resume auto" if fits else "not even one image"
    with pytest.raises(DptError, match=expected):
        trainer.run()


@pytest.mark.parametrize("where", [
    "train.model.forward.ForwardPass.to_device", "train.monitoring.scores.Scores.add",
    "train.loop.optim.MovingAverage.update_parameters",
])
def test_memory_that_ends_anywhere_is_answered(config, monkeypatch, where):
    trainer = Trainer(config(batch_size=4, ema=0.9, max_train_batches=1))

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(where, full)
    with pytest.raises(DptError, match="--batch-size 2 --accumulate 2"):
        trainer.run()


def test_the_batch_size_that_fits_divides_the_step():
    device = torch.device("cpu")
    assert "--batch-size 2 --accumulate 3," in str(memory.out_of_memory(6, 1, 2, device))
    assert "--batch-size 1 --accumulate 5," in str(memory.out_of_memory(5, 1, 2, device))


def test_ctrl_c_saves_and_the_run_goes_on(config):
    trainer = Trainer(config(epochs=2))
    original = trainer.stepper

    def interrupt_once(*args):
        if trainer.progress.total_steps == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    trainer.stepper = interrupt_once
    with pytest.raises(Stopped, match="--resume auto"):
        trainer.run()
    again = Trainer(config(epochs=2, resume="auto"))
    assert again.progress.total_steps in (4, 5)
    again.run()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_during_validation_saves_and_validation_is_done_again(config, tmp_path, number, capsys):
    common = {"epochs": 2, "ema": 0.9, "batch_size": 2}
    Trainer(config(out=tmp_path / "whole", **common)).run()
    trainer = Trainer(config(**common))
    calls = spied(trainer.validation, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match="--resume auto"):
        trainer.run()
    assert len(calls) == 2, "the rest of the validation is left out"
    again = Trainer(config(resume="auto", **common))
    assert (again.progress.epoch, again.progress.step) == (0, again.batches.steps)
    again.run()
    assert_same_bits(again.config.out / "final_model.pth", tmp_path / "whole" / "final_model.pth")
    assert table(again.config.out)[0]["val_loss"] == table(tmp_path / "whole")[0]["val_loss"]


def test_options_choose_the_heads(config):
    run = config(heads=("alpha",))
    row = Trainer(run).run()
    assert "val_alpha" in row and "val_depth" not in row
    assert read_checkpoint(run.out / "best_model.pth").config.heads == ("alpha",)


def test_gradient_checkpointing_changes_no_weight(config, tmp_path):
    for name, on in (("a", False), ("b", True)):
        Trainer(config(out=tmp_path / name, grad_checkpointing=on, max_train_batches=2)).run()
    a, b = weights(tmp_path / "a" / "final_model.pth"), weights(tmp_path / "b" / "final_model.pth")
    assert max((a[key] - b[key]).abs().max().item() for key in a) < 1e-6


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs a C++ compiler, g++")
def test_a_compiled_network_trains_to_the_same_weights(config, tmp_path):
    for name, on in (("a", False), ("b", True)):
        Trainer(config(out=tmp_path / name, compile=on, max_train_batches=2)).run()
    a, b = weights(tmp_path / "a" / "final_model.pth"), weights(tmp_path / "b" / "final_model.pth")
    assert a.keys() == b.keys()
    assert max((a[key] - b[key]).abs().max().item() for key in a) < 1e-4


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(config, tmp_path):
    # AMP off and no batch norm; torchrun starts the processes, gloo connects them.
    base = config(epochs=1, accumulate=2)
    Trainer(config(out=tmp_path / "one", batch_size=4, accumulate=2)).run()
    path = tmp_path / "two.yaml"
    values = base.to_json() | {"out": str(tmp_path / "two"), "batch_size": 2}
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if k != "config"}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "train",
               "--config", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300,
                            env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    a, b = weights(tmp_path / "one" / "final_model.pth"), weights(tmp_path / "two" / "final_model.pth")
    assert max((a[key] - b[key]).abs().max().item() for key in a) < 1e-5
    rows = [table(tmp_path / name)[0] for name in ("one", "two")]
    for metric in ("train_loss", "val_loss", "depth_abs_rel", "normals_mean", "alpha_iou"):
        assert float(rows[0][metric]) == pytest.approx(float(rows[1][metric]), abs=1e-4), metric


@pytest.mark.slow
def test_a_bad_loss_on_one_process_skips_the_step_on_all(config, tmp_path):
    script, path = tmp_path / "run.py", tmp_path / "run.yaml"
    values = config(batch_size=2).to_json() | {"out": str(tmp_path / "two")}
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if k != "config"}))
    script.write_text(ONE_BAD_LOSS.format(path=path))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False,
                            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)})
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [line["skipped"] for line in lines] == [1, 1]
    assert lines[0]["weights"] == lines[1]["weights"]
    (said,) = [line for line in result.stdout.splitlines() if "skipped: the loss" in line]
    bad = next(line["bad"] for line in lines if line["bad"])
    assert all(name in said for name in bad), "the main process names the other's samples"


ONE_BAD_LOSS = """
import hashlib, json
import torch
from train.config import TrainConfig, read_yaml
from train.loop.trainer import Trainer

trainer = Trainer(TrainConfig(**read_yaml("{path}")))
original, bad, calls = trainer.stepper.per_image, [], []

def per_image(batch):
    calls.append(batch)
    losses = original(batch)
    if trainer.world.rank == 1 and len(calls) == 2:
        bad.extend(batch["name"])
        losses = {{name: value * float("nan") for name, value in losses.items()}}
    return losses

trainer.stepper.per_image = per_image
trainer.run()
digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())).hexdigest()
line = json.dumps({{"skipped": trainer.progress.skipped, "weights": digest, "bad": bad}})
print(line + "\\n", end="", flush=True)
"""


@pytest.mark.slow
def test_the_command_stops_on_a_signal_and_continues(config, tmp_path):
    path = tmp_path / "run.yaml"
    run = config(epochs=200, batch_size=2, workers=1)
    path.write_text(yaml.safe_dump({k: v for k, v in run.to_json().items() if k != "config"}))
    command, rows = [sys.executable, "-m", "train", "--config", str(path)], 0
    # A terminal sends SIGINT to the workers too; a cluster sends SIGTERM to the process alone.
    for number, send, more in ((signal.SIGINT, os.killpg, []), (signal.SIGTERM, os.kill, ["--resume", "auto"])):
        process = subprocess.Popen(command + more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True)
        deadline = time.monotonic() + 120
        while rows == epochs_of(run.out) and time.monotonic() < deadline:
            time.sleep(0.2)
        rows = epochs_of(run.out)
        send(process.pid, number)
        said, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "--resume auto" in errors
        assert "Traceback" not in errors
        assert ("continuing" in said) == bool(more)
    assert [row["epoch"] for row in table(run.out)][:rows] == [str(i + 1) for i in range(rows)]


def epochs_of(run: Path) -> int:
    """Epochs that a run has finished."""
    return len(table(run)) if (run / "metrics.csv").exists() else 0
