"""The MONAI Label server with this bundle, asked over HTTP as 3D Slicer and OHIF ask it: by MONAI Label's own client.

`make test-clients` runs this in the environment of `make label`.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.files import sha256
from scripts.networks import MPUNet
from scripts.pack import list_files
from scripts.settings import describe_training, read_settings, write_settings
from tests import ROOT
from tests.clients.small import assert_same_mask, read_segments, segment
from tests.dicoms import ROOT_UID

pytest.importorskip("monailabel", reason="MONAI Label is not installed here; make test-clients installs it")

import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException, MONAILabelUtils

pytestmark = pytest.mark.client

MODEL = "mpunet_liver_ct"
TARGETS = {"liver": {"liver": 1}, "liver_and_tumor": {"liver": 1, "tumor": 2}}
START_S, TASK_S = 240, 400  # the most that a server takes to start, and a training or scoring to end


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """A server on this machine's own address.

    Attributes:
        client: of it.
        app: its folder.
        studies: its folder of images.
    """

    def __init__(self, command, app, studies, log):
        self.app, self.studies, self.log = app, studies, log
        self.port = free_port()
        self.client = MONAILabelClient(f"http://127.0.0.1:{self.port}", tmpdir=str(log.parent))
        with open(log, "w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"MONAI_LABEL_AUTO_UPDATE_SCORING": "false", "HOME": str(log.parent)},
            )  # fmt: skip

    def wait(self):
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                return self.client.info()
            time.sleep(0.5)
        raise AssertionError(self.log.read_text(encoding="utf-8")[-3000:])

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)

    def infer(self, image="", **options):
        """Return the mask of an image of the server's folder, of a session or of an uploaded file."""
        options.setdefault("params", {})
        file, params = self.client.infer(MODEL, image, **options)
        return file, params

    def refusal(self, image="", model=MODEL, **options):
        """Return the status and the reason of a request that is not fulfilled."""
        with pytest.raises(MONAILabelClientException) as error:
            self.client.infer(model, image, options.pop("params", {}), **options)
        _, status, body = error.value.msg.split(": ", 2)
        return int(status.split(";")[0]), json.loads(body)["detail"]

    def run_task(self, tasks, path, params):
        """Start a background task, one of ``tasks``, wait for its end, and return what the server says of it."""
        url = f"http://127.0.0.1:{self.port}"
        status, body, *_ = MONAILabelUtils.http_method("POST", url, path, params)
        assert status == 200, body
        end = time.monotonic() + TASK_S
        while time.monotonic() < end:
            status, body, *_ = MONAILabelUtils.http_method("GET", url, tasks)
            assert status == 200, body
            task = json.loads(body)
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task
            time.sleep(0.5)
        raise AssertionError(task)


@pytest.fixture(scope="module")
def studies(tmp_path_factory, scan, oblique_scan):
    """Return a function that makes a folder of an LPS image and an oblique one."""

    def make():
        folder = tmp_path_factory.mktemp("studies")
        shutil.copyfile(scan.nifti, folder / "lps.nii.gz")
        shutil.copyfile(oblique_scan.nifti, folder / "oblique.nii.gz")
        return folder

    return make


@pytest.fixture(scope="module", params=TARGETS)
def server(request, tmp_path_factory, bundle, studies):
    """The server that `make label` starts, of the bundle for a target."""
    root, app = bundle(request.param), tmp_path_factory.mktemp("app")
    command = [str(root / "label/start.py"), "--studies", str(studies()), "--app_dir", str(app)]
    server = Server(command, app, Path(command[2]), tmp_path_factory.mktemp("log") / "server.log")
    server.target = request.param
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def test_info_has_the_labels_and_all_that_a_client_offers(server):
    info = server.client.info()
    assert info["labels"] == list(TARGETS[server.target])
    assert info["models"][MODEL]["labels"] == TARGETS[server.target]
    assert info["models"][MODEL]["type"] == "segmentation"
    assert set(info["trainers"]) == {MODEL}
    assert set(info["scoring"]) == {"epistemic"}
    assert {"random", "first", "epistemic"} <= set(info["strategies"])
    assert info["datastore"]["total"] == 2


