"""Nobody gets in: an attack each on what is read from data, names, archives and weights, and none comes through."""

import ast
import csv
import gzip
import io
import itertools
import logging
import os
import pickle
import re
import sys
import zipfile

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import download, run

from scripts import inference
from scripts.cases import Case, check_case, find_cases
from scripts.convert_released_weights import convert
from scripts.errors import InputError
from scripts.files import write_table, write_weights
from scripts.handlers import RunCheckpoint, WeightsCheckpointLoader
from scripts.report.__main__ import write_report
from scripts.report.read import CASE_METRICS, METRICS
from tests import ROOT
from tests.jobs import input_error_of
from tests.niftis import make_image, make_label, save, save_case, write_json

ORACLE = {"_target_": "tests.oracle.ThresholdOracle", "threshold": 0.0}  # finds what is above 0 HU


@pytest.fixture
def run_bundle(tmp_path):
    """Run configs with a network without weights; give its ``out`` folder."""
    torch.save({}, tmp_path / "weights.pt")

    def run_configs(*names, **overrides):
        settings = {
            "network_def": ORACLE,
            "bundle_root": str(ROOT),
            "output_dir": str(tmp_path / "out"),
            "ckpt_path": str(tmp_path / "weights.pt"),
            "device": "cpu",
            "roi_size": [16, 16, 16],
            "spacing": [3.0, 3.0, 4.0],
        }
        run(config_file=[str(ROOT / f"configs/{name}.json") for name in names], **(settings | overrides))
        return tmp_path / "out"

    return run_configs


# --- files that execute code when they are loaded -----------------------------------------------------------------


