"""The benchmark compares what gives the same result, splits the time by stage, and goes on where it was."""

import csv
import json
import math
import os
import signal
import time

import numpy as np
import pytest
import torch
from monai.transforms import Compose, Lambda, LoadImaged, SaveImaged

from scripts.benchmark import run, tables
from scripts.benchmark.epoch import cost_epoch, measure_epoch
from scripts.benchmark.isolation import MeasurementError, run_isolated
from scripts.benchmark.network import compare_probabilities, measure_calls
from scripts.benchmark.networks import (
    NETWORKS,
    OURS,
    PEERS,
    REFERENCE,
    Padded,
    PlainMPUNet,
    PlainPositionAttention,
    StandIn,
    make_network,
)
from scripts.benchmark.plan import FULL, PARTS, QUICK, Sizes
from scripts.benchmark.run import choose_parts, make_plan, needed_mb, run_benchmark
from scripts.benchmark.scans import LIVER_HU, MAX_OTHER_HU, THRESHOLD, WINDOW_HU, paint_scan
from scripts.benchmark.volume import dice_of_files, measure_volume, stage_of, timed_transforms
from scripts.errors import InputError
from scripts.knobs import is_true
from scripts.networks import MPUNet, PositionAttention
from tests import ROOT
from tests.niftis import save

TINY = Sizes(
    forward=[(32, 32, 32)], training=[(32, 32, 32)], attention=[(4, 4, 4)], scan=(48, 48, 40),
    scan_spacing=(8.0, 8.0, 10.0), slices=[], roi_size=(32, 32, 32), spacing=(8.0, 8.0, 10.0), fit_steps=1,
)  # fmt: skip


# --- what is compared --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_the_reference_gives_the_same_as_the_network_with_the_same_weights(training):
    torch.manual_seed(0)
    channels = (8, 8, 16, 16, 16)
    network, reference = MPUNet(channels=channels, dropout=0.0), PlainMPUNet(channels=channels)
    reference.dropout.p = 0.0
    for module in network.modules():
        if isinstance(module, PositionAttention):
            module.gamma.data.fill_(1.0)
    reference.load_state_dict(network.state_dict())
    image = torch.randn(2, 1, 20, 24, 16)
    results = [model.train(training)(image) for model in (network, reference)]
    assert results[0].shape == ((2, 4, 2, 20, 24, 16) if training else (2, 2, 20, 24, 16))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


def test_the_reference_has_the_plain_formula_and_pytorchs_pooling():
    reference = PlainMPUNet(channels=(8, 8, 16, 16, 16))
    kinds = [type(module).__name__ for module in reference.modules()]
    assert kinds.count("PlainPositionAttention") == 1
    assert "PositionAttention" not in kinds
    assert kinds.count("MaxPool3d") == 5
    assert "MaxPool" not in kinds


def test_the_plain_attention_stores_the_matrix_of_all_positions():
    attention = PlainPositionAttention(8)
    attention.gamma.data.fill_(1.0)
    x = torch.randn(1, 8, 3, 2, 2)
    value = torch.einsum("oc,bcn->bon", attention.value.weight[:, :, 0, 0, 0], x.flatten(2))
    value = value + attention.value.bias[:, None]
    query = torch.einsum("oc,bcn->bon", attention.query.weight[:, :, 0, 0, 0], x.flatten(2))
    key = torch.einsum("oc,bcn->bon", attention.key.weight[:, :, 0, 0, 0], x.flatten(2))
    query, key = query + attention.query.bias[:, None], key + attention.key.bias[:, None]
    scores = torch.softmax(torch.einsum("bci,bcj->bij", query, key), dim=2)
    expected = torch.einsum("bij,bcj->bci", scores, value).reshape(x.shape) + x
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in (REFERENCE, OURS)])
def test_a_peer_takes_the_sizes_that_are_measured(name):
    network = NETWORKS[name]().eval().to("meta")
    for size in {*FULL.forward, *FULL.training, FULL.roi_size, *QUICK.forward, QUICK.roi_size}:
        assert network(torch.zeros(1, 1, *size, device="meta")).shape == (1, 2, *size)


