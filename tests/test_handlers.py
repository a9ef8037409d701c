"""The best weights are kept, a resumed training ends as an uninterrupted one does, tables have every row."""

import csv
import hashlib
import json
import logging
import math
import platform
import re
import time

import monai
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler, from_engine
from monai.inferers import SimpleInferer
from monai.transforms import AsDiscreted
from monai.utils import set_determinism
from torch import nn, optim

from scripts import handlers
from scripts.errors import InputError
from scripts.handlers import (
    BatchNormRecalibration,
    BestCheckpoint,
    CaseTables,
    EarlyStop,
    EpochProgressBar,
    EpochTable,
    NextSteps,
    RunCheckpoint,
    RunFacts,
    WeightsCheckpointLoader,
    existing_file,
    peak_memory_mb,
)
from scripts.losses import TverskyCrossEntropyLoss
from scripts.metrics import SegmentationMetrics

OPTIMIZERS = {
    "SGD with momentum": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9),
    "Adam": lambda parameters: optim.Adam(parameters, lr=0.1),
}


@pytest.fixture(autouse=True)
def _determinism():
    set_determinism(0)
    yield
    set_determinism(None)


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def make_network(width=3):
    return nn.Sequential(nn.Conv3d(1, width, 3, padding=1), nn.BatchNorm3d(width), nn.PReLU(), nn.Conv3d(width, 2, 1))


def make_loader():
    """Three scans ``(1, 4, 4, 4)`` with a bright liver of 8 voxels, always the same and in the same order."""
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(1, 4, 4, 4)
    label[:, 1:3, 1:3, 1:3] = 1
    scans = [{"image": label + torch.randn(1, 4, 4, 4, generator=generator), "label": label} for _ in range(3)]
    return DataLoader(scans, batch_size=1)


class Training:
    """A training as the config builds it: with validation after each epoch, a schedule and both checkpoints."""

    def __init__(self, folder, max_epochs, resume=False, optimizer="Adam", width=3):
        self.network = make_network(width)
        self.optimizer = OPTIMIZERS[optimizer](self.network.parameters())
        lr_scheduler = optim.lr_scheduler.StepLR(self.optimizer, step_size=3, gamma=0.5)
        self.best = BestCheckpoint(self.network, folder / "model.pt")
        evaluator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=make_loader(),
            network=self.network,
            inferer=SimpleInferer(),
            postprocessing=AsDiscreted(keys="pred", argmax=True),
            key_val_metric={
                "accuracy": SegmentationMetrics(
                    ["background", "liver"], surface=False, output_transform=from_engine(["pred", "label"])
                )
            },
            val_handlers=[self.best],
        )
        objects = {
            "network": self.network,
            "optimizer": self.optimizer,
            "lr_scheduler": lr_scheduler,
            "best": self.best,
        }
        self.checkpoint = RunCheckpoint(objects, folder / "last.pt", resume)
        self.trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=max_epochs,
            train_data_loader=make_loader(),
            network=self.network,
            loss_function=TverskyCrossEntropyLoss(),
            optimizer=self.optimizer,
            train_handlers=[
                ValidationHandler(interval=1, validator=evaluator),
                EpochTable(folder / "training.csv", self.optimizer),
                LrScheduleHandler(lr_scheduler, print_lr=False),
                self.checkpoint,
                RunFacts(self.network, folder / "run.json", self.best),
            ],
        )

    def run(self):
        self.trainer.run()
        return self


def evaluator_with(metrics_of_epochs, network=None):
    """An engine whose key metric takes these values, and which leaves the number of the epoch as the weight."""
    engine = Engine(lambda engine, batch: None)
    engine.state.key_metric_name = "dice"

    @engine.on(Events.EPOCH_COMPLETED)
    def finish_epoch(engine):
        engine.state.metrics["dice"] = metrics_of_epochs[engine.state.epoch - 1]
        if network is not None:
            nn.init.constant_(network.weight, engine.state.epoch)

    return engine


def run_best(best, metrics_of_epochs):
    engine = evaluator_with(metrics_of_epochs, best.network)
    best.attach(engine)
    engine.run([None], max_epochs=len(metrics_of_epochs))