class Bomb:
    """What is run when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def torch_file(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


BOMBS = {
    "a PyTorch file": lambda bomb: torch_file({"weight": bomb}),
    "a PyTorch file of a whole network": lambda bomb: torch_file(bomb),
    "a bare pickle": pickle.dumps,
}
READERS = {
    "weights": lambda path: WeightsCheckpointLoader(torch.nn.Linear(1, 1), path)(None),
    "a checkpoint to resume": lambda path: RunCheckpoint({}, path, resume=True).load(Engine(lambda *_: None)),
    "a checkpoint to convert": lambda path: convert(str(path), str(path.parent / "model.pt")),
    "an image of a datalist": lambda path: check_file(path),
    "a datalist": find_cases,
}


def check_file(path):
    """Check the file as the image of a sound label; a finding is the refusal."""
    label = save(path.parent / "label.nii", make_label())
    findings = check_case(Case("case", str(path), str(label)), min_slices=1).findings
    raise InputError("; ".join(map(str, findings)))


@pytest.mark.parametrize("reader, bomb", itertools.product(READERS, BOMBS))
def test_a_file_that_would_execute_code_is_refused_and_executes_none(tmp_path, reader, bomb):
    for suffix in (".pt", ".npy", ".npz", ".pkl", ".json", ".nii"):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(BOMBS[bomb](Bomb(tmp_path / "pwned")))
        assert f"file{suffix}" in input_error_of(READERS[reader], path)
    assert not (tmp_path / "pwned").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "pwned")))
    assert (tmp_path / "pwned").exists()  # so the bombs are real


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_an_array_file_with_objects_is_refused_and_executes_no_code(tmp_path, suffix):
    array = np.array([Bomb(tmp_path / "pwned")], dtype=object)
    with open(tmp_path / f"file.{suffix}", "wb") as file:
        (np.save if suffix == "npy" else np.savez)(file, array)
    assert "cannot be read" in input_error_of(check_file, tmp_path / f"file.{suffix}")
    assert not (tmp_path / "pwned").exists()


def test_inference_with_weights_that_would_execute_code_is_refused(tmp_path, run_bundle):
    save(tmp_path / "ct.nii", make_image())
    torch.save({"weight": Bomb(tmp_path / "pwned")}, tmp_path / "model.pt")
    settings = {"dataset_dir": str(tmp_path / "ct.nii"), "ckpt_path": str(tmp_path / "model.pt")}
    assert "model.pt: cannot be read as a PyTorch file of tensors" in input_error_of(
        run_bundle, "inference", **settings
    )
    assert not (tmp_path / "pwned").exists()
    assert not list((tmp_path / "out").rglob("*.nii*"))


def test_inference_with_weights_that_are_not_those_of_their_sum_is_refused(tmp_path, run_bundle):
    save(tmp_path / "ct.nii", make_image())
    write_weights({}, tmp_path / "model.pt")
    settings = {"dataset_dir": str(tmp_path / "ct.nii"), "ckpt_path": str(tmp_path / "model.pt")}
    assert (run_bundle("inference", **settings) / "ct_seg.nii.gz").is_file()
    torch.save({"other": torch.zeros(1)}, tmp_path / "model.pt")
    assert "model.pt: is not the file of which" in input_error_of(run_bundle, "inference", **settings)


def test_no_code_of_the_bundle_can_execute_what_it_reads():
    """No pickle, no eval, no shell, and PyTorch files only as tensors, but for what a user runs as TorchScript."""
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ast.unparse(node)
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not re.search(r"\b(pickle|marshal|shelve|dill|joblib|yaml|runpy|code)\b", text), (path, text)
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("eval", "exec", "compile", "os.system", "os.popen"), (path, text)
                assert "shell=" not in text, (path, text)
                if ast.unparse(node.func) == "torch.load":
                    assert "weights_only=True" in text, (path, text)
                if ast.unparse(node.func) == "torch.jit.load":  # of configs/torchscript.json; SECURITY.md warns of it
                    assert path.name == "exported.py", (path, text)


# --- names -------------------------------------------------------------------------------------------------------

NAMES = [
    "$(touch pwned)",
    "`touch pwned`",
    "a; touch pwned; b",
    "a && touch pwned | touch pwned > pwned",
    "$__import__('os').mkdir('pwned')",
    "$@network.to('meta')",
    "@network_def",
    "%network_def",
    "-rf",
    "--help",
    "$x^{$ is no formula",
    "<script>alert(1)</script>".replace("/", ""),
    "%s%n{0}{subject}",
    "a\nb\x1b[31m",
    "~root",
]


def test_names_of_images_are_never_executed_evaluated_or_expanded(tmp_path, run_bundle, monkeypatch):
    (tmp_path / "scans").mkdir()
    monkeypatch.chdir(tmp_path / "scans")
    for name in NAMES:
        save(tmp_path / "scans" / f"{name}.nii.gz", make_image((12, 10, 12)), np.eye(4))
    found = {item["image"] for item in inference.find_images(".")}
    assert {"$@network.to('meta').nii.gz", "@network_def.nii.gz", "%network_def.nii.gz", "-rf.nii.gz"} <= found
    assert {os.path.basename(path) for path in found} == {f"{name}.nii.gz" for name in NAMES}
    out = run_bundle("inference", dataset_dir=".")
    for suffix in (".nii.gz", ".png"):
        assert {path.name for path in out.glob(f"*_seg{suffix}")} == {f"{name}_seg{suffix}" for name in NAMES}
    assert {row["image"] for row in read_table(out / "volumes.csv")} == found
    assert not [path for path in tmp_path.rglob("*") if path.name == "pwned"]
    assert {path.name for path in tmp_path.iterdir()} == {"scans", "out", "weights.pt"}


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_an_image_whose_name_is_no_text_is_segmented(tmp_path, run_bundle):
    name = os.fsdecode(b"ct\xff")
    (tmp_path / "scans").mkdir()
    save(tmp_path / "scans" / f"{name}.nii.gz", make_image((12, 10, 12)), np.eye(4))
    out = run_bundle("inference", dataset_dir=str(tmp_path / "scans"))
    assert (out / f"{name}_seg.nii.gz").is_file()
    (row,) = read_table(out / "volumes.csv")
    assert row["image"].endswith("ct\\udcff.nii.gz")


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_outputs_of_a_datalist_that_points_upwards_stay_in_their_folder(tmp_path, run_bundle):
    """And so do those of cases behind links, and in folders whose names are commands and expressions."""
    folder = tmp_path / "data" / "$(touch pwned)" / "@network"
    cases = [save_case(folder, number) for number in range(3)]
    (tmp_path / "lists" / "deep").mkdir(parents=True)
    items = [
        {"image": os.path.relpath(case.image, tmp_path / "lists/deep"), "label": case.label + "/../" + label}
        for case, label in ((case, os.path.basename(case.label)) for case in cases)
    ]
    for item in items:
        assert item["image"].startswith("../../")
    sections = dict(zip(("training", "validation", "test"), ([item] for item in items), strict=True))
    datalist = write_json(tmp_path / "lists/deep/mine.json", sections)
    before = {path for path in tmp_path.rglob("*")}
    settings = {"min_slices": 1, "num_workers": 0, "spacing": [1.5, 1.5, 2.0]}
    out = run_bundle("train", "evaluate", dataset_dir=str(datalist), **settings)
    made = {path for path in tmp_path.rglob("*")} - before
    assert all(path.is_relative_to(out) for path in made)
    assert (out / "evaluation/predictions/volume-2_seg.nii.gz").is_file()
    assert not [path for path in made if "pwned" in path.name]


def test_a_mask_does_not_follow_a_link_that_lies_in_its_place(tmp_path, run_bundle):
    save(tmp_path / "ct.nii", make_image())
    (tmp_path / "precious").write_text("precious", encoding="utf-8")
    (tmp_path / "out").mkdir()
    for name in ("ct_seg.nii.gz", "volumes.csv", "ct_seg.png"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
    out = run_bundle("inference", dataset_dir=str(tmp_path / "ct.nii"))
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "precious"
    assert nib.load(out / "ct_seg.nii.gz").shape == make_image().shape


def test_a_page_of_runs_whose_names_are_markup_has_them_as_text(tmp_path):
    folder = tmp_path / "<script>alert(1)<" / "$x^{$"
    folder.mkdir(parents=True)
    epoch = {"epoch": 1, "seconds": 1.0, "loss": 1.0} | dict.fromkeys(METRICS, 0.5)
    case = {"case": "<img src=x onerror=alert(2)>", "class": "liver"} | dict.fromkeys(CASE_METRICS, 0.5)
    for name, row in (("training", epoch), ("validation", epoch), ("evaluation/per_case", case)):
        write_table(folder / f"{name}.csv", [row])
    page = write_report([str(folder)], str(tmp_path / "report"), ["<script>alert(1)</script> $x^{$"])
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "&lt;img src=x onerror" in html


# --- who the patient is --------------------------------------------------------------------------------------------

IDENTITY = {
    "0010|0010": "DOE^JANE", "0010|0020": "ID-4711-X", "0010|0030": "19610203", "0008|0050": "ACC-0815",
    "0008|0080": "St. Nowhere Hospital", "0008|0090": "HOUSE^GREGORY", "0010|1000": "OTHER-ID-99",
    "0008|103e": "../../escaped", "0008|1030": "$(touch pwned)", "0018|0024": "../../../escaped", "0020|0010": "../up",
}  # fmt: skip


def save_dicom_series(folder, volume_hu, series="2"):
    """Write ``volume_hu`` (X, Y, Z) as one DICOM file per slice, of a patient with a name."""
    folder.mkdir(parents=True)
    for index in range(volume_hu.shape[2]):
        image = itk.image_from_array(np.ascontiguousarray(volume_hu[:, :, index].T)[None].astype(np.int16))
        image.SetSpacing((1.5, 1.5, 2.0))
        image.SetOrigin((0, 0, index * 2.0))
        tags = IDENTITY | {
            "0008|0060": "CT", "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.{series}",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.{series}.{index + 1}",
            "0020|0013": str(index + 1), "0020|0032": rf"0\0\{index * 2.0}", "0020|0037": r"1\0\0\0\1\0",
        }  # fmt: skip
        for tag, value in tags.items():
            image.GetMetaDataDictionary()[tag] = value
        gdcm = itk.GDCMImageIO.New()
        gdcm.KeepOriginalUIDOn()
        itk.imwrite(image, str(folder / f"{index:03d}.dcm"), imageio=gdcm)


def test_no_tag_of_a_dicom_file_names_an_output_or_is_in_one_or_in_the_log(
    tmp_path, run_bundle, monkeypatch, caplog, capfd
):
    save_dicom_series(tmp_path / "scans/series", make_image((24, 20, 8)))
    assert b"DOE^JANE" in (tmp_path / "scans/series/000.dcm").read_bytes()
    titles, draw = [], inference.draw_preview
    monkeypatch.setattr(inference, "draw_preview", lambda *args: titles.append(args[5]) or draw(*args))
    before = {path for path in tmp_path.rglob("*")}
    with caplog.at_level(logging.DEBUG):
        out = run_bundle("inference", dataset_dir=str(tmp_path / "scans"), probabilities=True)
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path.relative_to(out).as_posix() for path in made} == {
        "series_seg.nii.gz", "series_seg.png", "series_probability.nii.gz", "volumes.csv", "volumes.json",
        "inference_manifest.json", "records/series.json",
    }  # fmt: skip
    said = {"log": caplog.text.encode(), "title": titles[0].encode()}
    said |= dict(zip(("out", "err"), (text.encode() for text in capfd.readouterr()), strict=True))
    for path in made:
        content = path.read_bytes()
        said[path.name] = gzip.decompress(content) if path.suffix == ".gz" else content
    for place, content in said.items():
        for tag, value in IDENTITY.items():
            assert value.encode() not in content, (place, tag)
    assert b"liver" in said["volumes.csv"]


def test_the_error_of_a_folder_of_two_series_names_no_patient(tmp_path, run_bundle):
    save_dicom_series(tmp_path / "series", make_image((24, 20, 8)))
    save_dicom_series(tmp_path / "other", make_image((24, 20, 8)), series="9")
    for path in (tmp_path / "other").iterdir():
        path.rename(tmp_path / "series" / f"other-{path.name}")
    message = input_error_of(run_bundle, "inference", dataset_dir=str(tmp_path / "series"))
    assert "holds 2 DICOM series; choose one by --series" in message
    assert not [value for value in IDENTITY.values() if value in message]


# --- archives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../escaped", "/{absolute}/escaped", "bundle/../../escaped", "bundle/..\\..\\escaped"]
)
def test_a_bundle_s_archive_cannot_write_outside_its_folder(tmp_path, name):
    name = name.format(absolute=str(tmp_path).strip("/"))
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        archive.writestr("bundle/configs/metadata.json", "{}")
        archive.writestr(name, "outside")
    settings = {"name": "bundle", "bundle_dir": str(tmp_path / "in/side"), "source": "github", "progress": False}
    try:
        download(url=(tmp_path / "bundle.zip").as_uri(), **settings)
    except ValueError as error:
        assert "Unsafe path" in str(error)  # MONAI's
    else:
        assert "\\" in name  # no separator here: a file of that name in the folder
    outside = [path for path in tmp_path.rglob("*escaped*") if not path.is_relative_to(tmp_path / "in/side")]
    assert not outside