@pytest.mark.parametrize("image", ["lps", "oblique"])
def test_the_mask_of_an_image_is_that_of_bundle_run(server, image, scan, oblique_scan, reference):
    file, params = server.infer(image)
    path = {"lps": scan, "oblique": oblique_scan}[image].nifti
    assert_same_mask(nib.load(file), reference(path, server.target))
    assert params["label_names"] == TARGETS[server.target]


def test_slicer_uploads_an_image_into_a_session_and_gets_nrrd(server, scan, reference, tmp_path):
    itk.imwrite(itk.imread(str(scan.nifti)), str(tmp_path / "volume.nrrd"))
    session = server.client.create_session(str(tmp_path / "volume.nrrd"))["session_id"]
    settings = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    file, _ = server.infer(session_id=session, params=settings)
    assert_itk_mask(file, reference(scan.nifti, server.target), scan.affine)
    server.client.remove_session(session)
    assert server.refusal(session_id=session) == (404, "the session: no such image; it may have been removed")


def test_a_dicom_series_is_uploaded_as_a_zip(server, scan, reference, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "study"), "zip", scan.dicom)
    url = f"http://127.0.0.1:{server.port}"
    status, body, _ = MONAILabelUtils.http_upload("PUT", url, "/session/?uncompress=true", {}, [archive])
    assert status == 200, body
    session = json.loads(body)["session_id"]
    file, _ = server.infer(session_id=session, params={"result_extension": ".nrrd"})
    assert_itk_mask(file, reference(scan.dicom, server.target), scan.affine)


def assert_itk_mask(file, expected, affine):
    """Compare a mask as ITK reads it, which has no part in its making, with ``expected`` on the grid ``affine``."""
    mask = itk.imread(file)
    steps = itk.array_from_matrix(mask.GetDirection()) * np.array(mask.GetSpacing())
    np.testing.assert_allclose(np.column_stack([steps, mask.GetOrigin()]), (np.diag([-1, -1, 1, 1]) @ affine)[:3])
    np.testing.assert_array_equal(itk.array_from_image(mask).T, np.asarray(expected.dataobj))


def test_the_answer_may_be_json_alone(server):
    url = f"http://127.0.0.1:{server.port}"
    status, body, *_ = MONAILabelUtils.http_method("POST", url, f"/infer/{MODEL}?image=lps&output=json", {})
    assert status == 200
    assert json.loads(body)["label_names"] == TARGETS[server.target]


def test_a_request_that_cannot_be_fulfilled_gets_the_reason_and_the_next_is_fulfilled(server, scan, tmp_path):
    cut, text, magnetic = tmp_path / "cut.nii.gz", tmp_path / "text.nii.gz", tmp_path / "magnetic.nii.gz"
    cut.write_bytes(scan.nifti.read_bytes()[:5000])
    text.write_text("no image", encoding="utf-8")
    noise = np.random.default_rng(0).integers(0, 900, (24, 24, 16)).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, scan.affine), magnetic)

    assert server.refusal("nobody") == (404, "nobody: no such image; it may have been removed")
    status, reason = server.refusal("lps", model="nothing")
    assert (status, "There is no model 'nothing'" in reason) == (400, True)
    for file, words in ((cut, "cannot be read (EOFError"), (text, "cannot be read"), (magnetic, "not CT")):
        status, reason = server.refusal(file=str(file))
        assert (status, words in reason) == (422, True), reason
    assert server.infer("lps")[0]


def test_a_batch_writes_masks_beside_the_images(server, scan, oblique_scan, reference):
    task = server.run_task("/batch/infer", f"/batch/infer/{MODEL}?images=all", {"multi_gpu": False})
    assert task["status"] == "DONE", task["details"]
    for name, path in (("lps", scan.nifti), ("oblique", oblique_scan.nifti)):
        mask = nib.load(server.studies / f"labels/original/{name}.nii.gz")
        assert_same_mask(mask, reference(path, server.target))