# --- the best weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metrics_of_epochs", "best_epoch"),
    [
        ([0.2, 0.5, 0.4], 2),
        ([0.5, 0.5, 0.4], 1),  # as good is not better
        ([0.0, math.nan, 0.0], 1),
        ([math.nan, 0.1, math.nan], 2),
        ([-0.5, -0.4], 2),
    ],
)
def test_best_checkpoint_keeps_the_weights_of_the_best_epoch(tmp_path, metrics_of_epochs, best_epoch):
    best = BestCheckpoint(nn.Linear(1, 1), tmp_path / "models" / "model.pt")
    run_best(best, metrics_of_epochs)
    state_dict = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert list(state_dict) == ["weight", "bias"]
    assert state_dict["weight"].item() == best_epoch
    sha256 = hashlib.sha256((tmp_path / "models/model.pt").read_bytes()).hexdigest()
    best_metric = metrics_of_epochs[best_epoch - 1]
    path = str(tmp_path / "models/model.pt")
    assert best.state_dict() == {"best_metric": best_metric, "best_epoch": best_epoch, "sha256": sha256, "path": path}


def test_best_checkpoint_writes_nothing_if_the_metric_is_always_nan(tmp_path):
    run_best(BestCheckpoint(nn.Linear(1, 1), tmp_path / "model.pt"), [math.nan, math.nan])
    assert list(tmp_path.iterdir()) == []


def test_best_checkpoint_of_a_wrapped_network_has_the_names_of_the_network_itself(tmp_path):
    best = BestCheckpoint(nn.DataParallel(nn.Linear(1, 1)), tmp_path / "model.pt")
    engine = evaluator_with([0.5])
    best.attach(engine)
    engine.run([None], max_epochs=1)
    assert list(torch.load(tmp_path / "model.pt", weights_only=True)) == ["weight", "bias"]


def test_best_checkpoint_goes_on_from_an_earlier_best(tmp_path):
    path = tmp_path / "model.pt"
    earlier = BestCheckpoint(nn.Linear(1, 1), path)
    run_best(earlier, [0.1, 0.5])
    resumed = BestCheckpoint(nn.Linear(1, 1), path)
    resumed.load_state_dict(earlier.state_dict())
    run_best(resumed, [0.4])
    assert torch.load(path, weights_only=True)["weight"].item() == 2
    run_best(resumed, [0.6])
    assert torch.load(path, weights_only=True)["weight"].item() == 1


def test_a_resumed_run_with_another_place_for_its_best_weights_is_refused(tmp_path):
    earlier = BestCheckpoint(nn.Linear(1, 1), tmp_path / "model.pt")
    run_best(earlier, [0.5])
    (tmp_path / "other.pt").touch()
    other = BestCheckpoint(nn.Linear(1, 1), tmp_path / "other.pt")
    with pytest.raises(InputError, match=rf"other\.pt: .* resume with --ckpt_path {tmp_path}/model\.pt$"):
        other.load_state_dict(earlier.state_dict())
    (tmp_path / "other.pt").write_bytes((tmp_path / "model.pt").read_bytes())  # a copy, as of the run's folder
    other.load_state_dict(earlier.state_dict())
    assert other.best_metric == 0.5


def test_a_resumed_run_whose_best_weights_are_gone_or_were_never_kept_keeps_its_own(tmp_path, caplog):
    earlier = BestCheckpoint(nn.Linear(1, 1), tmp_path / "model.pt")
    (tmp_path / "model.pt").touch()  # the bundle's
    (tmp_path / "other.pt").touch()
    other = BestCheckpoint(nn.Linear(1, 1), tmp_path / "other.pt")
    other.load_state_dict(earlier.state_dict())
    run_best(earlier, [0.5])
    state = earlier.state_dict()
    (tmp_path / "model.pt").unlink()
    with caplog.at_level("WARNING"):
        other.load_state_dict(state)
    assert "model.pt: are gone, the best weights so far" in caplog.text
    run_best(other, [0.1])
    assert (other.best_metric, other.best_epoch) == (0.1, 1)


@pytest.mark.parametrize("name", ["models", "model.v2", "last.pt", "run.pt", "model.pth"])
def test_a_name_that_would_be_another_files_is_refused_before_training(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name}: is no name for weights, beside which their settings lie"):
        BestCheckpoint(nn.Linear(1, 1), tmp_path / name)


