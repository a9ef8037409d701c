"""What happens around an engine's epochs: its progress bar, its checkpoints and its tables."""

import csv
import json
import logging
import math
import os
import platform
import signal
import statistics
import sys
import threading
import time
import types
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, EarlyStopping, ProgressBar
from ignite.utils import manual_seed
from monai.data.utils import set_rnd
from monai.engines import Trainer
from monai.handlers import from_engine
from monai.inferers import Inferer
from torch import nn, optim
from torch.utils.data import Dataset

from scripts.cases import name_images
from scripts.errors import InputError
from scripts.files import (
    check_writable,
    read_checkpoint,
    read_weights,
    sha256,
    write_table,
    write_text,
    write_weights,
    written_whole,
)
from scripts.metrics import summarize
from scripts.settings import check_weights_name, write_settings

try:
    import resource
except ImportError:  # on Windows
    resource = None

logger = logging.getLogger(__name__)


def existing_file(path: str | os.PathLike, remedy: str) -> str:
    """Return ``path`` if there is such a file.

    Raises:
        InputError: if there is not; ``remedy`` says what to do.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; {remedy}")
    return str(path)


class EpochProgressBar(ProgressBar):
    """Ignite's progress bar for one epoch; of a trainer it shows the loss, of several processes that of the first."""

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        """Show the progress of ``engine``."""
        if isinstance(engine, Trainer):
            loss = from_engine(["loss"], first=True)
            kwargs.setdefault("output_transform", lambda output: {"loss": float(loss(output))})
        if idist.get_rank() == 0:
            super().attach(engine, *args, **kwargs)


class BatchNormRecalibration:
    """Measures the statistics of all batch norms anew, over the training crops, before the network is validated.

    With one crop per step, as in the paper, the running statistics follow the last few crops and the weights of a few
    steps ago; what is then validated and saved is a network that was never trained. The mean over an epoch's crops with
    the weights as they are (Wu and Johnson, 2021: "precise batch norm") mends that. Dropout is off meanwhile.

    Attach it to the trainer before the handler that validates. It does nothing to a network without batch norm.

    Args:
        network: the network.
        dataloader: of batches ``{"image": (B, C, H, W, D), ...}``; one pass over it.
        inferer: by which the trainer runs the network.
        interval: in epochs.
    """

    def __init__(
        self, network: nn.Module, dataloader: Iterable[Mapping[str, Any]], inferer: Inferer, interval: int = 1
    ):
        self.network = network
        self.dataloader = dataloader
        self.inferer = inferer
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Measure after every ``interval`` epochs of the trainer ``engine``."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Engine) -> None:
        """Measure: a forward pass of every batch."""
        norms = [module for module in self.network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            return
        was_training, momenta = self.network.training, [norm.momentum for norm in norms]
        self.network.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's cumulative mean
            norm.train()
        with torch.no_grad():
            for batch in self.dataloader:
                self.inferer(batch["image"].to(engine.state.device), self.network)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.network.train(was_training)


class WeightsCheckpointLoader:
    """Loads a network's weights, a state dict alone, before an engine runs; checks their sum, if it lies beside them.

    Federated clients, which get their weights from elsewhere, leave out handlers with ``CheckpointLoader`` in the name.

    Args:
        network: the network.
        path: of the file.

    Raises:
        InputError: if there is no such file; when the engine starts, if it is damaged, not the file of the sum beside
            it, or of another network.
    """

    def __init__(self, network: nn.Module, path: str | os.PathLike):
        self.network = network
        remedy = "train first, convert released weights to it, or give other weights by --ckpt_path"
        self.path = existing_file(path, remedy)

    def attach(self, engine: Engine) -> None:
        """Load when ``engine`` starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load the weights; every tensor must be there and fit."""
        weights = read_weights(self.path)
        try:
            self.network.load_state_dict(weights)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.path}: not weights of this network; give the configs, --target and network settings that they "
                "were trained with, or other weights by --ckpt_path"
            ) from error


