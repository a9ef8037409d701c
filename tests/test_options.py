"""An option that was typed for `monai.bundle run`, and that no config has, is refused before anything is done."""

import copy
import json
import re
import subprocess
import sys

import pytest
from monai.bundle import ConfigParser

from scripts.errors import InputError
from tests import ROOT


def check(monkeypatch, config, *typed):
    monkeypatch.setattr(sys, "argv", ["monai", "run", *typed])
    check_item = {"_target_": "scripts.options.check_options"}
    parser = ConfigParser(config | {"initialize": [check_item]})
    try:
        parser.get_parsed_content("initialize")
    except RuntimeError as error:
        raise error.__cause__ from None


def given(config, typed):
    """The config with the typed option's value in it, as MONAI puts it there."""
    parser = ConfigParser(copy.deepcopy(config))
    name, _, value = typed[0].removeprefix("--").replace("-", "_").partition("=")
    if re.search("#|::", name):
        parser.update({name: value or typed[1]})
    return parser.get()


CONFIG = {
    "preview": True,
    "size": [4, 4, 4],
    "spacing": 3.0,
    "reports": {"_target_": "builtins.dict", "preview": "@preview", "size": "$max(@size)"},
    "variation": {"noise": 0.1, "blur": 0.2},
    "whole": {"first": 1, "second": {"third": 2}},
    "network": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": "@whole"},
    "transform": {"_target_": "RandFlipd", "_disabled_": True, "keys": "image", "prob": "@variation::noise"},
    "trainer": {"blur": "$@variation#blur", "crop": {"_target_": "CenterSpatialCrop", "roi_size": [3]}},
    "unused": 1,
    "save_execute_config": None,
    "run": "$print(@spacing)",
}


@pytest.mark.parametrize(
    "typed",
    [
        ("--preview", "false"),
        ("--preview=false",),
        ("--size", "[8,8,8]"),
        ("--size#0", "8"),
        ("--reports::preview", "false"),
        ("--reports::anything", "false"),
        ("--variation::noise", "0"),
        ("--variation#blur=0",),
        ("--whole::first", "0"),
        ("--whole::second::third", "0"),
        ("--network::padding_mode", "zeros"),
        ("--network::in-channels", "2"),
        ("--transform::_disabled_", "false"),
        ("--transform::spatial_axis", "0"),
        ("--trainer::crop::roi_size", "5"),
        ("--trainer::crop::roi_size#0", "5"),
        ("--run", "$print(1)"),
        ("--config_file", str(ROOT / "configs/inference.json")),
        ("--save_execute_config", "false"),
        ("run", "unused"),
    ],
)
def test_options_that_the_config_uses_are_taken_and_so_are_monai_s_own(monkeypatch, typed):
    check(monkeypatch, given(CONFIG, typed), *typed)


@pytest.mark.parametrize(
    ("added", "typed", "hint"),
    [
        ({"previw": False}, ("--previw", "false"), "did you mean --preview?"),
        ({"previw": False}, ("--previw=false",), "did you mean --preview?"),
        ({"sizes": [8, 8, 8]}, ("--sizes", "[8,8,8]"), "did you mean --size?"),
        ({"spacing_": {"x": 1}}, ("--spacing_::x", "1"), "did you mean --spacing?"),
        ({"spac_ing": 2}, ("--spac-ing", "2"), "did you mean --spacing?"),
        ({}, ("--unused", "2"), "docs/knobs.md has those that people use"),
        ({}, ("--variation::niose", "0"), "did you mean --variation::noise?"),
        ({}, ("--variation::xyz", "0"), "docs/knobs.md has those that people use"),
        ({}, ("--network::padding_mod", "zeros"), "did you mean --network::padding_mode?"),
        ({}, ("--transform#probb", "0.5"), "did you mean --transform::prob?"),
        ({}, ("--trainer::crop::roi-sizes=5",), "did you mean --trainer::crop::roi_size?"),
        ({}, ("--network::target", "x"), "docs/knobs.md has those that people use"),
    ],
)
def test_an_option_that_nothing_uses_is_refused_and_one_like_it_named(monkeypatch, added, typed, hint):
    with pytest.raises(InputError) as caught:
        check(monkeypatch, given(CONFIG | added, typed), *typed)
    assert str(caught.value) == f"{typed[0].split('=')[0]}: these configs have no such setting; {hint}"


@pytest.mark.parametrize(
    ("read", "typed"),
    [
        (20261127, ("--dataset_dir", "20261127")),
        (20261127, ("--dataset-dir", "20261127")),
        (["a"], ("--dataset_dir=['a']",)),
    ],
)
def test_a_path_that_was_read_as_something_else_is_refused(monkeypatch, read, typed):
    config = CONFIG | {"dataset_dir": read, "images": "$@dataset_dir"}
    with pytest.raises(InputError) as caught:
        check(monkeypatch, config, *typed)
    assert str(caught.value) == f"--dataset_dir: was read as {read!r}, not as a path; write ./ before its name"
    check(monkeypatch, config)