def test_a_folder_in_the_place_of_the_weights_is_refused_before_training(tmp_path):
    (tmp_path / "best.pt").mkdir()
    with pytest.raises(InputError, match=r"best\.pt: is a folder; give the name of a file in it"):
        BestCheckpoint(nn.Linear(1, 1), tmp_path / "best.pt").attach(evaluator_with([0.5]))


@pytest.mark.parametrize("metrics_of_epochs", [[0.2, 0.5, 0.4], [math.nan]])
def test_the_end_of_a_training_says_where_its_weights_are_and_what_is_next(tmp_path, caplog, metrics_of_epochs):
    best = BestCheckpoint(nn.Linear(1, 1), tmp_path / "model.pt")
    run_best(best, metrics_of_epochs)
    trainer = Engine(lambda engine, batch: None)
    NextSteps(best, tmp_path / "run").attach(trainer)
    with caplog.at_level(logging.INFO):
        trainer.run([None])
    if len(metrics_of_epochs) == 1:
        assert "no weights were kept: no epoch was validated, or their Dice was no number; give a --val_" in caplog.text
    else:
        words = f"(2, validation Dice 0.5000): {tmp_path}/model.pt; curves and facts: {tmp_path}/run"
        assert words in caplog.text
        assert "next: the same command with evaluating instead of training" in caplog.text


# --- early stopping ----------------------------------------------------------------------------------------------


def train_until_stopped(metrics_of_epochs, patience, state=None, first=0):
    """Run a trainer that validates after each epoch; return the number of epochs it did, and the handler."""
    trainer, validator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    validator.state.key_metric_name = "dice"
    handler = EarlyStop(validator, patience)
    handler.attach(trainer)
    if state is not None:
        handler.load_state_dict(state)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        validator.state.metrics["dice"] = metrics_of_epochs[first + engine.state.epoch - 1]
        validator.run([None])

    trainer.run([None], max_epochs=len(metrics_of_epochs) - first)
    return trainer.state.epoch, handler


@pytest.mark.parametrize(
    ("metrics_of_epochs", "patience", "epochs"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.4], 2, 4),  # as good is not better
        ([0.1, 0.3, 0.2, 0.4, 0.2], 2, 5),  # a better one begins the count anew
        ([0.3, math.nan, math.nan, 0.4], 2, 3),
        ([math.nan, math.nan, 0.1, 0.2], 2, 4),
        ([0.3, 0.2, 0.1, 0.0], 0, 4),  # never
        ([0.3, 0.2, 0.1, 0.0], "1", 2),
    ],
)
def test_training_stops_after_so_many_validations_without_a_better_one(metrics_of_epochs, patience, epochs):
    assert train_until_stopped(metrics_of_epochs, patience)[0] == epochs


@pytest.mark.parametrize("patience_then, epochs", [(2, 1), (0, 3), (3, 2)])
def test_a_resumed_training_goes_on_counting_towards_its_stop(patience_then, epochs):
    metrics_of_epochs = [0.3, 0.2, 0.25, 0.1, 0.0]
    state = train_until_stopped(metrics_of_epochs[:2], 2)[1].state_dict()
    assert train_until_stopped(metrics_of_epochs, patience_then, state, first=2)[0] == epochs


def test_a_checkpoint_of_a_version_that_did_not_count_towards_a_stop_is_resumed(tmp_path):
    Training(tmp_path, max_epochs=1).run()
    training = Training(tmp_path, max_epochs=2, resume=True)
    training.checkpoint.save_dict["early_stop"] = EarlyStop(Engine(lambda engine, batch: None), 2)
    assert training.run().trainer.state.epoch == 2


# --- resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, optimizer):
    torch.manual_seed(1)
    whole = Training(tmp_path / "whole", max_epochs=4, optimizer=optimizer).run()
    torch.manual_seed(1)
    Training(tmp_path / "parts", max_epochs=2, optimizer=optimizer).run()
    resumed = Training(tmp_path / "parts", max_epochs=4, resume=True, optimizer=optimizer).run()

    expected, weights = whole.network.state_dict(), resumed.network.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert resumed.trainer.state.epoch == resumed.trainer.state.max_epochs == 4
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)  # halved once, after epoch 3
    assert resumed.best.state_dict() | {"path": None} == whole.best.state_dict() | {"path": None}
    kept, expected = (torch.load(tmp_path / run / "model.pt", weights_only=True) for run in ("parts", "whole"))
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    columns = ("epoch", "learning_rate", "accuracy")
    kept, expected = (
        [[row.get(column) for column in columns] for row in read_table(tmp_path / run / "training.csv")]
        for run in ("parts", "whole")
    )
    assert kept == expected
    assert [int(row[0]) for row in kept] == [1, 2, 3, 4]


