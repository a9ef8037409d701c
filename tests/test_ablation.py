"""Variants are trained alike, what is finished is not done again, and the table has their means and differences."""

import csv
import json
import math
import re

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.ablation import Run, choose_variants, read_plan, run_ablation, tabulate
from scripts.errors import InputError
from scripts.losses import TverskyCrossEntropyLoss
from scripts.phantom import write_phantoms
from scripts.report.page import slug
from tests import ROOT

PLAN = ROOT / "configs/ablation.json"
SETTINGS, VARIANTS = read_plan(PLAN)


def finish(run, dice, tumor=(), parameters=10, steps=0.5):
    """Leave what a training and evaluation of the run leave: Dice of each case by (class, case)."""
    (run.folder / "evaluation").mkdir(parents=True, exist_ok=True)
    (run.folder / "overlay.json").write_text(json.dumps(run.overlay), encoding="utf-8")
    facts = {"parameters": parameters, "seconds_per_step": steps, "peak_memory_mb": None}
    (run.folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    rows = [("liver", f"case-{index}", value, 10 * value) for index, value in enumerate(dice)]
    rows += [("tumor", f"case-{index}", value, "") for index, value in enumerate(tumor)]
    with open(run.folder / "evaluation/per_case.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("class", "case", "dice", "hd95_mm"), *rows])
    (run.folder / "evaluation/summary.csv").write_text("", encoding="utf-8")
    return True


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(str(folder), cases=4, seed=0, size=(48, 48, 40))
    return str(folder)


def runs_with(tmp_path, **dice_of_seeds):
    """Finished runs: name → a list of cases' Dice for each seed."""
    runs = []
    for name, seeds in dice_of_seeds.items():
        for seed, dice in enumerate(seeds):
            runs.append(Run(name, seed, tmp_path / name / str(seed), {}))
            finish(runs[-1], dice)
    return runs


def write_plan(tmp_path, **plan):
    path = tmp_path / "plan.json"
    path.write_text(
        json.dumps(
            {"settings": {"max_epochs": 2, "min_slices": 32}, "variants": {"first": {}, "second": {"amp": False}}}
            | plan
        )
    )
    return path


# --- the plan ----------------------------------------------------------------------------------------------------


def test_the_shipped_plan_has_eight_variants_and_three_peers():
    peers = {"DynUNet (nnU-Net)", "SegResNet", "SwinUNETR"}
    assert peers < set(VARIANTS)
    assert len(set(VARIANTS) - peers) >= 8
    assert len({slug(name) for name in VARIANTS}) == len(VARIANTS)
    assert not any("," in name for name in VARIANTS)  # names are separated by commas on the command line


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_the_shipped_plan_learns_from_a_crop(name):
    torch.manual_seed(0)
    config = ConfigParser(ConfigParser.load_config_files([str(ROOT / "configs/train.json")]))
    for key, value in (SETTINGS | VARIANTS[name]).items():
        config[key] = value
    network = config.get_parsed_content("network_def").train()
    image = torch.randn(1, 1, 64, 32, 32)
    result = network(image)
    loss = TverskyCrossEntropyLoss()(result, (image > 1).long())
    loss.backward()
    assert result.shape[-4] == 3
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not a plan of an ablation"),
        ('{"settings": {}}', "not a plan of an ablation"),
        ('{"settings": {}, "variants": []}', "not a plan of an ablation"),
        ('{"settings": {"epochs": 1}, "variants": {}}', "settings sets 'epochs', a key that configs/train.json"),
        ('{"settings": {}, "variants": {"wide": {"netwrok_def::channels": []}}}', "wide sets 'netwrok_def::channels'"),
    ],
)
def test_a_plan_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "plan.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)):
        read_plan(tmp_path / "plan.json")


def test_a_plan_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: not a plan"):
        read_plan(tmp_path / "none.json")


def test_variants_are_chosen_in_the_order_of_the_plan():
    assert choose_variants({"a": {}, "b": {}, "c": {}}, ["c", "a"]) == ["a", "c"]
    assert choose_variants({"a": {}, "b": {}}, []) == ["a", "b"]
    with pytest.raises(InputError, match="no variant 'd'; there are a, b"):
        choose_variants({"a": {}, "b": {}}, ["d"])


# --- the table ---------------------------------------------------------------------------------------------------


def test_the_table_has_mean_and_sd_over_seeds(tmp_path):
    (row,) = tabulate(runs_with(tmp_path, plain=[[0.8, 0.6], [0.9, 0.9]]), "plain")
    assert row["runs"] == 2
    assert row["dice_liver"] == pytest.approx(0.8)  # of 0.7 and 0.9
    assert row["dice_liver_sd"] == pytest.approx(0.2 / math.sqrt(2))
    assert row["hd95_liver_mm"] == pytest.approx(8)
    assert row["parameters"] == 10
    assert math.isnan(row["dice_tumor"])
    assert math.isnan(row["peak_memory_mb"])


def test_cases_without_a_tumour_do_not_count_for_its_dice(tmp_path):
    run = Run("plain", 0, tmp_path, {})
    finish(run, [0.5], tumor=[0.2, math.nan, 0.4])
    assert tabulate([run], "plain")[0]["dice_tumor"] == pytest.approx(0.3)