class BestCheckpoint:
    """Keeps the weights of the best epoch by an evaluator's key metric: a state dict alone, its SHA-256 sum beside it.

    Its own `state_dict` belongs into `RunCheckpoint`, so that a resumed training does not overwrite better weights.
    A key metric that is NaN is never the best.

    Args:
        network: whose weights are kept.
        path: of the file, such as ``models/model.pt``.
        settings: with which it is trained, to be kept beside it (`scripts.settings`).

    Raises:
        InputError: if the path is no name for weights, or, when it is attached, nothing can be written there.
    """

    def __init__(self, network: nn.Module, path: str | os.PathLike, settings: Mapping[str, Any] | None = None):
        check_weights_name(path)
        self.network = network
        self.path = path
        self.settings = settings or {}
        self.best_metric = -math.inf
        self.best_epoch = 0
        self.sha256: str | None = None  # of the file

    def attach(self, engine: Engine) -> None:
        """Compare after every run of the evaluator ``engine``."""
        check_writable(self.path)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the weights if the key metric is better than ever."""
        metric = float(engine.state.metrics[engine.state.key_metric_name])
        if metric > self.best_metric:
            self.best_metric, self.best_epoch = metric, engine.state.epoch
            self.write(metric)

    @idist.one_rank_only()
    def write(self, metric: float) -> None:
        """Write the weights, which are the same in all processes."""
        network = self.network.module if hasattr(self.network, "module") else self.network
        self.sha256 = write_weights(network.state_dict(), self.path)
        write_settings(self.settings, self.path)
        logger.info("epoch %d is the best yet (%.4f): %s", self.best_epoch, metric, self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return what the best was, when, and the sum of its file."""
        path = os.path.abspath(self.path)
        return {"best_metric": self.best_metric, "best_epoch": self.best_epoch, "sha256": self.sha256, "path": path}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier best.

        If that is in another file by now and its own path has no copy of it, there is none to go on from.

        Raises:
            InputError: if it is in another file, which is still there.
        """
        path = state.get("path")  # of version 0.16.0 on
        is_kept = not path or path == os.path.abspath(self.path) or not state["best_epoch"]
        if not is_kept and not (os.path.isfile(self.path) and sha256(self.path) == state.get("sha256")):
            if os.path.exists(path):
                raise InputError(f"{self.path}: the run has its best weights in {path}; resume with --ckpt_path {path}")
            logger.warning("%s: are gone, the best weights so far; those of the epochs from here on are kept", path)
            return
        self.best_metric, self.best_epoch = float(state["best_metric"]), int(state["best_epoch"])
        self.sha256 = state.get("sha256")


class NextSteps:
    """Says, when a training is done, where its weights are and how to measure them.

    Args:
        best: that keeps the best weights.
        output_dir: of the run.
    """

    def __init__(self, best: BestCheckpoint, output_dir: str | os.PathLike):
        self.best = best
        self.output_dir = output_dir

    def attach(self, engine: Engine) -> None:
        """Say it at the end of the trainer ``engine``."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Log it."""
        if not self.best.best_epoch:
            logger.warning(
                "no weights were kept: no epoch was validated, or their Dice was no number; give a --val_interval up "
                "to --max_epochs, and validation cases with a liver"
            )
            return
        logger.info(
            "done. Weights of the best epoch (%d, validation Dice %.4f): %s; curves and facts: %s\n"
            "next: the same command with evaluating instead of training, and configs/evaluate.json as one more config",
            self.best.best_epoch, self.best.best_metric, self.best.path, self.output_dir,
        )  # fmt: skip


class EarlyStop:
    """Ends a training when the key metric of its validations has not risen for some of them: Ignite's `EarlyStopping`.

    Its own `state_dict` belongs into `RunCheckpoint`, so that a resumed training goes on counting. NaN is no rise.

    Args:
        validator: the evaluator.
        patience: how many validations in a row may be no better than the best before them; 0 for any number.
    """

    def __init__(self, validator: Engine, patience: int):
        self.validator = validator
        self.patience = int(patience)
        self.stopping: EarlyStopping | None = None

    def attach(self, engine: Engine) -> None:
        """Watch the validator for the trainer ``engine``."""
        if self.patience > 0:
            self.stopping = EarlyStopping(self.patience, self.score, engine)
            self.validator.add_event_handler(Events.COMPLETED, self)

    @staticmethod
    def score(engine: Engine) -> float:
        """Return the key metric of the validator ``engine``."""
        metric = float(engine.state.metrics[engine.state.key_metric_name])
        return -math.inf if math.isnan(metric) else metric

    def __call__(self, engine: Engine) -> None:
        """Stop the trainer, after all that it does at the end of this epoch, if its time has come."""
        self.stopping(engine)
        if self.stopping.counter >= self.patience:
            best = self.stopping.best_score
            logger.info("stopping: %d validations have not been better than %.4f", self.patience, best)

    def state_dict(self) -> dict[str, Any]:
        """Return the best so far and the count since; nothing if there is no patience to count for."""
        return dict(self.stopping.state_dict()) if self.stopping else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        if self.stopping and state:
            self.stopping.load_state_dict(state)