def test_images_are_scored_by_the_disagreement_of_networks_with_dropout_and_the_most_doubtful_comes_next(server):
    task = server.run_task("/scoring/", "/scoring/epistemic", {})
    assert task["status"] == "DONE", task["details"]
    objects = json.loads((server.studies / "datastore_v2.json").read_text(encoding="utf-8"))["objects"]
    scores = {name: item["image"]["info"]["epistemic_entropy"] for name, item in objects.items()}
    classes = len(TARGETS[server.target]) + 1
    assert scores.keys() == {"lps", "oblique"}
    assert all(
        0 < score < np.log(classes) for score in scores.values()
    )  # the entropy of a voxel is ln(classes) at most
    assert server.client.next_sample("epistemic", {})["id"] == max(scores, key=scores.get)


def test_labels_that_are_sent_train_the_weights_that_the_next_mask_is_made_with(server, scan, oblique_scan, tmp_path):
    """The last one: it changes the weights. Settings are those that 3D Slicer sends: the first of each list."""
    before, _ = server.infer("lps")
    before = np.asarray(nib.load(before).dataobj).copy()
    for name, labelled in (("lps", scan), ("oblique", oblique_scan)):
        label = labelled.label if server.target == "liver_and_tumor" else (labelled.label > 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(label, labelled.affine), tmp_path / f"{name}.nii.gz")
        server.client.save_label(name, str(tmp_path / f"{name}.nii.gz"), tag="final", params={})
    weights = server.app / "model" / MODEL / "models/model.pt"
    old = torch.load(weights, weights_only=True)
    options = server.client.info()["trainers"][MODEL]["config"]
    settings = {name: value[0] if isinstance(value, list) else value for name, value in options.items()}
    task = server.run_task("/train/", f"/train/{MODEL}", settings | {"max_epochs": 2, "val_split": 0.5, "run_id": ""})
    assert task["status"] == "DONE", task["details"]
    new = torch.load(weights, weights_only=True)
    assert new.keys() == old.keys()
    assert any(not torch.equal(new[name], old[name]) for name in new)
    after, _ = server.infer("lps")
    assert (np.asarray(nib.load(after).dataobj) != before).any()


SETTINGS = {"target": "liver", "spacing": [5.0, 5.0, 5.0], "roi_size": [48, 48, 32]}


