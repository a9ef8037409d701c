"""What the documents name is there: code, tests, config keys, files."""

import importlib
import inspect
import json
import re

import pytest
from monai.bundle import ConfigParser

from scripts.networks import MPUNet
from scripts.options import find_unused
from tests import ROOT

PAPER = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
NAMING = PAPER + (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
TESTS = sorted(set(re.findall(r"`(test_\w+)\.py::(\w+)`", NAMING)))
TEST_FILES = sorted(set(re.findall(r"`(test_\w+)\.py`", NAMING)))
CODE = sorted(set(re.findall(r"`(scripts(?:\.\w+)+)`", NAMING)))
OPTIONS = sorted(set(re.findall(r"`network_def::(\w+)`", PAPER)))


def read_config(name):
    return json.loads((ROOT / f"configs/{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("file, name", TESTS)
def test_a_test_that_a_document_names_is_there(file, name):
    assert callable(getattr(importlib.import_module(f"tests.{file}"), name))


@pytest.mark.parametrize("file", TEST_FILES)
def test_a_test_file_that_a_document_names_is_there(file):
    assert (ROOT / f"tests/{file}.py").is_file()


@pytest.mark.parametrize("name", CODE)
def test_code_that_a_document_names_is_there(name):
    parts, found = name.split("."), None
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            found = getattr(found, attribute)
        break
    assert found is not None


def test_paper_md_has_every_option_of_the_network_that_the_release_has_not():
    arguments = inspect.signature(MPUNet).parameters
    assert set(OPTIONS) <= set(arguments)
    released = {"in_channels", "out_channels", "channels", "dropout", "norm", "elu_alpha", "deep_supervision"}
    assert set(arguments) - released - {"position_attention", "checkpointing"} == set(OPTIONS)


@pytest.mark.parametrize("equation", range(1, 26))
def test_paper_md_has_every_equation(equation):
    spans = re.findall(r"Eq\. ([\d, -]+)", PAPER)
    numbers = set()
    for part in (part for span in spans for part in span.split(",") if part.strip(" -")):
        first, *last = map(int, part.strip(" -").split("-"))
        numbers |= set(range(first, (last or [first])[0] + 1))
    assert equation in numbers


@pytest.mark.parametrize("kind, count", [("Fig", 11), ("Table", 6)])
def test_paper_md_has_every_figure_and_table(kind, count):
    found = {
        int(number) for span in re.findall(rf"{kind}s?\.? ([\d, -]+)", PAPER) for number in re.findall(r"\d+", span)
    }
    assert set(range(1, count + 1)) <= found


def test_paper_json_changes_what_paper_md_says_and_nothing_else():
    train, paper = read_config("train"), read_config("paper")
    table = PAPER.split("## What `configs/paper.json` changes")[1].split("The same in both")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    changed = {key for key in paper if key not in ("_desc_", "+imports")}
    assert changed == documented
    assert all(paper[key] != train[key] for key in changed)


def test_the_defaults_are_the_papers_where_paper_json_is_silent():
    train = read_config("train")
    expected = {
        "window_hu": "$@trained_with.get('window_hu', [-200, 200])", "max_epochs": 600, "learning_rate": 1e-4,
        "learning_rate_decay": 0.5, "learning_rate_interval": 100, "batch_size": 1, "min_slices": 48,
        "target": "$@trained_with.get('target', 'liver')",
    }  # fmt: skip
    assert {key: train[key] for key in expected} == expected
    assert train["optimizer"]["_target_"] == "torch.optim.Adam"
    loss = {"tversky_alpha": 0.3, "tversky_beta": 0.7, "deep_supervision_weight": 0.4, "deep_supervision_decay": 0.8}
    assert {key: train["loss"][key] for key in loss} == loss
    assert train["loss"]["deep_supervision_interval"] == 30
    assert train["network_def"]["dropout"] == "$@trained_with.get('dropout', 0.2)"


@pytest.mark.parametrize(
    "document", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_and_pictures_of_the_documents_are_there(document):
    path = ROOT / document
    for file, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", path.read_text(encoding="utf-8")):
        if not file.startswith("http"):
            target = path.parent / file if file else path
            assert target.exists(), file
            assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def anchors(document):
    """Return how GitHub names the headings of a document in links."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "heading, name", [("Training", "train"), ("Inference", "inference"), ("Evaluation", "evaluate")]
)
def test_knobs_md_has_the_defaults_of_the_configs(heading, name):
    text = (ROOT / "docs/knobs.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w:]+)` \| (.+?) \|", text, re.MULTILINE)
    config = read_config(name)
    assert len(rows) > 1
    for key, default in rows:
        value = config[key.split("::")[0]]
        if default.startswith("`"):
            assert json.loads(default.strip("`")) == value, key
        else:  # said in words, as the config computes it
            assert isinstance(value, list | dict) or value.startswith("$"), key


def read_commands():
    """(document, config files, options) of all `monai.bundle run` in the README, the documents and the Makefile."""
    for path in (ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8").replace("$(BUNDLE)", "python -m monai.bundle run").replace("\\\n", " ")
        for line in re.findall(r"monai\.bundle run(?: [^\n`]*)? --config_file [^\n`]+", text):
            files = re.findall(r"configs/(\w+)\.json", re.search(r'--config_file ("\[.*?\]"|\S+)', line)[1])
            yield path.name, files, re.findall(r"--([\w:#-]+)", line)


COMMANDS = list(read_commands())


def test_the_documents_have_commands():
    assert len(COMMANDS) > 20


@pytest.mark.parametrize(("document", "files", "options"), COMMANDS)
def test_the_configs_of_a_documented_command_use_its_options(document, files, options):
    config = ConfigParser.load_config_files([str(ROOT / f"configs/{name}.json") for name in files])
    typed = set(options) - {"config_file", "tracking"}  # MONAI's own
    assert files[0] in ("train", "inference")
    parser = ConfigParser(config)
    parser.update(dict.fromkeys(typed, ""))
    assert [option for option in typed if find_unused(option, parser.get())] == [], document