class EpochSeed:
    """Seeds all random numbers before each epoch, from the seed and the epoch's number alone.

    What an epoch draws (order of the cases, crops, augmentation, dropout) then does not depend on what was drawn before
    it, so a training that is resumed goes on exactly as it would have without the break. Of several processes each
    draws its own. Attach it first.

    Args:
        dataset: whose random transforms are seeded.
        seed: of the run.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Seed at the start of every epoch of the trainer ``engine``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed Python, NumPy, PyTorch and the transforms."""
        others = [idist.get_rank()] if idist.get_rank() else []
        (seed,) = np.random.SeedSequence([self.seed, engine.state.epoch, *others]).generate_state(1)
        manual_seed(int(seed))
        set_rnd(self.dataset, int(seed))


class StopOnSignal:
    """On Ctrl-C or SIGTERM, lets a trainer finish its step, and ends the program with a message.

    The last finished epoch is in the checkpoint, from which ``--resume`` goes on. A second signal ends it at once.
    Of several processes, one that gets the signal stops all, after the same step.

    Args:
        checkpoint_path: of the `RunCheckpoint`, for the message.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, checkpoint_path: str | os.PathLike):
        self.checkpoint_path = Path(checkpoint_path)
        self.received: int | None = None
        self.previous: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Listen while the trainer ``engine`` runs."""
        engine.add_event_handler(Events.STARTED, self.listen)
        if idist.get_world_size() > 1:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.agree)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def listen(self, engine: Engine) -> None:
        """Take over the signals, if this is the main thread (no other may)."""
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, partial(self.stop, engine)) for number in self.SIGNALS}

    def stop(self, engine: Engine, number: int, frame: types.FrameType | None) -> None:
        """Note the signal; the next one has its usual effect."""
        self.received = number
        self.give_back()
        logger.warning("%s: stopping after this step; once more to stop at once", signal.Signals(number).name)
        if idist.get_world_size() == 1:
            engine.terminate()

    def agree(self, engine: Engine) -> None:
        """Stop if any process has a signal."""
        received = int(idist.all_reduce(self.received or 0, "MAX"))
        if received:
            self.received = received
            engine.terminate()

    def give_back(self) -> None:
        """Let the signals have their usual effects again."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def finish(self, engine: Engine) -> None:
        """End the program, by the signal that was received, if one was."""
        self.give_back()
        if self.received is not None:
            saved = f"{self.checkpoint_path} has the last finished epoch; go on from it with --resume true"
            if idist.get_rank() == 0:
                finished = engine.state.iteration >= (engine.state.epoch_length or 1)  # in this run or the one resumed
                done = saved if finished and self.checkpoint_path.is_file() else "No epoch was finished."
                print(f"stopped. {done}", file=sys.stderr)
            logging.shutdown()
            sys.stderr.flush()
            signal.signal(self.received, signal.SIG_DFL)
            signal.raise_signal(self.received)


class RunCheckpoint:
    """Writes, after every epoch of a trainer, all that is needed to go on from there; with ``resume``, goes on from it.

    Of several processes the first writes, and all go on from its file.

    The file before is kept as ``previous-…`` beside it: if the last is damaged, that is resumed from.

    Args:
        save_dict: name → object with a ``state_dict``; the trainer is added as ``trainer``.
        path: of the file.
        resume: load the file before the first epoch.
        settings: name → what a resumed run must have in common with the run that it goes on from.

    Raises:
        InputError: if there is nothing to resume.
    """

    def __init__(
        self,
        save_dict: Mapping[str, Any],
        path: str | os.PathLike,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
    ):
        self.save_dict = dict(save_dict)
        self.path = Path(path)
        self.previous = self.path.with_name(f"previous-{self.path.name}")
        self.settings = dict(settings or {})
        self.resume = resume
        if resume and not self.previous.is_file():
            existing_file(path, "nothing to resume; start without --resume")

    def attach(self, engine: Engine) -> None:
        """Write after every epoch of the trainer ``engine``."""
        self.save_dict["trainer"] = engine
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def read(self) -> tuple[Path, dict[str, Any]]:
        """Return the last checkpoint that can be read, and its file.

        Raises:
            InputError: if neither the last nor the one before can.
        """
        try:
            return self.path, read_checkpoint(self.path)
        except InputError as error:
            if not self.previous.is_file():
                raise
            logger.warning("%s; going on from the epoch before: %s", error, self.previous)
            return self.previous, read_checkpoint(self.previous)

    def load(self, engine: Engine) -> None:
        """Load the file into the objects; the number of epochs, and the data of each, are as given now.

        Raises:
            InputError: if the file is damaged or of another network, or if all epochs are done.
        """
        max_epochs, epoch_length = engine.state.max_epochs, engine.state.epoch_length
        scaler = getattr(engine, "scaler", None)  # of automatic mixed precision; the trainer makes it when it starts
        path, checkpoint = self.read()
        earlier = checkpoint.get("settings", {}) if isinstance(checkpoint, dict) else {}
        for name, setting in self.settings.items():
            if earlier.get(name, setting) != setting:
                raise InputError(
                    f"{path}: is of a run with {name} {earlier[name]}, not {setting}; "
                    f"resume with the former, or start without --resume in another --output_dir"
                )
        try:
            # what counts towards an early stop is not in files of version 0.3.0 and before
            counting = {"early_stop"} - checkpoint.keys()
            Checkpoint.load_objects({k: item for k, item in self.save_dict.items() if k not in counting}, checkpoint)
            if scaler is not None and "scaler" in checkpoint:  # not in files of version 0.15.0 and before
                scaler.load_state_dict(checkpoint["scaler"])
        except InputError:
            raise
        except Exception as error:  # each object raises its own
            raise InputError(
                f"{path}: does not fit this run, such as its network; "
                "resume with the settings of the run that wrote it, or start without --resume"
            ) from error
        if engine.state.epoch >= max_epochs:
            raise InputError(f"{path}: all {engine.state.epoch} epochs are done; give a larger --max_epochs to go on")
        engine.state.max_epochs, engine.state.epoch_length = max_epochs, epoch_length
        engine.state.iteration = engine.state.epoch * epoch_length
        logger.info("resuming after epoch %d of %s", engine.state.epoch, path)

    @idist.one_rank_only()
    def __call__(self, engine: Engine) -> None:
        """Write the file, and note in the engine's state how large it is and how long that took."""
        started = time.perf_counter()
        states = {name: item.state_dict() for name, item in self.save_dict.items()}
        if getattr(engine, "scaler", None) is not None:
            states["scaler"] = engine.scaler.state_dict()
        with written_whole(self.path) as temporary:
            torch.save(states | {"settings": self.settings}, temporary)
            if engine.state.epoch == 1:  # what is there is of another run
                self.previous.unlink(missing_ok=True)
            elif self.path.is_file():
                self._keep()
        engine.state.checkpoint_seconds = time.perf_counter() - started
        engine.state.checkpoint_mb = os.path.getsize(self.path) / 1e6

    def _keep(self) -> None:
        """Give the file the name of the one before too, so that there is a last one at every moment."""
        self.previous.unlink(missing_ok=True)
        try:
            os.link(self.path, self.previous)
        except OSError:  # a file system without links
            os.replace(self.path, self.previous)


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory used so far, in MB: of a CUDA device by tensors, else of this process; NaN if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if resource is None:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class RunFacts:
    """Writes, after every epoch of a trainer, what the run cost and with what it was made: ``run.json``.

    Its keys: network (class), parameters, device, processes, threads, versions, max_epochs, epochs (done),
    steps_per_epoch, seconds_per_step (median; loading of the batch not included), peak_memory_mb (see
    `peak_memory_mb`), checkpoint_mb and checkpoint_seconds of the last `RunCheckpoint`, if one is attached before this,
    and best_epoch and weights_sha256 of the best weights so far. What is not known is null.

    Args:
        network: that is trained.
        path: of the JSON file.
        best: that keeps the best weights, if any.
    """

    def __init__(self, network: nn.Module, path: str | os.PathLike, best: BestCheckpoint | None = None):
        self.network = network
        self.path = Path(path)
        self.best = best
        self.steps: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Time every step of the trainer ``engine``, and write after every epoch."""
        engine.add_event_handler(Events.ITERATION_STARTED, self.start_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.end_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start_step(self, engine: Engine) -> None:
        """Note when a step began."""
        self.step_started = time.perf_counter()

    def end_step(self, engine: Engine) -> None:
        """Note how long the step took."""
        if engine.state.device.type == "cuda":
            torch.cuda.synchronize(engine.state.device)
        self.steps.append(time.perf_counter() - self.step_started)

    @idist.one_rank_only()
    def __call__(self, engine: Engine) -> None:
        """Write the file."""
        device = torch.device(engine.state.device)
        facts = {
            "network": type(self.network).__name__,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": idist.get_world_size(),
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(), "torch": torch.__version__, "monai": monai.__version__
            },
            "max_epochs": engine.state.max_epochs,
            "epochs": engine.state.epoch,
            "steps_per_epoch": engine.state.epoch_length,
            "seconds_per_step": statistics.median(self.steps),
            "peak_memory_mb": peak_memory_mb(device),
            "checkpoint_mb": getattr(engine.state, "checkpoint_mb", math.nan),
            "checkpoint_seconds": getattr(engine.state, "checkpoint_seconds", math.nan),
            "best_epoch": (self.best and self.best.best_epoch) or None,
            "weights_sha256": self.best and self.best.sha256,
        }  # fmt: skip
        known = {key: None if isinstance(fact, float) and math.isnan(fact) else fact for key, fact in facts.items()}
        write_text(self.path, json.dumps(known, indent=2) + "\n")


def _read_rows(path: Path, before: int) -> list[dict[str, Any]]:
    """Return the rows of a CSV of epochs that are before one."""
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if int(row["epoch"]) < before]


class EpochTable:
    """A CSV with a row per epoch: its number, its seconds, the learning rate, and every metric of the engine.

    The seconds are those from the epoch's start to the end of its last step: without what other handlers do after it.

    A row replaces those of the same and of later epochs, so a training that is resumed, or begun again in the same
    folder, leaves one row per epoch.

    Args:
        path: of the CSV.
        optimizer: whose learning rate is recorded, if given.
        others: tables of the same run, such as that of its validations, which are fewer: when ``engine`` starts they
            lose the rows of its first and of later epochs, of a training before.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        optimizer: optim.Optimizer | None = None,
        others: Sequence[str | os.PathLike] = (),
    ):
        self.path = Path(path)
        self.optimizer = optimizer
        self.others = list(map(Path, others))
        self.started = self.ended = math.nan

    def attach(self, engine: Engine) -> None:
        """Add a row after every epoch of ``engine``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.end)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Note when the epoch began; shorten the other tables before the first one."""
        if self.others:
            self._shorten_others(engine.state.epoch)
            self.others = []
        self.started = time.perf_counter()

    def end(self, engine: Engine) -> None:
        """Note when the latest step ended."""
        self.ended = time.perf_counter()

    @idist.one_rank_only()
    def _shorten_others(self, epoch: int) -> None:
        """Drop from the other tables the rows of ``epoch`` and of later ones."""
        for path in filter(Path.is_file, self.others):
            if rows := _read_rows(path, before=epoch):
                write_table(path, rows)
            else:
                path.unlink()

    @idist.one_rank_only()
    def __call__(self, engine: Engine) -> None:
        """Write the table with this epoch's row."""
        row: dict[str, Any] = {"epoch": engine.state.epoch, "seconds": self.ended - self.started}
        if self.optimizer is not None:
            row["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        row |= {name: float(value) for name, value in engine.state.metrics.items()}
        earlier = _read_rows(self.path, before=row["epoch"]) if self.path.is_file() else []
        write_table(self.path, [{key: old.get(key, "") for key in row} for old in earlier] + [row])


class CaseTables:
    """Two CSVs of an evaluation: ``per_case.csv``, a row per case and class, and ``summary.csv``, which is logged too.

    Args:
        output_dir: where they are written.
        metric_name: under which a `scripts.metrics.SegmentationMetrics` is attached to the engine.
    """

    def __init__(self, output_dir: str | os.PathLike, metric_name: str):
        self.output_dir = Path(output_dir)
        self.metric_name = metric_name

    def attach(self, engine: Engine) -> None:
        """Write at the end of the evaluator ``engine``."""
        engine.add_event_handler(Events.COMPLETED, self)

    @idist.one_rank_only()
    def __call__(self, engine: Engine) -> None:
        """Write both tables."""
        rows = engine.state.metric_details[self.metric_name]
        images = list(dict.fromkeys(row["image"] for row in rows if row.get("image")))
        names = dict(zip(images, name_images(images), strict=True))
        rows = [row | {"case": names.get(row.get("image"), row["case"])} for row in rows]
        write_table(self.output_dir / "per_case.csv", rows)
        metrics = [name for name, value in rows[0].items() if not isinstance(value, str)]
        summary = [
            {"class": class_name} | line
            for class_name in dict.fromkeys(row["class"] for row in rows)
            for line in summarize([row for row in rows if row["class"] == class_name], metrics)
        ]
        write_table(self.output_dir / "summary.csv", summary)
        lines = [f"{'class':10} {'metric':20} {'mean':>10} {'sd':>10} {'median':>10} {'cases':>6}"]
        for line in summary:
            numbers = " ".join(f"{line[name]:10.4f}" for name in ("mean", "sd", "median"))
            lines.append(f"{line['class']:10} {line['metric']:20} {numbers} {line['cases']:6d}")
        cases = len({row["case"] for row in rows})
        plural = "" if cases == 1 else "s"
        logger.info("%d case%s, tables in %s\n%s", cases, plural, self.output_dir, "\n".join(lines))
