"""A config knows where its bundle lies, unless it is told otherwise."""

import pytest
from monai.bundle import ConfigParser

from scripts.location import locate_bundle
from tests import ROOT


@pytest.mark.parametrize(
    "given, is_in_bundle, expected",
    [(".", False, str(ROOT)), (".", True, "."), ("/data/bundle", False, "/data/bundle")],
)
def test_the_bundle_root_is_the_bundle_s_folder_unless_one_is_given(
    tmp_path, monkeypatch, given, is_in_bundle, expected
):
    monkeypatch.chdir(ROOT if is_in_bundle else tmp_path)
    config = {"bundle_root": given, "place": {"_target_": "scripts.location.locate_bundle"}}
    parser = ConfigParser(config | {"weights": "$@bundle_root + '/models/model.pt'"})
    parser.get_parsed_content("place")
    assert parser.get_parsed_content("weights") == expected + "/models/model.pt"


def test_what_could_not_be_imported_before_is_imported_again(tmp_path, monkeypatch):
    (tmp_path / "later.py").write_text("ANSWER = 42\n", encoding="utf-8")
    config = {
        "imports": ["$import sys", "$from later import ANSWER"],
        "bundle_root": ".",
        "path": f"$sys.path.insert(0, {str(tmp_path)!r})",
        "place": {"_target_": "scripts.location.locate_bundle"},
        "answer": "$ANSWER",
    }
    monkeypatch.syspath_prepend(tmp_path / "nothing")  # restores the path afterwards
    parser = ConfigParser(config)
    for key in ("path", "place"):
        parser.get_parsed_content(key)
    assert parser.get_parsed_content("answer") == 42


def test_without_a_config_nothing_happens():
    locate_bundle()