def test_random_weights_are_the_same_every_time_and_other_networks_weights_are_refused(tmp_path):
    first, second = (make_network("U-Net of the paper").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.save(first, tmp_path / "unet.pt")
    with pytest.raises(InputError, match=r"unet\.pt: is not the state dict of a full-size MPU-Net"):
        make_network(OURS, tmp_path / "unet.pt")


def test_a_padded_network_gets_a_size_that_divides_and_gives_the_images():
    seen = []
    padded = Padded(torch.nn.Identity(), 8)
    padded.network.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    image = torch.randn(1, 1, 8, 9, 3)
    assert torch.equal(padded(image), image)
    assert seen == [(1, 1, 8, 16, 8)]


def test_the_stand_in_finds_what_is_above_the_threshold_and_calculates_the_windows_left_out():
    stand_in = StandIn(torch.nn.Identity(), threshold=0.5, max_windows=3)
    image = torch.tensor([0.0, 0.4, 0.6, 1.0]).reshape(1, 1, 4, 1, 1)
    result = stand_in(image)
    assert result.argmax(dim=1).flatten().tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(result.exp().sum(dim=1), torch.ones(1, 4, 1, 1))
    for _ in range(4):
        stand_in(image)
    assert (len(stand_in.seconds), stand_in.voxels) == (3, [4] * 5)
    stand_in.seconds = [9.0, 1.0, 3.0]  # the first does not count: 2 s a window
    assert stand_in.seconds_left_out() == pytest.approx(2 * 2.0)
    assert StandIn(torch.nn.Identity(), 0.5).seconds_left_out() == 0


def test_the_liver_of_a_painted_scan_is_what_is_above_the_threshold():
    image, label = paint_scan((48, 48, 40), (8.0, 8.0, 5.0))
    assert label.any()
    assert image.min() < -900  # there is air
    assert np.array_equal(np.clip(image / WINDOW_HU, -1, 1) > THRESHOLD, label > 0)
    assert LIVER_HU > THRESHOLD * WINDOW_HU > MAX_OTHER_HU


# --- how it is measured --------------------------------------------------------------------------------------------


def test_a_measurement_has_a_process_of_its_own():
    assert run_isolated(os.getpid) not in (os.getpid(), run_isolated(os.getpid))


def test_a_measurement_that_fails_or_is_killed_says_so():
    with pytest.raises(MeasurementError, match="ValueError: could not convert"):
        run_isolated(_float_of, text="much")
    with pytest.raises(MeasurementError, match="exit status -9, as if out of memory"):
        run_isolated(_kill_itself)


def _float_of(text):
    return float(text)


def _kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_first_call_warms_up_and_short_calls_are_timed_several_times():
    calls = []
    measured = measure_calls(lambda: calls.append(time.sleep(0.01)), torch.device("cpu"))
    assert len(calls) == 4
    assert len(measured["seconds"]) == 3
    assert all(0.01 <= seconds < 5 for seconds in measured["seconds"])
    assert measured["host_peak_mb"] >= measured["growth_mb"]


def test_the_growth_of_memory_is_what_a_call_takes():
    measured = run_isolated(_take_200_mb)
    assert measured["growth_mb"] == pytest.approx(200, abs=20)


def _take_200_mb():
    return measure_calls(lambda: torch.ones(50_000_000), torch.device("cpu"))


def test_differences_of_probabilities_and_masks():
    ours, reference = torch.tensor([0.9, 0.6, 0.4, 0.1]), torch.tensor([0.9, 0.4, 0.4, 0.2])
    result = compare_probabilities(ours, reference)  # masks 1100 and 1000: 2 · 1 / 3
    assert result == pytest.approx({"max_difference": 0.2, "dice": 2 / 3})
    assert math.isnan(compare_probabilities(torch.zeros(4), torch.zeros(4))["dice"])


def test_the_time_of_transforms_is_that_of_their_stage_and_what_is_inside_another_is_part_of_it():
    wait = Lambda(lambda data: time.sleep(0.05) or data)
    before = Compose([wait, Compose([wait, Lambda(lambda data: data)])])
    after = Compose([Lambda(lambda data: time.sleep(0.02) or data)])
    with timed_transforms(before, after) as seconds:
        after(before({"image": 1}))
    assert seconds["resample"] == pytest.approx(0.1, abs=0.04)
    assert seconds["resample back"] == pytest.approx(0.02, abs=0.015)
    assert stage_of(LoadImaged("image"), before=True) == "read"
    assert stage_of(SaveImaged("pred"), before=False) == "write"


def painted_files(folder):
    image, label = paint_scan((48, 48, 40), (8.0, 8.0, 10.0))
    affine = np.diag([8.0, 8.0, 10.0, 1.0])
    return [str(save(folder / f"{name}.nii.gz", array, affine)) for name, array in (("a", image), ("b", label))]


@pytest.mark.parametrize("pipeline", ["plain", "plain, network at best", "this bundle's"])
def test_a_whole_scan_is_segmented_and_its_time_split(tmp_path, pipeline, monkeypatch):
    monkeypatch.setitem(NETWORKS, "tiny", lambda: torch.nn.Conv3d(1, 2, 1))
    files = painted_files(tmp_path)
    knobs = {"roi_size": [32, 32, 32], "spacing": [8.0, 8.0, 10.0]}
    measured = measure_volume(pipeline, "tiny", files, str(tmp_path / "out"), "cpu", max_windows=1, knobs=knobs)
    assert measured["dice"] > 0.98
    assert measured["windows_computed"] == 1 < measured["windows"]
    assert sum(measured["stages"].values()) == pytest.approx(measured["seconds"][0])
    assert all(seconds > 0 for seconds in measured["stages"].values())
    assert measured["dice"] == dice_of_files(tmp_path / "out/a_seg.nii.gz", files[1])


def test_the_parts_of_an_epoch_are_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, OURS, lambda: MPUNet(channels=(4, 4, 8, 8, 8)))
    knobs = {"plane_size": [32, 32], "roi_size": [32, 32, 16], "spacing": [-1, -1, 10.0]}
    measured = measure_epoch(painted_files(tmp_path), "cpu", steps=1, max_windows=1, knobs=knobs)
    assert set(measured["seconds_per_case"]) == {"preprocessing", "augmentation", "step", "validation", "metrics"}
    assert all(seconds > 0 for seconds in measured["seconds_per_case"].values())
    assert measured["windows"] == 4  # of 40 slices, 16 at a time, half overlapping