def test_an_empty_path_and_weights_that_are_not_there_are_refused(monkeypatch, tmp_path):
    config = CONFIG | {"images": "$@output_dir", "weights": "$@pretrained"}
    with pytest.raises(InputError, match=r"^--output_dir: is empty; give a path"):
        check(monkeypatch, config | {"output_dir": ""}, "--output_dir", "")
    with pytest.raises(InputError, match=r"^--pretrained: is empty; give a path"):
        check(monkeypatch, config | {"pretrained": ""}, "--pretrained", "")
    weights = tmp_path / "model.pt"
    with pytest.raises(InputError, match=r"model.pt: no such file; --pretrained names the weights to begin with"):
        check(monkeypatch, config | {"pretrained": str(weights)}, "--pretrained", str(weights))
    weights.touch()
    check(monkeypatch, config | {"pretrained": str(weights)}, "--pretrained", str(weights))


def test_a_name_of_nothing_that_could_be_run_is_refused(monkeypatch):
    config = CONFIG | {"training": ["$@trainer.run()"]}
    check(monkeypatch, config, "training", "--preview", "false")
    with pytest.raises(InputError) as caught:
        check(monkeypatch, config, "trainning", "--preview", "false")
    assert str(caught.value) == (
        "trainning: there is nothing of that name to run in these configs, but training; "
        "mend it, or add the config that has it"
    )


def test_a_training_that_would_keep_no_weights_is_refused(monkeypatch):
    config = CONFIG | {"training": ["$@trainer.run()"], "epochs": "$(@max_epochs, @val_interval)"}
    check(monkeypatch, config | {"max_epochs": 5, "val_interval": 5}, "training", "--max_epochs", "5")
    config |= {"max_epochs": 4, "val_interval": 5}
    with pytest.raises(InputError, match=r"^--max_epochs: 4 is less than --val_interval, 5: .* give --val_interval 4"):
        check(monkeypatch, config, "training", "--max_epochs", "4")
    check(monkeypatch, config, "run", "--max_epochs", "4")


def test_a_value_that_the_knob_does_not_take_is_refused(monkeypatch):
    config = CONFIG | {"overlap": 25, "window": "$@overlap"}
    with pytest.raises(InputError, match=r"^--overlap: expected a number from 0 to below 1, received 25$"):
        check(monkeypatch, config, "--overlap", "25")
    check(monkeypatch, config)


@pytest.mark.parametrize("joined", ["['{0}','{1}']", "{0},{1}"])
def test_a_word_is_taken_for_what_is_a_component_in_one_of_the_config_files_alone(monkeypatch, tmp_path, joined):
    base = CONFIG | {"device": "cpu", "place": "$@device"}
    overlay = {"device": {"_target_": "builtins.str"}, "place": {"_target_": "builtins.str", "object": "@device"}}
    for name, config in (("base", base), ("overlay", overlay)):
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    named = ["--config_file", joined.format(tmp_path / "base.json", tmp_path / "overlay.json")]
    check(monkeypatch, base | overlay | {"device": "cpu"}, *named, "--device", "cpu")


def test_what_is_no_switch_is_refused_by_its_name(monkeypatch):
    config = CONFIG | {
        "pictures": {"_target_": "builtins.dict", "_disabled_": "$not is_true(@preview) or is_true(@all)"}
    }
    check(monkeypatch, config | {"preview": "off", "all": "$True"}, "--preview", "off", "--all", "$True")
    with pytest.raises(InputError, match=r"^--preview: 'flase': is no switch; write true or false$"):
        check(monkeypatch, config | {"preview": "flase"}, "--preview", "flase")


@pytest.mark.parametrize("read", ["20261127", None])
def test_a_path_and_none_are_taken(monkeypatch, read):
    check(monkeypatch, CONFIG | {"cache_dir": read, "images": "$@cache_dir"}, "--cache_dir", str(read))


def test_what_a_file_or_a_program_adds_is_not_looked_at(monkeypatch):
    check(monkeypatch, CONFIG | {"previw": False}, "--preview", "false")


@pytest.mark.parametrize("flag", [["--config_file", "{}"], ["--config-file={}"], ["--config_file", "['{}']"]])
def test_a_word_for_a_whole_component_is_refused(monkeypatch, tmp_path, flag):
    config = CONFIG | {"dataset_dir": "data", "dataset": {"_target_": "builtins.dict", "folder": "@dataset_dir"}}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    named = [part.format(file) for part in flag]
    with pytest.raises(InputError) as caught:
        check(monkeypatch, config | {"dataset": "scans"}, *named, "--dataset", "scans")
    assert str(caught.value) == (
        "--dataset: is a part of these configs and takes no word, received 'scans'; did you mean --dataset_dir?"
    )
    with pytest.raises(InputError, match=r"'x'; docs/knobs.md has the settings$"):
        check(monkeypatch, config | {"reports": "x"}, *named, "--reports", "x")
    check(monkeypatch, config | {"dataset": "$@dataset_dir"}, *named, "--dataset", "$@dataset_dir")
    check(monkeypatch, config | {"dataset_dir": "scans"}, *named, "--dataset_dir", "scans")
    check(monkeypatch, config | {"dataset": {"_target_": "builtins.dict"}}, *named, "--dataset", "{...}")


@pytest.mark.parametrize("config", ["train", "inference"])
def test_the_command_ends_with_one_line(config, tmp_path):
    command = ["-m", "monai.bundle", "run", "--config_file", f"configs/{config}.json", "--output_dirr", str(tmp_path)]
    process = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last == "error: --output_dirr: these configs have no such setting; did you mean --output_dir?"
    assert not list(tmp_path.iterdir())
