"""Several processes do what one does, to rounding: statistics of batch norms, losses, a training, an evaluation."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.bundle import run
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scripts.distributed import CaseSampler, join, prepare_network
from scripts.errors import InputError
from scripts.losses import TverskyCrossEntropyLoss
from scripts.metrics import gather_cases
from scripts.networks import MPUNet
from scripts.phantom import write_phantoms
from tests import ROOT
from tests.test_workflows import TINY, configs, read_json, table, wait_for_rows

PROCESSES = 2


def make_batch():
    """Four scans, of which the first two have far fewer voxels of the second class than the others."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 1, 8, 8, 8, generator=generator)
    label = torch.zeros(4, 1, 8, 8, 8)
    label[:2, :, :2, :2, :2] = 1
    label[2:, :, 1:7, 1:7] = 1
    return image, label


def make_network():
    torch.manual_seed(0)
    return MPUNet(channels=[4, 4, 8, 8, 8], dropout=0.0)


def step(network, image, label):
    """Return the loss and everything that a training step changes."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loss = TverskyCrossEntropyLoss()(network(image), label)
    loss.backward()
    optimizer.step()
    return float(loss.detach()), (network.module if hasattr(network, "module") else network).state_dict()


def in_process(rank, folder, work):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), PROCESSES)
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES, store=store)
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


def in_processes(folder, work):
    """Return what ``work(rank)`` gives in each of two processes that have met."""
    mp.start_processes(in_process, (folder, work), nprocs=PROCESSES, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def a_step_and_gathered_rows(rank):
    image, label = (tensor[2 * rank : 2 * rank + 2] for tensor in make_batch())
    network = prepare_network(make_network(), "cpu")
    result = step(DistributedDataParallel(network, broadcast_buffers=False), image, label)
    cases = [range(5)[rank::2], ("liver", "tumor")]
    rows = [{"case": case, "class": name} for case in cases[0] for name in cases[1]]
    return result, gather_cases(rows, rows_per_case=2), [*CaseSampler(range(5))]


def test_a_step_of_two_processes_is_that_of_one_with_all_their_scans(tmp_path):
    """Loss, weights after the step and statistics of the batch norms; and rows of cases come back in order."""
    loss, state = step(make_network(), *make_batch())
    results = in_processes(tmp_path, a_step_and_gathered_rows)
    losses = [result[0][0] for result in results]
    assert losses[0] != pytest.approx(losses[1], rel=0.01)  # each has its own part of it
    assert sum(losses) / 2 == pytest.approx(loss, rel=1e-5)
    for (_, other), rows, _ in results:
        assert other.keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5, msg=name)
        assert [(row["case"], row["class"]) for row in rows] == [(n, c) for n in range(5) for c in ("liver", "tumor")]
    assert [cases for *_, cases in results] == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_weights_lie_from_the_beginning_as_inference_will_lay_them_and_what_is_frozen_stays_so(device):
    """Else `DistributedDataParallel` would add up gradients of different weights in the first step."""
    network = make_network()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith("downs"))
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    prepared = prepare_network(network, device)
    assert {name for name, parameter in prepared.named_parameters() if not parameter.requires_grad} == frozen
    weights = {name: weight for name, weight in prepared.named_parameters() if weight.ndim == 5}
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in weights.values())


def test_synchronized_batch_norms_keep_their_names_and_settings():
    network = nn.Sequential(nn.BatchNorm3d(2, eps=0.1, momentum=None), nn.Sequential(nn.BatchNorm3d(3)))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.randn(2, 2, 3, 3, 3)
    expected = network[0](image)
    network[0].reset_running_stats()
    synchronized = prepare_network(network, "cpu")
    assert synchronized.state_dict().keys() == state.keys()
    assert (synchronized[0].eps, synchronized[0].momentum) == (0.1, None)
    assert torch.equal(synchronized[0](image), expected)  # alone it is a batch norm as any


def test_without_torchrun_it_says_what_to_do(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match=r"are for several processes; start them by torchrun: docs/many_machines\.md"):
        join("cpu")


def test_more_processes_than_cases_are_refused(monkeypatch):
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 3)
    with pytest.raises(InputError, match="2 cases to measure, for 3 processes; start no more than there are cases"):
        CaseSampler(range(2))


def children(process):
    """Return the processes that a process of this computer has started, itself or through others, by Linux's /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])
            except OSError:  # it has ended
                continue
            if parent == process:
                found += [int(entry.name), *children(int(entry.name))]
    return found


