"""The exported network gives what the network gives, from the command line too."""

import importlib.util
import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run

from scripts.benchmark.scans import paint_scan
from scripts.errors import InputError
from scripts.export import export
from scripts.networks import MPUNet
from scripts.networks.exported import ExportedNetwork, OnnxNetwork, load_torchscript
from scripts.settings import describe_training, write_settings
from tests import ROOT
from tests.niftis import save

SIZE = [32, 32, 32]
CHANNELS = [4, 4, 8, 8, 8]
SETTINGS = {
    "target": "liver_and_tumor", "spacing": [8.0, 8.0, 10.0], "plane_size": None, "window_hu": [-150, 250],
    "roi_size": SIZE, "min_liver_share": 0.1,
}  # fmt: skip
ENGINES = {"openvino": ExportedNetwork, "onnxruntime": OnnxNetwork}
OVERLAYS = {
    "torchscript": ("model.ts", "torch"),
    "onnx": ("model.onnx", "onnxruntime"),
    "openvino": ("model.onnx", "openvino"),
}


def if_installed(*packages):
    """Parameters, each skipped where the package that it begins with is not installed."""
    return [
        pytest.param(
            package,
            marks=pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"{package} is not installed"),
        )
        for package in packages
    ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small network with a sure opinion, and its exports in a folder whose ``model.json`` is of other weights."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    network = MPUNet(channels=CHANNELS, out_channels=3)
    for head in network.heads:
        torch.nn.init.normal_(head.weight, std=3.0)
    (folder / "trained").mkdir()
    weights = folder / "trained/model.pt"
    torch.save(network.state_dict(), weights)
    write_settings(describe_training(network, **SETTINGS), weights)
    export(weights, folder)
    write_settings({"target": "tumor", "spacing": [5, 5, 5], "window_hu": [0, 80]}, folder / "model.ts")
    return network.eval(), folder


@pytest.mark.parametrize("engine", if_installed(*ENGINES))
def test_the_exported_network_gives_the_networks_log_probabilities(exported, engine):
    network, folder = exported
    by_engine = ENGINES[engine](folder / "model.onnx", **({"amp": False} if engine == "openvino" else {}))
    images = torch.randn(2, 1, 1, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        results = [by_engine(image) for image in images]
        for image, result in zip(images, results, strict=True):
            torch.testing.assert_close(result.exp(), network(image).exp(), atol=1e-4, rtol=0)


def test_torchscript_gives_the_networks_numbers_to_the_bit_for_images_of_any_size(exported):
    network, folder = exported
    scripted = load_torchscript(folder / "model.ts")
    for size in (SIZE, [16, 32, 48]):
        image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            torch.testing.assert_close(scripted(image), network(image), atol=0, rtol=0)


def test_torchscript_has_the_config_and_the_metadata_in_it(exported):
    from monai.data import load_net_with_metadata

    _, metadata, files = load_net_with_metadata(
        str(exported[1] / "model.ts"), more_extra_files=["inference.json"]
    )  # named as the file that it is from
    assert metadata["name"] == "MPU-Net liver CT segmentation"
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == "liver"
    assert b"scripts.networks.MPUNet" in files["inference.json"]
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["2"] == "tumor"
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 3


@pytest.mark.parametrize("engine", ["torchscript", *if_installed(*ENGINES)])
def test_an_export_has_the_settings_of_its_weights_in_it(exported, engine):
    network, folder = exported
    suffix, load = ("ts", load_torchscript) if engine == "torchscript" else ("onnx", ENGINES[engine])
    assert load(folder / f"model.{suffix}").settings == SETTINGS | network.settings


@pytest.mark.parametrize("engine", if_installed(*ENGINES))
def test_an_image_of_another_size_is_refused(exported, engine):
    with pytest.raises(
        InputError, match=re.escape("was exported for [1, 1, 32, 32, 32], got [1, 1, 16, 32, 32]: give")
    ):
        ENGINES[engine](exported[1] / "model.onnx")(torch.zeros(1, 1, 16, 32, 32))


@pytest.mark.parametrize("engine", if_installed(*ENGINES))
def test_what_is_no_exported_network_is_refused(tmp_path, engine):
    with pytest.raises(InputError, match=r"model\.onnx: no such file"):
        ENGINES[engine](tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"model\.onnx: is not an ONNX file"):
        ENGINES[engine](tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"nothing", b""])
def test_what_is_no_torchscript_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"model\.ts: no such file"):
        load_torchscript(tmp_path / "model.ts")
    (tmp_path / "model.ts").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.ts: is no TorchScript file"):
        load_torchscript(tmp_path / "model.ts")


def test_plain_weights_are_no_torchscript(exported):
    with pytest.raises(InputError, match=r"model\.pt: is no TorchScript file"):
        load_torchscript(exported[1] / "trained/model.pt")


def test_of_torchscript_by_monai_s_own_command_the_settings_lie_beside_it(tmp_path):
    files = {"inference.json": json.dumps({"trained_with": {"_target_": "scripts.settings.read_settings"}})}
    write_settings({"target": "tumor"}, tmp_path / "model.ts")
    for extra_files in (files, {}):
        torch.jit.save(torch.jit.script(torch.nn.Identity()), tmp_path / "model.ts", _extra_files=extra_files)
        assert load_torchscript(tmp_path / "model.ts").settings == {"target": "tumor"}


@pytest.fixture(scope="module")
def segment(exported, tmp_path_factory):
    """Return the mask of one scan by inference.json with an overlay, or with none."""
    folder = tmp_path_factory.mktemp("segmented")
    image, _ = paint_scan((48, 48, 40), (8.0, 8.0, 10.0))
    affine = np.diag([-8.0, -8.0, 10.0, 1.0])
    affine[:3, 3] = 11, -7, 3
    scan = save(folder / "scan.nii.gz", image, affine)
    knobs = {"amp": False, "device": "cpu", "preview": False}

    def segment_by(overlay=None):
        name = OVERLAYS[overlay][0] if overlay else "trained/model.pt"
        configs = [str(ROOT / f"configs/{config}.json") for config in ("inference", *filter(None, [overlay]))]
        run(
            config_file=configs, bundle_root=str(ROOT), dataset_dir=str(scan), output_dir=str(folder / str(overlay)),
            ckpt_path=str(exported[1] / name), **knobs,
        )  # fmt: skip
        return nib.load(folder / str(overlay) / "scan_seg.nii.gz")

    return segment_by


@pytest.fixture(scope="module")
def by_pytorch(segment):
    return segment()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_by_every_export_a_scan_gets_the_mask_that_it_gets_by_pytorch(segment, by_pytorch, overlay):
    if not importlib.util.find_spec(OVERLAYS[overlay][1]):
        pytest.skip(f"{OVERLAYS[overlay][1]} is not installed")
    mask = segment(overlay)
    expected = np.asarray(by_pytorch.dataobj)
    assert (np.bincount(expected.ravel()) / expected.size > 0.01).tolist() == [True] * 3
    np.testing.assert_array_equal(mask.affine, by_pytorch.affine)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_handler_that_an_export_leaves_out_is_the_one_that_loads_weights_into_the_network(overlay):
    config = ConfigParser.load_config_files([str(ROOT / f"configs/{name}.json") for name in ("inference", overlay)])
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
