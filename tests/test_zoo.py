"""What MONAI's Model Zoo and the Hugging Face Hub ask of a bundle.

Its metadata's schema, its network's input and output, and its exports are tested in test_configs.py.
"""

import json
import re

import pytest
from monai.bundle import ConfigParser

from scripts.pack import NAME, list_files
from tests import ROOT

METADATA = json.loads((ROOT / "configs/metadata.json").read_text(encoding="utf-8"))
CARD = (ROOT / "docs/README.md").read_text(encoding="utf-8")
PYTHON = sorted((ROOT / "scripts").rglob("*.py"))


def test_the_files_that_every_bundle_has_are_packed():
    needed = {
        "LICENSE",
        "configs/metadata.json",
        "configs/inference.json",
        "configs/train.json",
        "configs/logging.conf",
    }
    assert needed | {"docs/README.md", "docs/data_license.txt", "scripts/__init__.py"} <= set(list_files())


def test_the_name_of_the_folder_is_lower_case_and_of_none_that_monai_label_takes_for_something_else():
    assert re.fullmatch(r"[a-z][a-z0-9_]*", NAME)
    assert not [word for word in ("deepedit", "deepgrow", "detection", "classification") if word in NAME]


@pytest.mark.parametrize(
    "keys, kind",
    [
        ("name version authors copyright task description data_type intended_use", str),
        ("data_source image_classes label_classes pred_classes", str),
        ("changelog required_packages_version", dict),
    ],
)
def test_the_metadata_have_what_the_zoo_s_page_shows(keys, kind):
    assert {key for key in keys.split() if not (isinstance(METADATA[key], kind) and METADATA[key])} == set()
    assert isinstance(METADATA["supported_apps"], dict)


def test_versions_have_three_numbers_and_the_changelog_begins_with_the_bundle_s():
    for version in (*METADATA["changelog"], METADATA["monai_version"], METADATA["pytorch_version"]):
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    versions = [tuple(map(int, version.split("."))) for version in METADATA["changelog"]]
    assert versions == sorted(versions, reverse=True)
    assert next(iter(METADATA["changelog"])) == METADATA["version"]


@pytest.mark.parametrize("name", ["train", "inference"])
def test_a_config_has_the_ids_that_monai_s_tools_look_up(name):
    config = ConfigParser(ConfigParser.load_config_file(str(ROOT / f"configs/{name}.json")))
    shared = "bundle_root device dataset_dir network_def network initialize run"
    parts = "dataset dataset::data inferer preprocessing postprocessing handlers"
    of_kind = {
        "train": [f"{part}::{key}" for part in ("train", "validate") for key in [*parts.split(), "key_metric"]]
        + ["train::trainer", "validate::evaluator", "val_interval"],
        "inference": [*parts.split(), "evaluator"],
    }
    assert [key for key in [*shared.split(), *of_kind[name]] if key not in config] == []


def test_lines_of_code_have_at_most_120_columns():
    long = [path for path in PYTHON for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 120]
    assert len(PYTHON) > 10
    assert long == []


def test_no_file_is_larger_than_a_repository_takes():
    assert [
        name for name in list_files() if (ROOT / name).stat().st_size > 50e6 and not name.startswith("models/")
    ] == []


def test_the_model_card_begins_with_what_the_hub_shows():
    front = re.match(r"---\n(.*?)\n---\n\n# ", CARD, re.DOTALL)[1]
    values = dict(re.findall(r"^(\w+): (.+)$", front, re.MULTILINE))
    assert values == {"license": "apache-2.0", "library_name": "monai", "pipeline_tag": "image-segmentation"}
    assert re.findall(r"^- (.+)$", front.split("tags:")[1], re.MULTILINE)[:2] == ["monai", "medical"]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