# --- the plan and the tables -------------------------------------------------------------------------------------


def test_parts_are_chosen_in_their_order():
    assert choose_parts("volume,network") == ["network", "volume"]
    assert choose_parts(()) == list(PARTS)
    with pytest.raises(InputError, match="no part 'speed'; there are network, attention, volume, epoch"):
        choose_parts("speed")


def test_every_measurement_has_its_own_name_and_in_every_round_ours_follows_the_reference(tmp_path):
    plan = make_plan(FULL, PARTS, tmp_path, "cpu", "w.pt", repeats=3, peer_repeats=1, windows=6)
    assert len({measurement.key for measurement in plan}) == len(plan)
    forward = [m for m in plan if m.case == "forward 256 × 256 × 48"]
    assert {m.network for m in forward if m.round == 0} == {REFERENCE, OURS, *PEERS}
    names = [(m.network, m.setting) for m in forward if m.round == 1]
    assert names[:3] == [(REFERENCE, "plain float32"), (OURS, "float32"), (OURS, "best")]
    assert {network for network, _ in names} == {REFERENCE, OURS}


def test_the_plain_attention_needs_two_matrices_of_all_positions(tmp_path):
    plan = make_plan(FULL, ["attention"], tmp_path, "cpu", "", 1, 1, None)
    needed = {(m.case, m.network): needed_mb(m) for m in plan}
    assert needed["65,536 positions", "plain formula"] == pytest.approx(2 * 4 * 65_536**2 / 1e6)  # 34 GB
    assert needed["65,536 positions", "fused"] == 0