def test_a_training_that_is_not_resumed_begins_anew_over_an_old_checkpoint(tmp_path):
    Training(tmp_path, max_epochs=2).run()
    training = Training(tmp_path, max_epochs=1).run()
    assert training.trainer.state.iteration == 3
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 3


def test_a_damaged_checkpoint_is_resumed_from_the_one_before(tmp_path, caplog):
    whole = Training(tmp_path / "whole", max_epochs=4).run()
    Training(tmp_path / "parts", max_epochs=3).run()
    last = tmp_path / "parts" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    with caplog.at_level("WARNING", logger="scripts.handlers"):
        resumed = Training(tmp_path / "parts", max_epochs=4, resume=True).run()
    assert "last.pt: cannot be read as a PyTorch file" in caplog.text
    assert "going on from the epoch before" in caplog.text
    assert resumed.trainer.state.epoch == whole.trainer.state.epoch == 4
    assert [row["epoch"] for row in read_table(tmp_path / "parts" / "training.csv")] == ["1", "2", "3", "4"]


def test_killed_while_it_writes_a_training_has_its_last_checkpoint(tmp_path, monkeypatch):
    Training(tmp_path, max_epochs=2).run()
    before = (tmp_path / "last.pt").read_bytes()

    def die(file):
        raise KeyboardInterrupt

    training = Training(tmp_path, max_epochs=3)
    training.trainer.state.epoch = 3
    monkeypatch.setattr("scripts.files.os.fsync", die)
    with pytest.raises(KeyboardInterrupt):
        training.checkpoint(training.trainer)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_the_scale_of_mixed_precision_goes_on(tmp_path):
    def checkpoint(resume, scale):
        engine = Engine(lambda engine, batch: None)
        engine.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        RunCheckpoint({}, tmp_path / "last.pt", resume).attach(engine)
        engine.run([None], max_epochs=2 if resume else 1)
        return engine.scaler.state_dict()["scale"]

    assert checkpoint(False, 128.0) == 128
    assert checkpoint(True, 2.0) == 128


def test_a_checkpoint_lost_between_two_writings_is_resumed_from_the_one_before(tmp_path):
    Training(tmp_path, max_epochs=2).run()
    (tmp_path / "last.pt").unlink()
    assert Training(tmp_path, max_epochs=2, resume=True).run().trainer.state.epoch == 2


def test_a_new_run_in_an_old_folder_never_goes_on_from_the_old_one(tmp_path):
    Training(tmp_path, max_epochs=2).run()
    assert (tmp_path / "previous-last.pt").is_file()
    Training(tmp_path, max_epochs=1).run()
    assert not (tmp_path / "previous-last.pt").is_file()


def test_resuming_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"last\.pt: no such file; nothing to resume; start without --resume$"):
        Training(tmp_path, max_epochs=2, resume=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_text("no checkpoint\n", encoding="utf-8"),
        lambda path: path.write_bytes(b"\x00" * 50),
        lambda path: torch.save(make_network().state_dict(), path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"network": 1}, path),
    ],
    ids=["empty", "cut off", "text", "zeros", "weights alone", "a list", "no weights"],
)
def test_resuming_from_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, damage):
    Training(tmp_path, max_epochs=1).run()
    damage(tmp_path / "last.pt")
    message = r"last\.pt: (cannot be read as a PyTorch file|does not fit this run, such as its network; resume with)"
    with pytest.raises(InputError, match=message) as error:
        Training(tmp_path, max_epochs=2, resume=True).run()
    assert "\n" not in str(error.value)


def test_resuming_with_another_network_is_refused(tmp_path):
    Training(tmp_path, max_epochs=1).run()
    message = r"last\.pt: does not fit this run, such as its network; resume with the settings of the run that wrote it"
    with pytest.raises(InputError, match=message):
        Training(tmp_path, max_epochs=2, resume=True, width=4).run()


