"""The loop of a run: epochs of steps, validation, and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from dpt_deploy.core.errors import BadInput, DptError
from dpt_deploy.model import save_checkpoint

from ..commands import command
from ..config import TrainConfig
from ..data.dataset import MapDataset, TrainBatches, create_loader
from ..data.workers import worker_count
from ..model.forward import ForwardPass
from ..monitoring.progress import progress_bar
from ..monitoring.run_log import RunLog
from . import memory, state
from .optim import rate_factor, set_rate
from .process import Interrupted, Stopped, StopRequest, join, leave
from .setup import build_model, build_optimization, claimed_output, open_data, state_to_resume, wrapped
from .step import Outcome, Stepper
from .validation import SamplePicture, Validation

SKIP_LIMIT = 10  # steps in a row without a finite loss that end a run


class Trainer:
    """A run, ready for its first step or for the one after its last save; `run()` trains.

    Args:
        config: The options of the run.
        stop: Signals that ask the run to stop; by default, they are handled during `run` alone.

    Raises:
        DptError: Options, data or output folder cannot be used.
    """

    def __init__(self, config: TrainConfig, stop: StopRequest | None = None) -> None:
        self.config, self.last = config, config.out / "last.pth"
        self.world = join(config.device)
        self.log = RunLog(config, self.world.is_main)
        self.stop = stop or StopRequest()
        self._saved_at, self._saved_progress = time.monotonic(), (-1, -1)
        self._turn_seconds = self._save_seconds = 0.0  # what the last step and the last save took
        self._validation_seconds = float("inf")
        resumed = state_to_resume(config)
        with claimed_output(config.out, resumed, self.world.is_main):
            self.data = open_data(config, self.log.say)
            self.model, self.notes = build_model(config, self.data.statistics, self.world.device, resumed is not None)
            self.optimization = build_optimization(config, self.model, self.world.device)
            self.contract = self.model.contract(config.resize)
            self.progress = state.Progress()
            self._prepare_loops()
            if resumed:
                self._restore(resumed)

    def _prepare_loops(self) -> None:
        """Loaders, step and validation."""
        config, world, data, optimization = self.config, self.world, self.data, self.optimization
        on_gpu = world.device.type == "cuda"
        torch.backends.cudnn.benchmark = on_gpu  # every batch has the same size
        workers = worker_count(config.workers)
        dataset = MapDataset(
            data.source, data.train_positions, self.contract, config.augmentation, config.seed, replace_broken=True
        )
        self.batches = TrainBatches(
            len(dataset), config.batch_size, config.accumulate, world.rank, world.size, config.seed,
            config.max_train_batches,
        )
        self.resolved: dict[str, Any] = optimization.resolved | {
            "images_per_step": self.batches.per_step, "steps_per_epoch": self.batches.steps}
        self.loader = create_loader(dataset, self.batches, workers, on_gpu)
        self.forward = ForwardPass(
            self.contract, world.device, optimization.amp, config.channels_last, config.canonical_focal)
        held_out = MapDataset(data.source, data.val_positions, self.contract)
        self.validation = Validation(
            held_out, self.forward, config.losses, data.statistics, world, data.broken, config.batch_size, workers,
            config.max_val_batches,
        )
        shown = held_out if len(held_out) else MapDataset(data.source, data.train_positions, self.contract)
        kinds = [data.source.kinds[position] for position in shown.positions]
        self.picture = SamplePicture(shown, kinds, config.samples, self.forward)
        self.stepper = Stepper(
            wrapped(self.model, world, config.compile), optimization.optimizer, optimization.scaler, config.losses,
            self.forward, world, config.clip_norm,
        )

    def _restore(self, path: Path) -> None:
        """Continue from a last.pth."""
        self.progress, parts = state.load(path, self.config, self.resolved, self.data.fingerprint)
        self.model.load_state_dict(parts["model"])
        self.optimization.optimizer.load_state_dict(parts["optimizer"])
        self.optimization.scaler.load_state_dict(parts["scaler"])
        if self.optimization.average:
            self.optimization.average.load(parts["ema"], parts["ema_updates"])
        states = parts["random"]
        state.set_random_state(states[self.world.rank % len(states)])
        self.batches.start = (self.progress.epoch, self.progress.step)
        if self.progress.epoch == self.config.epochs:
            self.notes.append(f"{path}: all {self.config.epochs} epochs are done; give more --epochs to extend the run")
        else:
            self.notes.append(f"continuing {path}: epoch {self.progress.epoch + 1}, step {self.progress.step}")
        if self.progress.planned != self.config.epochs:
            self._note_new_schedule()

    def _note_new_schedule(self) -> None:
        """Say what another number of epochs changes."""
        step, planned, epochs = self.progress.total_steps, self.progress.planned, self.config.epochs
        before, now = (self.config.lr * self._rate_factor(at, total) for at, total in
                       ((max(0, step - 1), planned), (step, epochs)))
        self.notes.append(
            f"epochs: {planned} before, {epochs} now. The learning-rate schedule spans all {epochs} epochs, and this "
            f"run enters it at step {step} of {epochs * self.batches.steps}: the rate of decoder and heads goes from "
            f"{before:.2e} to {now:.2e}"
        )

    def _rate_factor(self, step: int, epochs: int) -> float:
        """The learning rate of a step divided by its peak, in a run of so many epochs."""
        return rate_factor(step, epochs * self.batches.steps, self.config.warmup)

    @property
    def kept_model(self) -> nn.Module:
        """The model that is validated and saved: the moving average of the weights, if there is one."""
        return self.optimization.average.module if self.optimization.average else self.model

    # -- running --------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            The metrics of the last epoch.

        Raises:
            Stopped: After a signal that ends jobs (`STOP_SIGNALS`), with everything saved.
            DptError: The loss stays non-finite, memory runs out, or too many samples are broken.
        """
        self._introduce()
        self._saved_at = time.monotonic()
        with self.stop:
            batches = iter(self.loader)
            while self.progress.epoch < self.config.epochs and not self._out_of_patience():
                if self.world.any(self.stop.asked):
                    self._stop()
                self._within_memory(lambda: self._train_epoch(batches))
                self._within_memory(self._end_epoch)
            self._save_weights("final_model.pth")
            self._introduce_best()
            self.log.end()
        leave(self.world)
        return self.progress.history[-1]

    def _introduce(self) -> None:
        """Write run.json, and say what will be trained on what."""
        data, parameters = self.data, sum(p.numel() for p in self.model.parameters())
        self.log.begin({
            "data": {"fingerprint": data.fingerprint, "training": len(data.train_positions),
                     "validation": len(data.val_positions), "statistics": data.statistics.to_json()},
            "model": self.model.config.to_json(), "contract": self.contract.to_json(), "parameters": parameters,
            "processes": self.world.size, "device": self.world.device.type,
        }, self.progress.epoch)
        height, width = self.contract.input_size
        self.log.say(
            f"{len(data.train_positions)} training and {len(data.val_positions)} validation samples; "
            f"{self.config.backbone}, {parameters / 1e6:.1f} M parameters, input {height}x{width}; "
            f"{self.batches.steps} steps of {self.batches.per_step} images per epoch; "
            f"{str(self.forward.amp).removeprefix('torch.')} on {self.world.device.type}"
        )
        for line in self.notes:
            self.log.say(line)
        prepared = data.source.input_size
        if prepared not in (None, self.contract.input_size):
            self.log.say(f"the cache holds {prepared[0]}x{prepared[1]} images, which are resized at every step; "
                         f"a cache of --input-size {height}x{width} avoids that")
        if not data.val_positions:
            self.log.say("no validation samples: best_model.pth will be the epoch with the lowest training loss")

    def _introduce_best(self) -> None:
        """Say which epoch has the best weights, and how good they are."""
        progress = self.progress
        if progress.best_epoch:
            best = next(row for row in progress.history if row["epoch"] == progress.best_epoch)
            self.log.best(best, progress.epoch, progress.best_table, progress.constants)

    def _train_epoch(self, batches: Iterator[dict[str, Any]]) -> None:
        progress, began = self.progress, time.monotonic()
        self.model.train()
        bar = progress_bar(None, f"epoch {progress.epoch + 1}", self.batches.steps, initial=progress.step, unit="step",
                           leave=False, disable=not self.world.is_main, mininterval=0.5)
        with bar:
            while progress.step < self.batches.steps:
                set_rate(self.optimization.optimizer, self._rate_factor(progress.total_steps, self.config.epochs))
                turn = time.monotonic()
                try:
                    stop, save = self._step(batches)
                except Interrupted:
                    stop, save = True, False
                else:
                    bar.update()
                self._turn_seconds = time.monotonic() - turn
                if progress.batches:
                    bar.set_postfix_str(f"loss {progress.sums['loss'] / progress.batches:.4f}", refresh=False)
                if stop or save:
                    progress.seconds, began = progress.seconds + time.monotonic() - began, time.monotonic()
                    self._stop() if stop else self.save_state()
        progress.seconds += time.monotonic() - began

    def _stop(self) -> NoReturn:
        """Save what the last save lacks, and leave; every process must call it."""
        if self._saved_progress != (self.progress.epoch, self.progress.step):
            self.save_state()
        # Only now may a process exit: torchrun soon kills the others, and the main one was still writing.
        number = max(self.world.gather(self.stop.received))
        self.log.end()
        leave(self.world)
        raise Stopped(f"saved {self.last}; continue with --resume auto", number)

    def _save_is_due(self, seconds: float) -> bool:
        """Whether a kill after `seconds` more of work and of saving would lose more than --save-minutes."""
        since = time.monotonic() - self._saved_at
        return self.world.is_main and since + seconds + self._save_seconds > 60 * self.config.save_minutes

    def _within_memory(self, work: Callable[[], None]) -> None:
        """Do `work`; running out of memory becomes a `DptError` with a batch size that was tried and fits."""
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
        # Not in the handler, because the error keeps the tensors of the failed step alive.
        fits = memory.largest_fitting(self.stepper, self.model, self.config.batch_size)
        raise memory.out_of_memory(self.config.batch_size, self.config.accumulate, fits, self.world.device)

    def _step(self, batches: Iterator[dict[str, Any]]) -> tuple[bool, bool]:
        """One optimizer step; returns whether to stop and whether to save, the same on all ranks.

        Raises `Interrupted` if a signal arrives while it waits for data; nothing has changed then.
        """
        progress = self.progress
        micro_batches = [self._next(batches) for _ in range(self.config.accumulate)]
        due = self._save_is_due(2 * self._turn_seconds)  # the next chance comes after this step and another one
        outcome = self.stepper(micro_batches, (self.stop.asked, due))
        progress.step += 1
        progress.total_steps += 1
        if outcome.skipped:
            self._count_skipped(outcome)
        else:
            progress.skipped_in_a_row = 0
            progress.overflows += outcome.overflow
            if self.optimization.average and not outcome.overflow:
                self.optimization.average.update_parameters(self.model)
            for name, value in outcome.losses.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.batches += 1
        return outcome.requests[0] > 0, outcome.requests[1] > 0

    def _next(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        try:
            with self.stop.interruptible():
                batch = next(batches)
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            if self.world.size == 1:
                self.save_state()
            raise DptError("a process that reads samples was killed, often for lack of memory. Give fewer --workers or "
                           f"more memory; --resume auto continues from {self.last}.") from error
        for entry in batch["broken"]:
            self.data.broken.add(*entry)
        if "image" not in batch:
            raise BadInput(f"data: no sample near {batch['broken'][0][0]} can be read: {batch['broken'][0][1]}")
        return self.forward.to_device(batch)

    def _count_skipped(self, outcome: Outcome) -> None:
        """Name the samples of a skipped step. Raises `DptError` after ten skipped steps in a row."""
        progress, what = self.progress, outcome.skipped
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        self.log.say(
            f"step {progress.total_steps} skipped: the {what} is not finite. Samples: {', '.join(outcome.names)}"
        )
        if progress.skipped_in_a_row >= SKIP_LIMIT:
            raise DptError(
                f"the {what} has not been finite for {SKIP_LIMIT} steps in a row. Lower --lr (now {self.config.lr:g}), "
                "keep --clip-norm 1, try --amp bf16 or fp32, and check the samples named above with "
                f"{command('train.check')} --data-root {self.config.data_root}; {self.last} is the state of the last "
                "save."
            )

    # -- the end of an epoch --------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        progress = self.progress
        row: dict[str, float] = {"epoch": progress.epoch + 1, "step": progress.total_steps, "train_loss": float("nan")}
        row |= {f"train_{name}": value / progress.batches for name, value in progress.sums.items()}
        row["lr"] = max(group["lr"] for group in self.optimization.optimizer.param_groups)
        row["seconds"] = progress.seconds
        row["images_per_second"] = self.batches.steps * self.batches.per_step / max(progress.seconds, 1e-9)
        row["skipped"], row["overflows"] = progress.skipped, progress.overflows
        if self.world.any(self._save_is_due(self._validation_seconds)):
            self.save_state()
        began = time.monotonic()
        validated = self.validation.run(self.kept_model, self.stop, constants=not progress.constants)
        if validated is None:  # asked to stop: the run that continues validates again
            self._stop()
        row |= validated.row
        progress.constants = progress.constants or validated.constants
        progress.epoch, progress.step, progress.seconds = progress.epoch + 1, 0, 0.0
        progress.sums, progress.batches = {}, 0
        progress.history.append(row)
        compared = row.get("val_loss", row["train_loss"])
        if better := compared < progress.best:
            progress.best, progress.best_epoch, progress.best_table = compared, progress.epoch, validated.table
        self._save_weights(f"checkpoint_epoch_{progress.epoch:02d}.pth")
        if better:
            self._save_weights("best_model.pth")
        picture = self.picture.draw(self.kept_model) if self.world.is_main else None
        self._validation_seconds = time.monotonic() - began
        self.save_state()
        if self.config.keep and self.world.is_main:
            for epoch in range(1, progress.epoch - self.config.keep + 1):
                (self.config.out / f"checkpoint_epoch_{epoch:02d}.pth").unlink(missing_ok=True)
        best = (progress.best_epoch, progress.best_table)
        self.log.epoch(progress.history, validated.table, best, progress.constants, picture)

    def _out_of_patience(self) -> bool:
        best = self.progress.best_epoch
        waited = self.progress.epoch - best
        if self.config.early_stopping and waited >= self.config.early_stopping:
            self.log.say(f"no lower validation loss for {waited} epochs; the best was epoch {best}")
            return True
        return False

    def _save_weights(self, name: str) -> None:
        """Write the weights to keep, with their description; only in the main process."""
        if self.world.is_main:
            record = {"config": self.config.to_json(), "metrics": self.progress.history[-1]}
            if self.config.canonical_focal:
                record["canonical_focal"] = self.config.canonical_focal
            save_checkpoint(self.config.out / name, self.kept_model, self.contract, record)

    def save_state(self) -> None:
        """Write last.pth; every process must call it."""
        began = time.monotonic()
        random_states = self.world.gather(state.random_state())
        if self.world.is_main:
            average, optimization = self.optimization.average, self.optimization
            parts = {"model": dict(self.model.state_dict()), "optimizer": optimization.optimizer.state_dict(),
                     "scaler": optimization.scaler.state_dict(), "random": random_states}
            if average:
                parts |= {"ema": dict(average.module.state_dict()), "ema_updates": average.updates}
            state.save(self.last, self.config, self.resolved, self.progress, self.data.fingerprint, parts)
        self._saved_at, self._save_seconds = began, time.monotonic() - began
        self._saved_progress = (self.progress.epoch, self.progress.step)
