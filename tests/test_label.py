"""What the MONAI Label server is given: a copy of the bundle, of which the weights stay when it starts again."""

import json
import shutil

import pytest

from label.start import prepare, start
from scripts.errors import InputError
from scripts.files import sum_file
from scripts.pack import NAME, list_files
from tests import ROOT


def weights(folder, content=b"weights", settings=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.pt").write_bytes(content)
    if settings is not None:
        (folder / "model.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder / "model.pt"


def copy_bundle(folder):
    for name in list_files():
        if not name.startswith("models/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_the_app_folder_has_the_app_the_bundle_and_the_weights_with_their_settings(tmp_path):
    own = prepare(tmp_path / "app", weights=weights(tmp_path / "mine", settings={"spacing": [2, 2, 2]}))
    bundle = tmp_path / "app/model" / NAME
    assert own == bundle / "models/model.pt"
    assert own.read_bytes() == b"weights"
    assert json.loads(own.with_suffix(".json").read_text(encoding="utf-8")) == {"spacing": [2, 2, 2]}
    assert (tmp_path / "app/main.py").read_bytes() == (ROOT / "label/main.py").read_bytes()
    for name in list_files():
        if not name.startswith("models/"):
            assert (bundle / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_what_was_trained_there_stays_and_the_rest_is_renewed(tmp_path):
    given = weights(tmp_path / "mine")
    own = prepare(tmp_path / "app", weights=given)
    own.write_bytes(b"trained")
    (own.parents[1] / "configs/inference.json").write_text("old", encoding="utf-8")
    assert prepare(tmp_path / "app", weights=given).read_bytes() == b"trained"
    assert json.loads((own.parents[1] / "configs/inference.json").read_text(encoding="utf-8"))


def test_other_weights_than_those_that_are_served_are_refused_and_nothing_is_changed(tmp_path):
    own = prepare(tmp_path / "app", weights=weights(tmp_path / "mine"))
    own.write_bytes(b"trained")
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / "app", weights=weights(tmp_path / "others", b"others"))
    assert str(caught.value) == (
        f"{tmp_path}/others/model.pt: not the weights that {tmp_path}/app serves: those of an earlier start, maybe "
        f"trained since; give another --app_dir, or delete {own}"
    )
    assert own.read_bytes() == b"trained"
    own.unlink()
    assert prepare(tmp_path / "app", weights=tmp_path / "others/model.pt").read_bytes() == b"others"
    with pytest.raises(InputError, match=r"mine/model.pt: not the weights that"):
        prepare(tmp_path / "app", weights=tmp_path / "mine/model.pt")


def test_that_the_bundle_has_other_weights_by_now_is_said_in_one_line_and_those_of_the_server_stay(tmp_path, capsys):
    root = copy_bundle(tmp_path / "bundle")
    source = weights(root / "models", b"first", {"spacing": [2, 2, 2]})
    own = prepare(tmp_path / "app", root)
    own.write_bytes(b"trained")
    prepare(tmp_path / "app", root)
    assert capsys.readouterr().out == ""
    weights(root / "models", b"second")
    assert prepare(tmp_path / "app", root).read_bytes() == b"trained"
    assert capsys.readouterr().out == (
        f"{source}: not the weights that {tmp_path}/app serves: those of an earlier start, maybe trained since; to "
        f"serve the bundle's, give another --app_dir, or delete {own}\n"
    )
    (root / "models/model.json").unlink()
    sum_file(own).touch()  # of what was trained
    own.unlink()
    assert prepare(tmp_path / "app", root).read_bytes() == b"second"
    assert not own.with_suffix(".json").exists()  # it was of the first
    assert not sum_file(own).exists()


@pytest.mark.parametrize("given, settings", [("liver_and_tumor", None), (None, {"target": "liver_and_tumor"})])
def test_the_target_given_or_trained_for_is_that_of_both_configs_and_of_the_metadata(tmp_path, given, settings):
    own = prepare(tmp_path / "app", target=given, weights=weights(tmp_path / "mine", settings=settings))
    configs = own.parents[1] / "configs"
    for name in ("train", "inference"):
        assert json.loads((configs / f"{name}.json").read_text(encoding="utf-8"))["target"] == "liver_and_tumor"
    pred = json.loads((configs / "metadata.json").read_text(encoding="utf-8"))["network_data_format"]["outputs"]["pred"]
    assert pred["num_channels"] == 3
    assert pred["channel_def"] == {"0": "background", "1": "liver", "2": "tumor"}


@pytest.mark.parametrize(
    "settings, labels", [(None, "1 liver\n"), ({"target": "liver_and_tumor"}, "1 liver, 2 tumor\n")]
)
def test_it_says_which_labels_the_weights_find(tmp_path, monkeypatch, capsys, settings, labels):
    monkeypatch.setattr("os.execv", lambda *_: None)  # the server
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("MONAI_LABEL_AUTO_UPDATE_SCORING", "")
    start(str(tmp_path), str(tmp_path / "app"), weights=str(weights(tmp_path / "mine", settings=settings)))
    assert f"labels    {labels}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "is_said"), [("1.dcm", True), ("ct.mha", True), ("ct.nii.gz", False)])
def test_a_folder_without_images_that_the_server_finds_is_said(tmp_path, monkeypatch, capsys, name, is_said):
    monkeypatch.setattr("os.execv", lambda *_: None)  # the server
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("MONAI_LABEL_AUTO_UPDATE_SCORING", "")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).touch()
    start(str(tmp_path / "images"), str(tmp_path / "app"))
    said = "images: has no images of .nii, .nii.gz, .nrrd; of DICOM give the URL of a DICOMweb server as --studies"
    assert (said in capsys.readouterr().out) is is_said


def test_without_weights_or_with_an_unknown_target_it_says_so(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.pt: no such file; train, or give the weights by --weights"):
        prepare(tmp_path / "app", weights=tmp_path / "nowhere.pt")
    prepare(tmp_path / "served", weights=weights(tmp_path / "mine"))
    with pytest.raises(InputError, match=r"nowhere.pt: no such file"):
        prepare(tmp_path / "served", weights=tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match="'spleen' is unknown"):
        prepare(tmp_path / "app", target="spleen", weights=weights(tmp_path / "mine"))