@pytest.mark.parametrize("max_epochs", [1, 2])
def test_resuming_when_all_epochs_are_done_is_refused(tmp_path, max_epochs):
    Training(tmp_path, max_epochs=2).run()
    message = r"last\.pt: all 2 epochs are done; give a larger --max_epochs to go on$"
    with pytest.raises(InputError, match=message):
        Training(tmp_path, max_epochs=max_epochs, resume=True).run()


# --- tables ------------------------------------------------------------------------------------------------------


def run_epochs(path, dice_of_epochs, names=("dice",), engine=None, optimizer=None):
    """Run an engine whose metrics of these names take these values, with a table at ``path``; return the engine."""
    engine = engine or Engine(lambda engine, batch: time.sleep(0.01))

    @engine.on(Events.EPOCH_STARTED)
    def measure(engine):
        engine.state.metrics = dict.fromkeys(names, dice_of_epochs[engine.state.epoch - 1])

    EpochTable(path, optimizer).attach(engine)
    engine.run([None], max_epochs=len(dice_of_epochs))
    return engine


def test_epoch_table_has_a_row_per_epoch(tmp_path):
    optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=0.25)
    run_epochs(tmp_path / "training.csv", [0.5, 1 / 3], ("dice", "loss"), optimizer=optimizer)
    rows = read_table(tmp_path / "training.csv")
    assert list(rows[0]) == ["epoch", "seconds", "learning_rate", "dice", "loss"]
    assert [[row[name] for name in ("epoch", "learning_rate", "dice", "loss")] for row in rows] == [
        ["1", "0.25", "0.5", "0.5"],
        ["2", "0.25", "0.333333", "0.333333"],
    ]
    assert all(0.01 <= float(row["seconds"]) < 10 for row in rows)


def test_epoch_table_counts_the_seconds_of_the_steps_alone(tmp_path):
    engine = Engine(lambda engine, batch: time.sleep(0.01))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: time.sleep(0.3))
    run_epochs(tmp_path / "training.csv", [0.5], engine=engine)
    assert float(read_table(tmp_path / "training.csv")[0]["seconds"]) < 0.3


def test_epoch_table_has_no_learning_rate_without_an_optimizer(tmp_path):
    run_epochs(tmp_path / "validation.csv", [0.5])
    assert list(read_table(tmp_path / "validation.csv")[0]) == ["epoch", "seconds", "dice"]


def test_epoch_table_of_a_training_begun_again_has_no_row_of_the_earlier_one(tmp_path):
    path = tmp_path / "training.csv"
    run_epochs(path, [0.1, 0.2, 0.3])
    run_epochs(path, [0.6, 0.7])
    assert [(row["epoch"], row["dice"]) for row in read_table(path)] == [("1", "0.6"), ("2", "0.7")]


def test_epoch_table_of_a_resumed_training_keeps_the_earlier_rows_and_replaces_the_later(tmp_path):
    path = tmp_path / "training.csv"
    run_epochs(path, [0.1, 0.2, 0.3])
    resumed = Engine(lambda engine, batch: None)
    resumed.load_state_dict({"epoch_length": 1, "max_epochs": 3, "iteration": 1})
    run_epochs(path, [0.6, 0.7, 0.8], engine=resumed)
    assert [(row["epoch"], row["dice"]) for row in read_table(path)] == [("1", "0.1"), ("2", "0.7"), ("3", "0.8")]


@pytest.mark.parametrize(("done", "left"), [(0, []), (5, ["5"]), (7, ["5"]), (10, ["5", "10"])])
def test_epoch_table_takes_from_that_of_the_validation_what_is_of_a_training_before(tmp_path, done, left):
    path = tmp_path / "validation.csv"
    path.write_text("epoch,dice\n" + "".join(f"{epoch},0.5\n" for epoch in (5, 10, 15)), encoding="utf-8")
    engine = Engine(lambda engine, batch: None)
    if done:  # resumed
        engine.load_state_dict({"epoch_length": 1, "max_epochs": done, "iteration": done})
    table = EpochTable(tmp_path / "training.csv", others=[path, tmp_path / "none.csv"])
    table.attach(engine)
    engine.run([None], max_epochs=done + 2)
    assert [row["epoch"] for row in (read_table(path) if path.is_file() else [])] == left