@pytest.fixture
def shipped(tmp_path):
    """The bundle as downloaded, with weights whose settings lie beside them and are not the defaults of its configs."""
    root = tmp_path / "bundle" / MODEL
    for name in list_files(ROOT):
        if not name.startswith("models/"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    (root / "models").mkdir()
    torch.manual_seed(0)
    network = MPUNet(channels=[4, 4, 8, 8, 8], norm="instance")
    torch.save(network.state_dict(), root / "models/model.pt")
    write_settings(describe_training(network, **SETTINGS), root / "models/model.pt")
    return root


def command_of(whose, root, studies, app):
    """Return the command of the server of `make label`, or that of MONAI Label's own app for bundles."""
    if whose == "of make label":
        return [str(root / "label/start.py"), "--studies", str(studies), "--app_dir", str(app)]
    shutil.copytree(Path(sys.prefix) / "monailabel/sample-apps/monaibundle", app)
    shutil.copytree(root, app / "model" / MODEL)
    options = {"models": MODEL, "zoo_source": "local", "sam2": "false", "epistemic_model": MODEL}
    conf = [word for name, value in options.items() for word in ("--conf", name, value)]
    return ["-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies), *conf]


@pytest.mark.parametrize("whose", ["of make label", "of MONAI Label"])
def test_a_training_goes_on_from_the_weights_with_the_settings_that_lie_beside_them(
    whose, shipped, studies, scan, oblique_scan, tmp_path
):
    app, folder = tmp_path / "app", studies()
    server = Server(command_of(whose, shipped, folder, app), app, folder, tmp_path / "server.log")
    weights = app / "model" / MODEL / "models/model.pt"
    try:
        info = server.wait()
        assert info["models"][MODEL]["labels"] == {"liver": 1}
        old, settings = torch.load(weights, weights_only=True), read_settings(weights)
        file, _ = server.infer("lps")
        assert_same_mask(nib.load(file), segment(shipped, scan.nifti, tmp_path / "out"))

        (scoring,) = info["scoring"]
        task = server.run_task("/scoring/", f"/scoring/{scoring}", {"max_workers": 1})
        assert task["status"] == "DONE", task["details"]
        objects = json.loads((folder / "datastore_v2.json").read_text(encoding="utf-8"))["objects"]
        assert all(0 < item["image"]["info"]["epistemic_entropy"] < np.log(2) for item in objects.values())

        for name, labelled in (("lps", scan), ("oblique", oblique_scan)):
            label = nib.Nifti1Image((labelled.label > 0).astype(np.uint8), labelled.affine)
            nib.save(label, tmp_path / f"{name}.nii.gz")
            server.client.save_label(name, str(tmp_path / f"{name}.nii.gz"), tag="final", params={})
        config = info["trainers"][MODEL]["config"]
        options = {name: value[0] if isinstance(value, list) else value for name, value in config.items()}
        options |= {"max_epochs": 5, "val_split": 0.5, "run_id": "run"}
        task = server.run_task("/train/", f"/train/{MODEL}", options)
        assert task["status"] == "DONE", task["details"]
    finally:
        server.stop()
    new = torch.load(weights, weights_only=True)
    assert {name: value.shape for name, value in new.items()} == {name: value.shape for name, value in old.items()}
    # five steps of Adam, of little more than the learning rate of 1e-4 each: it began with these very weights
    moved = max((new[name] - old[name]).abs().max().item() for name in new)
    assert 1e-5 < moved < 1e-3
    trained = read_settings(weights)
    assert {name: trained[name] for name in settings} == settings
    manifest = json.loads((app / "model" / MODEL / "runs/mpunet/manifest.json").read_text(encoding="utf-8"))
    assert manifest["weights"]["sha256"] == sha256(shipped / "models/model.pt")


@pytest.fixture
def orthanc(scan, tmp_path):
    """The address of a DICOMweb server that holds the CT."""
    settings = json.loads((ROOT / "label/orthanc.json").read_text(encoding="utf-8"))
    program, plugin = shutil.which("Orthanc"), Path(settings["Plugins"][0])
    if not program or not plugin.is_file():
        pytest.skip("Orthanc and its DICOMweb plugin are not installed: apt install orthanc orthanc-dicomweb")
    port = free_port()
    settings |= {"HttpPort": port, "StorageDirectory": "db", "IndexDirectory": "db"}
    (tmp_path / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    with open(tmp_path / "orthanc.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen([program, str(tmp_path / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT)
    try:
        for path in scan.dicom.iterdir():
            send(f"http://127.0.0.1:{port}/instances", path.read_bytes())
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        process.terminate()
        process.wait(timeout=20)


def send(url, content):
    """Send, and wait until there is somebody to take it."""
    end = time.monotonic() + START_S
    while True:
        try:
            return requests.post(url, data=content, timeout=60).raise_for_status()
        except requests.ConnectionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def test_images_of_a_dicomweb_server_get_a_dicom_seg_and_ohif_shows_them(orthanc, scan, bundle, reference, tmp_path):
    root = bundle("liver_and_tumor")
    command = [str(root / "label/start.py"), "--studies", orthanc, "--app_dir", str(tmp_path / "app")]
    server = Server(command, tmp_path / "app", orthanc, tmp_path / "server.log")
    try:
        server.wait()
        series = f"{ROOT_UID}.2.1"
        expected = reference(scan.dicom, "liver_and_tumor")
        file, _ = server.infer(series, params={"result_extension": ".nii.gz"})
        assert_same_mask(nib.load(file), expected)

        segments = [{"name": name, "model_name": MODEL} for name in ("liver", "tumor")]
        fields = {"params": json.dumps({"label_info": segments, "result_extension": ".nii.gz"})}
        url = f"http://127.0.0.1:{server.port}"
        answer = requests.post(f"{url}/infer/{MODEL}?image={series}&output=dicom_seg", data=fields, timeout=TASK_S)
        assert answer.status_code == 200, answer.text
        (tmp_path / "seg.dcm").write_bytes(answer.content)
        _, masks = read_segments(tmp_path / "seg.dcm", scan.label.shape, scan.affine)
        assert len(masks) == 2
        for number, mask in masks.items():
            np.testing.assert_array_equal(mask, np.asarray(expected.dataobj) == number)
        assert "<title>OHIF Viewer" in requests.get(f"{url}/ohif/", timeout=60).text
        assert server.refusal("1.2.3")[0] == 404
    finally:
        server.stop()