# --- whole jobs --------------------------------------------------------------------------------------------------

EVEN = TINY | {  # nothing random, so that one process sees the same scans as two
    "train::dataloader::shuffle": False,
    "network_def::dropout": 0.0,
    "flip_prob": 0.0,
    "rotate_prob": 0.0,
    "amp": False,
    "crop": {"_target_": "CenterSpatialCropd", "keys": ["image", "label"], "roi_size": [32, 32, 32]},
    "val_interval": 1,
    "max_epochs": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A datalist of four cases for training and two for validation."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=6, seed=0, size=(64, 64, 48))
    cases = [
        {"image": f"volume-{index}.nii.gz", "label": f"segmentation-{index}.nii.gz"} for index in range(6)
    ]  # fmt: skip
    path = folder / "cases.json"
    path.write_text(json.dumps({"training": cases[:4], "validation": cases[4:]}), encoding="utf-8")
    return path


def settings_of(folder, dataset, **knobs):
    places = {"dataset_dir": str(dataset), "output_dir": str(folder), "ckpt_path": str(folder / "model.pt")}
    return EVEN | places | knobs


def torchrun_command(names, run_id, **settings):
    """Return the documented command that starts `monai.bundle run` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(PROCESSES)]
    command += ["-m", "monai.bundle", "run", run_id, "--config_file", str(configs(*names))]
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    return command


def torchrun(*args, **settings):
    """Run that command, as if in a job of Slurm."""
    command = torchrun_command(*args, **settings)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "7"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=500)
    assert done.returncode == 0, done.stderr[-5000:]
    return done


@pytest.fixture(scope="module")
def one_process(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run(config_file=configs("train"), bundle_root=str(ROOT), **settings_of(folder, dataset, batch_size=2))
    return folder


def assert_same_curves(expected, measured):
    for name in ("training.csv", "validation.csv"):
        for one, two in zip(table(expected / name), table(measured / name), strict=True):
            assert one.keys() == two.keys()
            for key in one.keys() - {"seconds"}:
                assert float(two[key]) == pytest.approx(float(one[key]), rel=2e-3, abs=1e-4), (name, one["epoch"], key)


def test_a_training_of_two_processes_is_that_of_one_with_twice_the_batch(dataset, one_process, tmp_path):
    settings = settings_of(tmp_path, dataset, batch_size=1) | {"train::dataloader::sampler::shuffle": False}
    done = torchrun(["train", "multi_gpu_train"], "training", **settings)
    assert_same_curves(one_process, tmp_path)
    facts, manifest = read_json(tmp_path / "run.json"), read_json(tmp_path / "manifest.json")
    assert facts["processes"] == manifest["processes"] == 2
    assert facts["steps_per_epoch"] == 2
    one, two = (torch.load(folder / "model.pt", weights_only=True) for folder in (one_process, tmp_path))
    assert one.keys() == two.keys()
    assert [len(manifest["data"][section]) for section in ("training", "validation")] == [4, 2]
    assert len(os.listdir(tmp_path / "tensorboard")) == len(os.listdir(one_process / "tensorboard"))
    assert done.stdout.count("Key metric: dice best value") == 6  # a line per epoch of each engine, not per process
    assert np.isfinite(float(table(tmp_path / "training.csv")[-1]["loss"]))


def test_an_evaluation_by_two_processes_is_that_by_one(dataset, one_process, tmp_path):
    settings = settings_of(one_process, dataset, section="validation")
    settings = {key: value for key, value in settings.items() if key != "train::dataloader::shuffle"}
    run(config_file=configs("train", "evaluate"), bundle_root=str(ROOT), **settings, evaluation_dir=str(tmp_path / "1"))
    done = torchrun(
        ["train", "evaluate", "multi_gpu_evaluate"], "evaluating", **settings, evaluation_dir=tmp_path / "2"
    )
    for name in ("per_case.csv", "summary.csv"):
        expected = (tmp_path / "1" / name).read_text(encoding="utf-8")
        assert (tmp_path / "2" / name).read_text(encoding="utf-8").replace(f"{tmp_path}/2", f"{tmp_path}/1") == expected
    masks = [sorted(path.name for path in (tmp_path / part / "predictions").iterdir()) for part in ("1", "2")]
    assert masks[0] == masks[1] == ["volume-4_seg.nii.gz", "volume-5_seg.nii.gz"]
    cases = [read_json(tmp_path / part / "manifest.json")["data"]["cases"] for part in ("1", "2")]
    assert cases[0] == cases[1]
    assert done.stdout.count("2 cases, tables in") == 1


@pytest.mark.slow
def test_two_processes_go_on_from_where_one_stopped(dataset, one_process, tmp_path):
    settings = settings_of(tmp_path, dataset, batch_size=2, max_epochs=1)
    run(config_file=configs("train"), bundle_root=str(ROOT), **settings)
    settings |= {"train::dataloader::sampler::shuffle": False, "batch_size": 1, "max_epochs": 3, "resume": True}
    torchrun(["train", "multi_gpu_train"], "training", **settings)
    assert_same_curves(one_process, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the processes by Linux's /proc")
def test_a_signal_to_one_process_stops_both_after_the_same_step(dataset, tmp_path):
    settings = settings_of(tmp_path, dataset, batch_size=1, max_epochs=10_000, val_interval=10_000)
    with open(tmp_path / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            torchrun_command(["train", "multi_gpu_train"], "training", **settings),
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_for_rows(process, tmp_path / "training.csv", 2)
        (worker, *_) = children(process.pid)
        os.kill(worker, signal.SIGTERM)
        assert process.wait(timeout=120) == 1
    messages = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert f"stopped. {tmp_path}/last.pt has the last finished epoch; go on from it with --resume true" in messages
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] >= 4


@pytest.mark.slow
def test_an_archive_is_segmented_by_two_processes_and_an_image_that_cannot_be_read_stops_neither(tmp_path):
    write_phantoms(tmp_path / "archive", cases=3, seed=0, size=(64, 64, 48))
    for path in (tmp_path / "archive").glob("segmentation-*"):
        path.unlink()
    (tmp_path / "archive/volume-0.nii.gz").write_bytes(b"damaged")
    network = MPUNet(channels=TINY["network_def::channels"])
    torch.save(network.state_dict(), tmp_path / "model.pt")
    settings = {key: TINY[key] for key in ("network_def::channels", "spacing", "roi_size")}
    settings |= {
        "dataset_dir": tmp_path / "archive",
        "output_dir": tmp_path / "out",
        "ckpt_path": tmp_path / "model.pt",
    }
    command = torchrun_command(["inference", "multi_gpu_inference"], "inferring", **settings)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=500)
    assert done.returncode == 1
    assert "error: 1 of 2 images were not segmented" in done.stderr
    assert [os.path.basename(row["image"]) for row in table(tmp_path / "out/failed.csv")] == ["volume-0.nii.gz"]
    rows = table(tmp_path / "out/volumes.csv")
    assert [os.path.basename(row["image"]) for row in rows] == ["volume-1.nii.gz", "volume-2.nii.gz"]