def test_epoch_table_has_the_columns_of_the_last_epoch(tmp_path):
    path = tmp_path / "training.csv"
    run_epochs(path, [0.1], ("dice", "loss"))
    resumed = Engine(lambda engine, batch: None)
    resumed.load_state_dict({"epoch_length": 1, "max_epochs": 2, "iteration": 1})
    run_epochs(path, [0.6, 0.7], ("dice", "iou"), engine=resumed)
    rows = read_table(path)
    assert list(rows[0]) == ["epoch", "seconds", "dice", "iou"]
    assert [(row["dice"], row["iou"]) for row in rows] == [("0.1", ""), ("0.7", "0.7")]


def test_case_tables_hold_every_case_and_their_summary(tmp_path, caplog):
    rows = [
        {"case": "volume-7", "class": "liver", "dice": 0.9, "hd95_mm": 2.0},
        {"case": "volume-7", "class": "tumor", "dice": 0.5, "hd95_mm": math.nan},
        {"case": "volume-8", "class": "liver", "dice": 0.7, "hd95_mm": 5.0},
        {"case": "volume-8", "class": "tumor", "dice": math.nan, "hd95_mm": math.nan},
    ]
    engine = Engine(lambda engine, batch: None)
    engine.state.metric_details = {"segmentation": rows}
    CaseTables(tmp_path / "evaluation", "segmentation").attach(engine)
    with caplog.at_level("INFO", logger="scripts.handlers"):
        engine.run([None])

    assert (tmp_path / "evaluation" / "per_case.csv").read_text(encoding="utf-8") == (
        "case,class,dice,hd95_mm\n"
        "volume-7,liver,0.9,2\n"
        "volume-7,tumor,0.5,nan\n"
        "volume-8,liver,0.7,5\n"
        "volume-8,tumor,nan,nan\n"
    )
    # of two values a, b the standard deviation is |a - b| / √2: 0.2 / √2 and 3 / √2
    assert (tmp_path / "evaluation" / "summary.csv").read_text(encoding="utf-8") == (
        "class,metric,cases,mean,sd,median,minimum,maximum\n"
        "liver,dice,2,0.8,0.141421,0.8,0.7,0.9\n"
        "liver,hd95_mm,2,3.5,2.12132,3.5,2,5\n"
        "tumor,dice,1,0.5,nan,0.5,0.5,0.5\n"
        "tumor,hd95_mm,0,nan,nan,nan,nan,nan\n"
    )
    assert f"2 cases, tables in {tmp_path / 'evaluation'}" in caplog.text


def test_case_tables_are_those_of_the_metric_of_an_evaluator(tmp_path):
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=make_loader(),
        network=make_network(),
        postprocessing=AsDiscreted(keys="pred", argmax=True),
        key_val_metric={
            "dice": SegmentationMetrics(["background", "liver"], output_transform=from_engine(["pred", "label"]))
        },
        val_handlers=[CaseTables(tmp_path, "dice")],
    )
    evaluator.run()
    per_case, summary = read_table(tmp_path / "per_case.csv"), read_table(tmp_path / "summary.csv")
    assert [row["case"] for row in per_case] == ["case-0", "case-1", "case-2"]
    words = ("case", "class", "image", "label", "prediction")
    assert [row["metric"] for row in summary] == [name for name in per_case[0] if name not in words]
    for row in summary:
        assert float(row["mean"]) == pytest.approx(
            sum(float(case[row["metric"]]) for case in per_case) / 3, rel=1e-5, nan_ok=True
        )


def test_existing_file_is_the_path_as_a_string(tmp_path):
    (tmp_path / "model.pt").touch()
    assert existing_file(tmp_path / "model.pt", "train first") == str(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["missing.pt", "."], ids=["missing", "a folder"])
def test_a_file_that_does_not_exist_is_refused_with_what_to_do(tmp_path, name):
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path))}.*: no such file; train first$"):
        existing_file(tmp_path / name, "train first")


def test_progress_bar_of_a_trainer_shows_the_loss(tmp_path, capsys):
    training = Training(tmp_path, max_epochs=1)
    losses = []
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output[0]["loss"])
    )
    EpochProgressBar(desc="training").attach(training.trainer)
    training.run()
    assert f"training: [1/3]  33%|███▎      , loss={losses[0]:.3g}" in capsys.readouterr().err