def record(network, setting, seconds, peak, case="forward", **result):
    names = {"part": "network", "case": case, "network": network, "setting": setting, "round": 0}
    return names | {"result": {"seconds": seconds, "host_peak_mb": peak, "growth_mb": peak - 100} | result}


def test_rows_have_medians_and_ratios_to_the_reference_of_their_case():
    records = [
        record(REFERENCE, "plain float32", [10.0, 14.0], 2000),
        record(OURS, "best", [2.0], 800),
        record(REFERENCE, "plain float32", [11.0], 2100),
        record(OURS, "best", [4.0], 700),
        record(OURS, "best", [1.0], 500, case="other"),
    ]
    reference, ours, other = tables.summarise(records)
    assert (reference["seconds"], reference["host_peak_mb"], reference["times_faster"]) == (11.0, 2100, 1.0)
    assert (ours["seconds"], ours["times_faster"]) == (3.0, pytest.approx(11 / 3))
    assert ours["memory_share"] == pytest.approx(800 / 2100)
    assert math.isnan(other["times_faster"])
    assert math.isnan(ours["device_peak_mb"])


def test_a_failed_measurement_is_in_the_table_as_failed():
    failed = record(OURS, "best", [], 0)
    failed["failure"] = "failed: out of memory"
    del failed["result"]
    (row,) = tables.summarise([failed])
    assert "failed: out of memory" in tables.network_table([row])
    assert "| nan" not in tables.network_table([row])


def test_an_epoch_of_the_paper_has_88_steps_and_22_validations():
    per_case = {"preprocessing": 2.0, "augmentation": 0.5, "step": 3.0, "validation": 10.0, "metrics": 1.0}
    assert list(cost_epoch(per_case).values()) == [220.0, 44.0, 264.0, 220.0, 22.0]


def test_figures_that_were_not_measured_are_called_so():
    assert tables.number(math.nan) == "not measured"
    assert tables.number(12345.6) == "12,346"
    assert [tables.seconds(value) for value in (123.4, 12.34, 1.234, 0.01234)] == ["123", "12.3", "1.23", "0.0123"]


def test_a_run_writes_its_report_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    arguments = {"output_dir": str(tmp_path), "only": "attention", "device": "cpu", "sizes": TINY}
    assert run_benchmark(**arguments)
    printed = capsys.readouterr().out
    assert "64 positions | fused, best" in printed
    assert printed == (tmp_path / "benchmark.md").read_text(encoding="utf-8") + "\n"
    content = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert len(content["records"]) == 3
    with open(tmp_path / "benchmark.csv", encoding="utf-8", newline="") as file:
        assert [row["setting"] for row in csv.DictReader(file)] == ["plain float32", "float32", "best"]

    del content["records"][1]["result"]  # as if it had failed
    (tmp_path / "benchmark.json").write_text(json.dumps(content), encoding="utf-8")
    measured = []
    monkeypatch.setattr(run, "run_isolated", lambda function, **arguments: measured.append(arguments["setting"]) or {})
    run_benchmark(**arguments)
    assert measured == ["float32"]

    content["machine"]["cores"] = 96
    (tmp_path / "benchmark.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"benchmark\.json: was measured with cores 96, here it is \d+; give another"):
        run_benchmark(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "^repeats: expected a whole number of at least 1, received 0"),
        ({"windows": -1}, "^windows: expected a whole number of at least 0, received -1"),
        (
            {"ckpt_path": str(ROOT / "models/model.pt")},
            r"model\.pt: is not the state dict of a full-size",
        ),
    ],
)
def test_what_a_benchmark_cannot_use_is_refused_before_it_begins(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run_benchmark(**{"output_dir": str(tmp_path), "only": "attention", "device": "cpu", "sizes": TINY} | options)
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_somebodys_input_is_one_in_another_process_too():
    with pytest.raises(InputError, match=r"^much: 'much': is no switch"):
        run_isolated(_is_true, text="much")


def _is_true(text):
    return is_true(text, "much")


def test_a_report_that_is_none_is_refused(tmp_path):
    (tmp_path / "benchmark.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="is not of a benchmark"):
        run_benchmark(output_dir=str(tmp_path), only="attention", sizes=TINY)
