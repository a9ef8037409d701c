"""The exported network gives what the network gives, from the command line too."""

import re
import tempfile

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, onnx_export, run

from scripts.benchmark.scans import paint_scan
from scripts.errors import InputError
from scripts.networks import MPUNet
from scripts.networks.exported import ExportedNetwork
from tests import ROOT
from tests.niftis import save

pytest.importorskip("openvino")
SIZE = [32, 32, 32]
CHANNELS = [4, 4, 8, 8, 8]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small network with a sure opinion, its weights, and the ONNX file that the bundle's command makes of them."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    network = MPUNet(channels=CHANNELS)
    for head in network.heads:
        torch.nn.init.normal_(head.weight, std=3.0)
    torch.save(network.state_dict(), folder / "model.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))  # where MONAI's check leaves a copy of the weights
        onnx_export(
            net_id="network_def",
            filepath=str(folder / "model.onnx"),
            ckpt_file=str(folder / "model.pt"),
            meta_file=str(ROOT / "configs/metadata.json"),
            config_file=str(ROOT / "configs/inference.json"),
            input_shape=[1, 1, *SIZE],
            **{"network_def::channels": CHANNELS},
        )
    return network.eval(), folder


def test_the_exported_network_gives_the_networks_log_probabilities(exported):
    network, folder = exported
    by_openvino = ExportedNetwork(folder / "model.onnx", amp=False)
    images = torch.randn(2, 1, 1, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        results = [by_openvino(image) for image in images]
        for image, result in zip(images, results, strict=True):
            torch.testing.assert_close(result.exp(), network(image).exp(), atol=1e-4, rtol=0)


def test_an_image_of_another_size_is_refused(exported):
    with pytest.raises(
        InputError, match=re.escape("was exported for [1, 1, 32, 32, 32], got [1, 1, 16, 32, 32]: give")
    ):
        ExportedNetwork(exported[1] / "model.onnx")(torch.zeros(1, 1, 16, 32, 32))


def test_what_is_no_exported_network_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.onnx: no such file"):
        ExportedNetwork(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"model\.onnx: is not an ONNX file"):
        ExportedNetwork(tmp_path / "model.onnx")


def test_by_openvino_a_scan_gets_the_mask_that_it_gets_by_pytorch(exported, tmp_path):
    folder = exported[1]
    image, _ = paint_scan((48, 48, 40), (8.0, 8.0, 10.0))
    scan = save(tmp_path / "scan.nii.gz", image, np.diag([8.0, 8.0, 10.0, 1.0]))
    knobs = {"spacing": [8.0, 8.0, 10.0], "roi_size": SIZE, "amp": False, "device": "cpu", "preview": False}
    masks = {}
    for overlays, weights in (([], "model.pt"), (["openvino"], "model.onnx")):
        output_dir = tmp_path / weights
        configs = [str(ROOT / f"configs/{name}.json") for name in ("inference", *overlays)]
        own = {} if overlays else {"network_def::channels": CHANNELS}
        run(
            config_file=configs, bundle_root=str(ROOT), dataset_dir=str(scan), output_dir=str(output_dir),
            ckpt_path=str(folder / weights), **knobs, **own,
        )  # fmt: skip
        masks[weights] = np.asarray(nib.load(output_dir / "scan_seg.nii.gz").dataobj)
    assert 0.01 < masks["model.pt"].mean() < 0.99
    assert (masks["model.pt"] != masks["model.onnx"]).mean() < 1e-4


def test_the_handler_that_openvino_json_leaves_out_is_the_one_that_loads_weights_into_the_network():
    config = ConfigParser.load_config_files([str(ROOT / f"configs/{name}.json") for name in ("inference", "openvino")])
    left_out = [
        handler["_target_"] for handler in ConfigParser(config)["handlers"] if handler.get("_disabled_") is True
    ]
    assert left_out == ["scripts.handlers.WeightsCheckpointLoader"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there TensorRT may be used")
def test_without_a_gpu_tensorrt_json_changes_nothing():
    files = [str(ROOT / f"configs/{name}.json") for name in ("inference", "tensorrt")]
    config = ConfigParser(ConfigParser.load_config_files(files) | {"network_def::channels": CHANNELS})
    network = config.get_parsed_content("network")
    assert type(network) is MPUNet
    assert not hasattr(network, "_trt_compiler")