def test_progress_bar_of_another_engine_shows_its_progress(capsys):
    engine = Engine(lambda engine, batch: {"pred": batch})
    EpochProgressBar(desc="validation").attach(engine)
    engine.run([1, 2, 3])
    text = capsys.readouterr().err
    assert "validation: [2/3]  67%" in text
    assert "loss" not in text


def test_batch_norm_is_recalibrated_to_the_mean_statistics_of_all_crops():
    network = nn.Sequential(make_network(), nn.Dropout(0.9)).train()
    convolution, norm = network[0][0], network[0][1]
    norm.running_mean.fill_(99)
    weights = [parameter.clone() for parameter in network.parameters()]
    engine = Engine(lambda engine, batch: None)
    engine.state.device = torch.device("cpu")
    BatchNormRecalibration(network, make_loader(), SimpleInferer(), interval=2).attach(engine)

    engine.run([0], max_epochs=1)
    assert (norm.running_mean == 99).all()
    engine.run([0], max_epochs=2)
    with torch.no_grad():
        features = [convolution(batch["image"]).transpose(0, 1).flatten(1) for batch in make_loader()]
    torch.testing.assert_close(norm.running_mean, torch.stack([f.mean(dim=1) for f in features]).mean(dim=0))
    torch.testing.assert_close(norm.running_var, torch.stack([f.var(dim=1) for f in features]).mean(dim=0))
    assert norm.momentum == 0.1
    assert all(module.training for module in network.modules())
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))


def test_a_network_without_batch_norm_is_not_run_for_recalibration():
    engine = Engine(lambda engine, batch: None)
    BatchNormRecalibration(nn.Conv3d(1, 1, 1), [None], SimpleInferer()).attach(engine)
    engine.run([0], max_epochs=1)


def test_weights_are_loaded_when_the_engine_starts(tmp_path):
    trained, network = make_network(), make_network()
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    engine = Engine(lambda engine, batch: None)
    WeightsCheckpointLoader(network, tmp_path / "model.pt").attach(engine)
    engine.run([0])
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize("content", [make_network(width=4).state_dict(), {"model": {}}, [1, 2]])
def test_weights_of_another_network_are_refused_in_one_line(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    engine = Engine(lambda engine, batch: None)
    WeightsCheckpointLoader(make_network(), tmp_path / "model.pt").attach(engine)
    with pytest.raises(
        InputError, match=r"model\.pt: not weights of this network; give the configs, --target"
    ) as error:
        engine.run([0])
    assert "\n" not in str(error.value)


# --- run.json ----------------------------------------------------------------------------------------------------


def test_run_facts_say_what_the_run_cost(tmp_path):
    training = Training(tmp_path, max_epochs=2).run()
    facts = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert facts["network"] == type(training.network).__name__
    assert facts["parameters"] == sum(parameter.numel() for parameter in training.network.parameters())
    assert (facts["epochs"], facts["max_epochs"], facts["steps_per_epoch"], facts["device"]) == (2, 2, 3, "cpu")
    assert (facts["versions"]["torch"], facts["versions"]["monai"]) == (torch.__version__, monai.__version__)
    assert facts["versions"]["python"] == platform.python_version()
    assert 0 < facts["seconds_per_step"] < 5
    assert 0 < facts["checkpoint_seconds"] < 5
    assert facts["checkpoint_mb"] == pytest.approx((tmp_path / "last.pt").stat().st_size / 1e6)
    assert facts["peak_memory_mb"] == pytest.approx(peak_memory_mb(torch.device("cpu")), rel=0.1)
    assert (facts["best_epoch"], facts["weights_sha256"]) == (training.best.best_epoch, training.best.sha256)


def test_peak_memory_of_the_process_grows_with_what_it_holds():
    """More than it ever held, as other tests may have held much and given it back."""
    before = peak_memory_mb(torch.device("cpu"))
    assert 50 < before < 100_000
    held = torch.ones(int(1.2 * before * 1e6) // 4)
    after = peak_memory_mb(torch.device("cpu"))
    assert after > 0.99 * held.numel() * 4e-6 > 1.1 * before


def test_run_facts_leave_out_what_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setattr(handlers, "resource", None)  # as on Windows
    Training(tmp_path, max_epochs=1).run()
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["peak_memory_mb"] is None