def test_changes_are_paired_by_case_and_averaged_over_seeds_first(tmp_path):
    runs = runs_with(tmp_path, plain=[[0.5, 0.7], [0.5, 0.7]], better=[[0.6, 0.7], [0.8, 0.9]])
    plain, better = tabulate(runs, "plain")
    assert math.isnan(plain["dice_liver_change"])
    # cases: (0.7 - 0.5, 0.8 - 0.7) = (0.2, 0.1); mean 0.15, standard error 0.05, t of one degree of freedom 12.706
    assert better["dice_liver_change"] == pytest.approx(0.15)
    assert better["dice_liver_change_95"] == pytest.approx(12.706 * 0.05, rel=1e-4)


def test_only_seeds_that_both_have_are_compared(tmp_path):
    runs = runs_with(tmp_path, plain=[[0.5, 0.7]], better=[[0.6, 0.7], [1.0, 1.0]])
    assert tabulate(runs, "plain")[1]["dice_liver_change"] == pytest.approx(0.05)


# --- the command -------------------------------------------------------------------------------------------------


def test_every_variant_and_seed_is_run_with_the_shared_settings_and_its_own(dataset, tmp_path, capsys):
    done = []

    def execute(run):
        done.append(run)
        return finish(run, [0.9 if run.variant == "second" else 0.8] * 2)

    assert run_ablation(dataset, str(tmp_path / "out"), (), (0, 1), str(write_plan(tmp_path)), execute)
    assert [(run.variant, run.seed) for run in done] == [("first", 0), ("second", 0), ("first", 1), ("second", 1)]
    assert done[1].overlay["amp"] is False
    assert [run.overlay["max_epochs"] for run in done] == [2] * 4
    assert {run.overlay["dataset_dir"] for run in done} == {str(tmp_path / "out/cases.json")}  # one split for all
    assert json.loads((tmp_path / "out/cases.json").read_text(encoding="utf-8"))["seed"] == 0
    assert len({run.overlay["ckpt_path"] for run in done}) == 4
    table = (tmp_path / "out/ablation.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert "| second | 2 | **0.900** ± 0.000 | +0.100 ± 0.000 |" in table
    assert all((tmp_path / f"out/ablation.{suffix}").stat().st_size > 1000 for suffix in ("png", "svg"))


def test_what_is_finished_is_not_done_again(dataset, tmp_path):
    arguments = (dataset, str(tmp_path / "out"), (), (0,), str(write_plan(tmp_path)))
    run_ablation(*arguments, execute=lambda run: finish(run, [0.5, 0.6]))
    assert run_ablation(*arguments, execute=lambda run: pytest.fail(f"{run.variant} is run again"))


def test_a_finished_ablation_does_not_answer_for_other_data(dataset, tmp_path):
    arguments = (str(tmp_path / "out"), (), (0,), str(write_plan(tmp_path)))
    run_ablation(dataset, *arguments, execute=lambda run: finish(run, [0.5, 0.6]))
    with pytest.raises(InputError, match=r"out/cases.json: is of runs on other data than .*/other; give another"):
        run_ablation(str(tmp_path / "other"), *arguments, execute=lambda run: pytest.fail("is run"))


def test_a_finished_run_with_other_settings_is_not_taken_for_this_one(dataset, tmp_path):
    arguments = (dataset, str(tmp_path / "out"), (), 0)
    run_ablation(*arguments, str(write_plan(tmp_path)), execute=lambda run: finish(run, [0.5, 0.6]))
    other = write_plan(tmp_path, settings={"max_epochs": 3, "min_slices": 32})
    with pytest.raises(InputError, match=r"overlay.json: was run with other settings; remove the folder"):
        run_ablation(*arguments, str(other), execute=lambda run: True)


def test_a_variant_that_fails_is_said_and_the_others_go_on(dataset, tmp_path, capsys):
    def execute(run):
        return run.variant == "first" and finish(run, [0.5, 0.6])

    assert not run_ablation(dataset, str(tmp_path), (), (0, 1), str(write_plan(tmp_path)), execute)
    captured = capsys.readouterr()
    assert captured.err.count("second, seed 0: failed, see") == 1
    assert "| first | 2 |" in captured.out
    assert "| second |" not in captured.out


@pytest.mark.slow
def test_a_small_ablation_runs_for_real(dataset, tmp_path):
    plan = write_plan(
        tmp_path,
        settings={
            "spacing": [8, 8, 8], "roi_size": [32, 32, 32], "network_def::channels": [8, 8, 8, 8, 8], "num_workers": 0,
            "min_slices": 32, "max_epochs": 1, "val_interval": 1, "target": "liver_and_tumor",
        },
        variants={"plain": {}, "wrong": {"network_def::no_such_argument": 1}},
    )  # fmt: skip
    assert not run_ablation(dataset, str(tmp_path / "out"), (), (0, 1), str(plan))
    assert "no_such_argument" in (tmp_path / "out/wrong/seed-0/log.txt").read_text(encoding="utf-8")
    with open(tmp_path / "out/ablation.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["variant"], row["runs"]) == ("plain", "2")
    assert 0 <= float(row["dice_liver"]) <= 1
    assert float(row["seconds_per_step"]) > 0
