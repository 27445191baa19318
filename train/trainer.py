"""The loop: epochs of steps, validation, checkpoints."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dpt_deploy.core.errors import BadInput, DptError
from dpt_deploy.core.files import cannot_write, existing_file
from dpt_deploy.model import MultiTaskDPT, save_checkpoint
from train import memory, state
from train.broken import Broken
from train.check import compare_conventions, require_assumed
from train.config import TrainConfig
from train.dataset import MapDataset, TrainBatches, create_loader
from train.distributed import World, join, leave
from train.interrupt import Stopped, StopRequest
from train.network import create_model, to_device
from train.optim import Ema, parameter_groups, rate_factor, set_rate
from train.parallel import usable_cores
from train.report import Report
from train.sources import open_source, split
from train.statistics import measure, readable, spread
from train.step import Outcome, Stepper
from train.validation import Validation
from train.warmstart import initialise_from

SKIP_LIMIT = 10  # steps in a row without a finite loss that end a run


class Trainer:
    """A run of `config`. Making one opens the data and builds the model; `run()` trains."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.world: World = join(config.device)
        self.report = Report(config, self.world.is_main)
        self.last = config.out / "last.pth"
        self._claim_output()
        try:
            self._open_data()
            self._build_model()
        except DptError:
            with contextlib.suppress(OSError):  # a folder that holds something stays
                config.out.rmdir()
            raise
        self.progress = state.Progress()
        self.stop = StopRequest(self.report.say)
        dataset = MapDataset(
            self.source, self.train_positions, self.contract, config.augmentation, config.seed, replace_broken=True
        )
        self.batches = TrainBatches(
            len(dataset), config.batch_size, config.accumulate, self.world.rank, self.world.size, config.seed,
            config.limit_train_batches,
        )
        self.resolved |= {"images_per_step": self.batches.per_step, "steps_per_epoch": self.batches.steps}
        self.loader = create_loader(dataset, self.batches, self.workers, self.world.device.type == "cuda")
        self.validation = Validation(self)
        self._restore()
        self.stepper = Stepper(self._network(), self.optimizer, self.scaler, config.losses, self.amp, self.world,
                               config.clip_norm, config.canonical_focal)

    # -- setting up -----------------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        """Processes that read samples."""
        return min(8, usable_cores()) if self.config.workers < 0 else self.config.workers

    def _claim_output(self) -> None:
        """Make `out`, or raise `BadInput`: it cannot be written, or holds another run."""
        out, resume = self.config.out, self.config.resume
        if self.last.exists() and resume != "auto" and not (resume and self.last.samefile(self._resumed)):
            raise BadInput(f"{out} holds a run already. Continue it with --resume auto, or give another --out.")
        if self.world.is_main:
            try:
                out.mkdir(parents=True, exist_ok=True)
                probe = out / ".probe"
                probe.write_bytes(b"")
                probe.unlink()
            except OSError as error:
                raise cannot_write(out, error) from error

    def _open_data(self) -> None:
        config = self.config
        self.source = open_source(config.data_root, config.normal_axes)
        say = self.report.say
        self.broken = Broken(self.source, config.max_broken, say, functools.partial(say, any_rank=True))
        self.data = self.source.fingerprint()
        self.train_positions, self.val_positions = split(self.source.names, self.source.kinds, config.val_fraction)
        self.statistics = measure(readable(self.source, spread(self.train_positions, 64)))
        if config.check_data and {"depth", "normals"} <= set(config.tasks):
            samples = readable(self.source, spread(self.train_positions, 12))
            require_assumed(compare_conventions(samples, self.source.normal_axes), self.source)

    def _build_model(self) -> None:
        config = self.config
        torch.manual_seed(config.seed)
        replaced = config.init or self._continues()  # no need to fetch weights that others will replace
        pretrained = config.pretrained and not replaced
        self.model: MultiTaskDPT = create_model(config, self.statistics, pretrained).to(self.world.device)
        self.contract = self.model.contract(config.resize)
        self.notes: list[str] = []
        if config.init and not self._continues():
            self.notes = initialise_from(self.model, config.init, config.canonical_focal)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if config.grad_checkpointing:
            self.model.backbone.set_grad_checkpointing(True)
        scale = config.backbone_lr_scale
        if scale is None:
            scale = 0.1 if config.pretrained or config.init else 1.0
        on_gpu = self.world.device.type == "cuda"
        torch.backends.cudnn.benchmark = on_gpu  # every batch has the same size
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config.lr, config.weight_decay, scale, config.layer_decay),
            fused=True if on_gpu else None,
        )
        name = config.amp
        if name == "auto":
            name = "fp16" if on_gpu else "fp32"
        self.amp = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name]
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=name == "fp16")
        self.resolved: dict[str, Any] = {"amp": name, "backbone_lr_scale": scale}
        self.ema = Ema(self.model, config.ema) if config.ema else None

    def _network(self) -> nn.Module:
        """The model as it is called: compiled, distributed."""
        network: nn.Module = self.model
        if self.config.compile:
            network = torch.compile(network)
        if self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=ids)
        return network

    @property
    def _resumed(self) -> Path:
        """The state that --resume names."""
        return self.last if self.config.resume == "auto" else existing_file(self.config.resume, "a run's last.pth")

    def _continues(self) -> bool:
        """Whether there is a state to go on from."""
        return bool(self.config.resume) and (self.config.resume != "auto" or self.last.exists())

    def _restore(self) -> None:
        if not self._continues():
            return
        path = self._resumed
        self.progress, parts = state.load(path, self.config, self.resolved, self.data)
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.scaler.load_state_dict(parts["scaler"])
        if self.ema:
            self.ema.load(parts["ema"], parts["ema_updates"])
        states = parts["random"]
        state.set_random_state(states[self.world.rank % len(states)])
        self.batches.start = (self.progress.epoch, self.progress.step)
        self.notes.append(f"continuing {path}: epoch {self.progress.epoch + 1}, step {self.progress.step}")

    # -- running --------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the last epoch's row of metrics.

        Raises `Stopped` after Ctrl-C or SIGTERM, with everything saved, and `DptError` when the loss
        stays non-finite, memory does not suffice, or too many samples are broken.
        """
        self._introduce()
        self._saved_at = time.monotonic()
        with self.stop:
            batches = iter(self.loader)
            while self.progress.epoch < self.config.epochs and not self._out_of_patience():
                self._fitting(lambda: self._train_epoch(batches))
                self._fitting(self._end_epoch)
        with self._averaged():
            self._save_weights("final_model.pth")
        self.report.end()
        leave(self.world)
        return self.progress.history[-1]

    def _introduce(self) -> None:
        c, parameters = self.config, sum(p.numel() for p in self.model.parameters())
        self.report.begin({
            "data": {"fingerprint": self.data, "training": len(self.train_positions),
                     "validation": len(self.val_positions), "statistics": self.statistics.to_json()},
            "model": self.model.config.to_json(), "contract": self.contract.to_json(), "parameters": parameters,
            "processes": self.world.size, "device": self.world.device.type,
        }, self.progress.epoch)
        self.report.say(
            f"{len(self.train_positions)} samples to train on, {len(self.val_positions)} to validate; "
            f"{c.backbone}, {parameters / 1e6:.1f} M parameters, input {self.contract.input_size[0]}x"
            f"{self.contract.input_size[1]}; {self.batches.steps} steps of {self.batches.per_step} images per epoch; "
            f"{str(self.amp).removeprefix('torch.')} on {self.world.device.type}"
        )
        for line in self.notes:
            self.report.say(line)
        prepared = getattr(self.source, "input_size", self.contract.input_size)
        if prepared != self.contract.input_size:
            self.report.say(f"the cache holds {prepared[0]}x{prepared[1]} images, which are resized for every step; "
                            "prepare one at the network's input size to save that")
        if not self.val_positions:
            self.report.say("no samples to validate on: best_model.pth will be that of the lowest training loss")

    def _train_epoch(self, batches: Iterator[dict[str, Any]]) -> None:
        progress, began = self.progress, time.monotonic()
        self.model.train()
        bar = tqdm(total=self.batches.steps, initial=progress.step, desc=f"epoch {progress.epoch + 1}", unit="step",
                   leave=False, disable=not self.world.is_main, mininterval=0.5 if sys.stderr.isatty() else 30)
        with bar:
            while progress.step < self.batches.steps:
                set_rate(self.optimizer, rate_factor(
                    progress.total_steps, self.config.epochs * self.batches.steps, self.config.warmup))
                stop, save = self._step(batches)
                bar.update()
                if progress.batches:
                    bar.set_postfix_str(f"loss {progress.sums['loss'] / progress.batches:.4f}", refresh=False)
                if stop or save:
                    progress.seconds, began = progress.seconds + time.monotonic() - began, time.monotonic()
                    self.save_state()
                if stop:
                    raise self._stopped()
        progress.seconds += time.monotonic() - began

    def _stopped(self) -> Stopped:
        return Stopped(f"saved {self.last}; continue with --resume auto")

    def _fitting(self, work: Callable[[], None]) -> None:
        """Do `work`; out of memory becomes a `DptError` with a batch size that was tried and fits."""
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
        # Here and not in the handler: the error holds on to the tensors of the step that failed.
        config = self.config
        fits = memory.largest_fitting(
            self.stepper, self.model, self.contract, config.batch_size, config.channels_last
        )
        raise memory.out_of_memory(config.batch_size, config.accumulate, fits, self.world.device)

    def _step(self, batches: Iterator[dict[str, Any]]) -> tuple[bool, bool]:
        """One optimizer step; returns whether to stop and whether to save, the same on all ranks."""
        progress = self.progress
        due = self.world.is_main and time.monotonic() - self._saved_at > 60 * self.config.save_minutes
        micro_batches = [self._next(batches) for _ in range(self.config.accumulate)]
        outcome = self.stepper(micro_batches, (self.stop.asked, due))
        progress.step += 1
        progress.total_steps += 1
        if outcome.skipped:
            self._count_skipped(outcome)
        else:
            progress.skipped_in_a_row = 0
            progress.overflows += outcome.overflow
            if self.ema and not outcome.overflow:
                self.ema.update()
            for name, value in outcome.losses.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.batches += 1
        return outcome.requests[0] > 0, outcome.requests[1] > 0

    def _next(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        batch = next(batches)
        for entry in batch["broken"]:
            self.broken.add(*entry)
        if "image" not in batch:
            raise BadInput(f"data: no sample near {batch['broken'][0][0]} can be read: {batch['broken'][0][1]}")
        return to_device(batch, self.world.device, self.contract, self.config.channels_last)

    def _count_skipped(self, outcome: Outcome) -> None:
        """Say which samples; raise `DptError` after ten in a row."""
        progress, what = self.progress, outcome.skipped
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        self.report.say(
            f"step {progress.total_steps} skipped: the {what} is not finite. Samples: {', '.join(outcome.names)}"
        )
        if progress.skipped_in_a_row >= SKIP_LIMIT:
            raise DptError(
                f"the {what} has not been finite for {SKIP_LIMIT} steps in a row. Lower --lr (now {self.config.lr:g}), "
                "keep --clip-norm 1, try --amp bf16 or fp32, and look at the samples named above with "
                f"python -m train.check {self.config.data_root}; {self.last} holds the state of the last save."
            )

    # -- the end of an epoch --------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        progress = self.progress
        row: dict[str, float] = {"epoch": progress.epoch + 1, "step": progress.total_steps, "train_loss": float("nan")}
        row |= {f"train_{name}": value / progress.batches for name, value in progress.sums.items()}
        row["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        row["seconds"] = progress.seconds
        row["images_per_second"] = self.batches.steps * self.batches.per_step / max(progress.seconds, 1e-9)
        row["skipped"], row["overflows"] = progress.skipped, progress.overflows
        with self._averaged():
            measured = self.validation.run()
        if measured is None:  # asked to stop: a continuation validates again
            self.save_state()
            raise self._stopped()
        row |= measured
        with self._averaged():
            progress.epoch, progress.step, progress.seconds = progress.epoch + 1, 0, 0.0
            progress.sums, progress.batches = {}, 0
            progress.history.append(row)
            chosen = row.get("val_loss", row["train_loss"])
            better = chosen < progress.best
            if better:
                progress.best, progress.best_epoch = chosen, progress.epoch
            self._save_weights(f"checkpoint_epoch_{progress.epoch:02d}.pth")
            if better:
                self._save_weights("best_model.pth")
            picture = self.validation.picture() if self.world.is_main else None
        self.save_state()
        if self.config.keep and self.world.is_main:
            for epoch in range(1, progress.epoch - self.config.keep + 1):
                (self.config.out / f"checkpoint_epoch_{epoch:02d}.pth").unlink(missing_ok=True)
        self.report.epoch(progress, self.validation.table, picture, better)

    def _out_of_patience(self) -> bool:
        best = self.progress.best_epoch
        waited = self.progress.epoch - best
        if self.config.early_stopping and waited >= self.config.early_stopping:
            self.report.say(f"no better validation loss for {waited} epochs; the best was epoch {best}")
            return True
        return False

    def _averaged(self) -> contextlib.AbstractContextManager:
        """The model with its moving average, where there is one."""
        return self.ema.applied() if self.ema else contextlib.nullcontext()

    def _save_weights(self, name: str) -> None:
        """Write the model's present weights with their description; rank 0 alone."""
        if self.world.is_main:
            record = {"config": self.config.to_json(), "metrics": self.progress.history[-1]}
            if self.config.canonical_focal:
                record["canonical_focal"] = self.config.canonical_focal
            save_checkpoint(self.config.out / name, self.model, self.contract, record)

    def save_state(self) -> None:
        """Write last.pth; every rank must call it."""
        random_states = self.world.gather(state.random_state())
        if self.world.is_main:
            parts = {"model": dict(self.model.state_dict()), "optimizer": self.optimizer.state_dict(),
                     "scaler": self.scaler.state_dict(), "random": random_states}
            if self.ema:
                parts |= {"ema": self.ema.state, "ema_updates": self.ema.updates}
            state.save(self.last, self.config, self.resolved, self.progress, self.data, parts)
        self._saved_at = time.monotonic()
