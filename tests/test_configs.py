import json
import pydoc
import tempfile
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser, ckpt_export, onnx_export, verify_metadata, verify_net_in_out
from monai.data import MetaTensor
from monai.transforms import FillHolesd

from scripts.networks import MPUNet
from scripts.settings import write_settings
from tests import ROOT
from tests.niftis import SHAPE, SPACING_MM, save_case

CONFIGS = ROOT / "configs"
BASES = ("train", "inference")
OVERLAYS = {  # overlay → the configs it lies over
    "evaluate": ["train"],
    "unet": ["train", "inference"],
    "paper": ["train", "inference"],
    "released": ["inference", "train"],
    "demo": ["train", "inference"],
    "pretrain": ["train"],
    "pretrain_gpu": ["train"],
    "pretrain_refine": ["train"],
    "pretrain_tumor": ["train"],
    "finetune": ["train"],
    "warmup": ["train"],
    "multi_gpu_train": ["train"],
    "multi_gpu_evaluate": ["train"],
    "multi_gpu_inference": ["inference"],
    "plain": ["inference"],
    "torchscript": ["inference"],
    "onnx": ["inference"],
    "openvino": ["inference"],
    "tensorrt": ["inference"],
}
TRAINING_ONLY = {"max_epochs", "val_interval", "learning_rate", "learning_rate_decay", "learning_rate_interval"} | {
    "batch_size", "num_workers", "flip_prob", "rotate_prob", "min_slices", "crops_per_scan", "crop",
    "recalibrate_batch_norm",
}  # fmt: skip
FINISHING = ("largest_component", "tumor_inside_liver", "min_island_mm3", "fill_holes")
NEW_KEYS = {
    "pretrain": {"ema", "ema_momentum", "run_state::averaged", "train::trainer::prepare_batch", "variation"},
    "pretrain_refine": {"ema_momentum", "variation", "crop::allow_smaller"},
    "pretrain_gpu": {"patients_per_epoch", "train::patient", "train::plain"},
    "finetune": {"freeze_encoder", "frozen_layers"},
    "warmup": {"warmup_epochs"},
    "multi_gpu_train": {"validate::dataloader::sampler", "train::dataloader::sampler", "finalize"},
    "multi_gpu_evaluate": {"validate::dataloader::sampler", "finalize"},
    "multi_gpu_inference": {"finalize"},
    "evaluate": {"section", "evaluation_dir", "save_predictions", *FINISHING, "evaluating"},
    "torchscript": {"handlers::0::_disabled_"},
    "onnx": {"handlers::0::_disabled_"},
    "openvino": {"handlers::0::_disabled_"},
    "tensorrt": {"trt_args"},
}


def read(name):
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def parser(*names, **overrides):
    config = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / f"{name}.json") for name in names]))
    config.update(overrides)
    return config


def test_every_config_is_a_base_or_a_known_overlay():
    names = {path.stem for path in CONFIGS.glob("*.json")} - {"metadata", "ablation", "finetuning_gain", "mlflow"}
    assert names == {*BASES, *OVERLAYS}


def test_the_two_self_contained_configs_agree_on_what_they_share():
    train, inference = read("train"), read("inference")
    shared = (
        "bundle_root", "ckpt_path", "target", "device", "amp", "checksums", "spacing", "plane_size", "window_hu",
        "roi_size", "overlap", "window_weights", "sw_batch_size", "class_names", "network_def", "network",
    )  # fmt: skip
    for key in shared:
        assert train[key] == inference[key], key
    inferer, windows = train["validate"]["inferer"], train["validate"]["inferer"]["inferer"]
    coarse_pass = {
        "_target_": "scripts.inferers.CoarseToFineInferer",
        "coarse_pass": "$is_true(@coarse_pass)",
        "margin": "@coarse_margin",
        "fit_windows": "@inferer::fit_windows",
    }
    assert not inference["coarse_pass"]
    inference["inferer"]["inferer"].pop("_desc_")
    assert inference["inferer"] == inferer | {"inferer": windows | coarse_pass | {"progress": True}}


def test_the_image_goes_through_the_same_steps_in_training_evaluation_and_inference():
    def steps(transforms):
        found = {}
        for transform in transforms:
            settings = {key: transform[key] for key in transform if key not in ("keys", "mode", "_desc_")}
            found[transform["_target_"]] = settings
        return found

    training = steps(read("train")["train"]["deterministic_transforms"])
    inference = steps([*read("inference")["preprocessing"]["transforms"], read("inference")["resample"]])
    evaluation = steps(read("evaluate")["validate::preprocessing::transforms"])
    for name in ("Orientationd", "Spacingd", "Resized", "ScaleIntensityRanged", "CropForegroundd"):
        assert training[name] == inference[name] == evaluation[name], name


def test_images_are_read_alike_in_training_evaluation_inference_and_the_check():
    config = {"train": read("train"), "evaluate": read("evaluate")}
    loaders = [config["train"]["train"]["deterministic_transforms"][0]]
    loaders.append(config["evaluate"]["validate::preprocessing::transforms"][0])
    for loader in loaders:
        assert (loader["_target_"], loader["reader"]) == ("LoadImaged", "scripts.scans.ScanReader")
    assert read("inference")["reader"]["_target_"] == "scripts.scans.ScanReader"


def test_handlers_of_the_training_are_written_out_as_monai_label_expects():
    for handler in read("train")["train"]["handlers"]:
        assert handler["_target_"]


def test_masks_are_finished_alike_in_evaluation_and_inference():
    def last_steps(transforms):
        steps = [transform for transform in transforms if not transform["_target_"].endswith("SaveImaged")]
        return steps[[step["_target_"] for step in steps].index("scripts.transforms.RestoreGridd") :]

    evaluation, inference = read("evaluate"), read("inference")
    steps = last_steps(evaluation["validate::postprocessing::transforms"])
    finishing = ["KeepLargestConnectedComponentd", "Lambdad", "Lambdad", "Lambdad", "FillHolesd"]
    assert [step["_target_"] for step in steps] == ["scripts.transforms.RestoreGridd", *finishing]
    assert steps == last_steps(inference["postprocessing"]["transforms"])
    for knob in FINISHING:
        assert evaluation[knob] == inference[knob]
        assert not inference[knob]  # nothing is done that was not asked for


def finish(pred, **knobs):
    """Return class indices after the steps that come after the argmax, on a grid of 2 mm³ voxels."""
    steps = parser("inference", **knobs).get_parsed_content("postprocessing").transforms
    names = [type(step).__name__ for step in steps]
    pred = MetaTensor(torch.tensor(pred, dtype=torch.uint8).reshape(1, -1, 1, 1), affine=torch.diag(VOXEL_2_MM3))
    data = {"pred": pred}
    for step in steps[names.index("RestoreGridd") + 1 : names.index("CheckedSaveImaged")]:
        data = step(data)
    return data["pred"].flatten().int().tolist()


VOXEL_2_MM3 = torch.tensor([1.0, 1.0, 2.0, 1.0])
#       liver with its tumour   a tumour outside   liver elsewhere, with a hole
PRED = [1, 1, 2, 1, 1,       0, 2, 2,           0, 1, 0, 1]  # fmt: skip


@pytest.mark.parametrize(
    "knobs, expected",
    [
        ({}, PRED),
        ({"largest_component": "true"}, [1, 1, 2, 1, 1] + [0] * 7),  # with its tumour
        ({"min_liver_share": 0.4}, [1, 1, 2, 1, 1, 0, 2, 2, 0, 0, 0, 0]),  # two voxels of five stay
        ({"min_liver_share": "0.41"}, [1, 1, 2, 1, 1] + [0] * 7),
        ({"min_liver_share": 0.41, "target": "tumor"}, PRED),
        ({"tumor_inside_liver": True}, [1, 1, 2, 1, 1, 0, 0, 0, 0, 1, 0, 1]),
        ({"min_island_mm3": 4}, [1, 1, 1, 1, 1, 0, 2, 2, 0, 0, 0, 0]),  # two voxels stay
        ({"min_island_mm3": "5"}, [1, 1, 1, 1, 1] + [0] * 7),
        ({"largest_component": True, "target": "tumor"}, PRED),  # of tumours there may be many
        ({"tumor_inside_liver": True, "target": "tumor"}, PRED),
        ({"tumor_inside_liver": False, "min_island_mm3": "0", "fill_holes": "false"}, PRED),
    ],
)
def test_masks_are_finished_as_the_knobs_say(knobs, expected):
    assert finish(PRED, **{"target": "liver_and_tumor"} | knobs) == expected


def test_holes_are_filled_by_the_class_around_them_if_asked():
    config = parser("inference", target="liver_and_tumor", fill_holes="true")
    (fill,) = [step for step in config.get_parsed_content("postprocessing").transforms if type(step) is FillHolesd]
    pred = torch.zeros(1, 7, 7, 7)
    pred[0, 1:6, 1:6, 1:6] = 1
    expected = pred.clone()
    pred[0, 3, 3, 3] = 0
    expected[0, 1, 3, 3] = pred[0, 1, 3, 3] = 0  # open to the outside: no hole
    assert torch.equal(fill({"pred": pred})["pred"], expected)


@pytest.mark.parametrize("overlay, base", [(o, b) for o, bases in OVERLAYS.items() for b in bases])
def test_every_key_of_an_overlay_exists_in_its_base(overlay, base):
    config = parser(base)
    allowed = NEW_KEYS.get(overlay, set()) | (TRAINING_ONLY if base == "inference" else set()) | {"_desc_"}
    for key in read(overlay):
        if key not in allowed:
            assert key.removeprefix("+") in config, key


def test_the_paper_s_crops_are_48_slices_of_1_mm_from_the_liver_and_20_around_it(tmp_path):
    case = save_case(tmp_path)  # its liver has slices 20 to 29 of 2 mm
    config = parser("train", "paper", flip_prob=0.0, rotate_prob=0.0)
    preprocessing = config.get_parsed_content("train::preprocessing")
    preprocessing.set_random_state(0)
    starts = set()
    for _ in range(6):
        crop = preprocessing({"image": case.image, "label": case.label})
        assert crop["image"].shape == crop["label"].shape == (1, 256, 256, 48)
        plane = np.array(SHAPE[:2]) * SPACING_MM[:2]  # all of it
        np.testing.assert_allclose(crop["image"].pixdim, [*(plane / 256), 1.0])
        slices = torch.nonzero(crop["label"].sum(dim=(0, 1, 2))).flatten()
        starts_at = float(crop["image"].affine[2, 3])
        starts.add(starts_at)
        # centred at 40, 42 ... 58 mm, at 1 mm (a tie goes down) the liver has slices 39 to 58
        assert [starts_at + float(index) for index in slices[[0, -1]]] == [39, 58]
    assert len(starts) > 2
    assert min(starts) >= 39 - 20
    assert max(starts) + 47 <= 58 + 20


def test_the_paper_s_windows_are_48_slices_in_steps_of_24_and_averaged():
    inferer = parser("train", "paper").get_parsed_content("validate::inferer")
    first_slices = []

    def network(window):
        assert window.shape == (1, 1, 256, 256, 48)
        first_slices.append(float(window[0, 0, 0, 0, 0]))
        return torch.full_like(window, len(first_slices))

    image = torch.arange(96.0).expand(1, 1, 256, 256, 96)
    result = inferer(image, network)[0, 0, 0, 0]
    assert first_slices == [0, 24, 48]
    torch.testing.assert_close(result, torch.tensor([1, 1.5, 2.5, 3]).repeat_interleave(24))


@pytest.mark.parametrize("overlay", [None, *OVERLAYS])
def test_every_component_that_a_config_names_exists(overlay):
    base = OVERLAYS[overlay][0] if overlay else "train"
    config = parser(base, *([overlay] if overlay else []))
    config.parse()
    for item in config.ref_resolver.items.values():
        if hasattr(item, "resolve_module_name") and item.is_instantiable(item.get_config()):
            assert pydoc.locate(item.resolve_module_name()) is not None, item.get_config()


def test_inference_and_evaluation_are_as_the_weights_were_trained(tmp_path):
    """A training over pretrain.json, and inference with nothing but its weights."""
    path = tmp_path / "weights.pt"
    training = parser("train", "pretrain", ckpt_path=str(path), target="liver_and_tumor")
    engine = Engine(lambda *_: None)
    engine.state.metrics, engine.state.key_metric_name = {"dice": 0.5}, "dice"
    training.get_parsed_content("best_checkpoint")(engine)
    for names in (["inference"], ["train", "evaluate"]):
        config = parser(*names, ckpt_path=str(path))
        for knob in ("target", "spacing", "plane_size", "window_hu", "roi_size"):
            assert config.get_parsed_content(knob) == training.get_parsed_content(knob), knob
        config.get_parsed_content("network_def").load_state_dict(torch.load(path))


@pytest.mark.parametrize("names", [["train"], ["train", "finetune"]])
def test_a_training_that_begins_with_weights_is_for_their_target_unless_another_is_given(tmp_path, names):
    write_settings({"target": "liver_and_tumor"}, tmp_path / "model.pt")
    begun = {"pretrained": str(tmp_path / "model.pt")}
    for overrides, target, classes in ((begun, "liver_and_tumor", 3), (begun | {"target": "tumor"}, "tumor", 2)):
        config = parser(*names, **overrides)
        assert config.get_parsed_content("best_checkpoint").settings["target"] == target
        assert config.get_parsed_content("network_def").heads[0].out_channels == classes
        mapping = config.get_parsed_content("train::deterministic_transforms")[2]
        assert list(mapping.mapper.target_labels) == {"liver_and_tumor": [0, 1, 2], "tumor": [0, 0, 1]}[target]


def test_a_training_that_begins_with_the_bundle_s_weights_has_no_flips_and_no_dropout_as_theirs_had_none(tmp_path):
    for names, overrides in ((["train", "finetune"], {}), (["train"], {"pretrained": str(ROOT / "models/model.pt")})):
        config = parser(*names, **overrides)
        network = config.get_parsed_content("network_def")
        assert [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)] == [0.0]
        assert config.get_parsed_content("flip_prob") == 0.0
        settings = config.get_parsed_content("best_checkpoint").settings
        assert (settings["flip_prob"], settings["dropout"]) == (0.0, 0.0)  # nor has one that begins with what comes out
    config = parser("train", flip_prob=0.3, **{"network_def::dropout": 0.1})
    settings = config.get_parsed_content("best_checkpoint").settings
    assert (settings["flip_prob"], settings["dropout"]) == (0.3, 0.1)
    assert parser("train").get_parsed_content("flip_prob") == 0.5


def test_a_training_before_which_monai_label_puts_a_loader_of_weights_is_with_their_settings(tmp_path):
    settings = {"spacing": [3.0, 3.0, 3.0], "channels": [8, 16, 32, 64, 128], "norm": "instance"}
    path = str(tmp_path / "model.pt")
    write_settings(settings, path)
    loader = {"_target_": "CheckpointLoader", "load_path": path, "load_dict": {"model": "$@network"}, "strict": False}
    config = parser("train", **{"train::handlers": [loader, *read("train")["train"]["handlers"], "@early_stop"]})
    assert config.get_parsed_content("pretrained") == path
    assert config.get_parsed_content("spacing") == settings["spacing"]
    network = config.get_parsed_content("network_def")
    assert {name: network.settings[name] for name in ("channels", "norm")} == {
        name: settings[name] for name in ("channels", "norm")
    }
    assert parser("train").get_parsed_content("pretrained") is None


@pytest.mark.parametrize("overlay", [name for name, bases in OVERLAYS.items() if "train" in bases])
def test_evaluation_measures_the_network_whose_weights_it_loads(overlay):
    config = parser("train", overlay, "evaluate", ckpt_path="none.pt", device="cpu")
    loader = config["validate::handlers"][0]
    assert loader["_target_"] == "scripts.handlers.WeightsCheckpointLoader"
    loaded, measured = (item["network"].removeprefix("@") for item in (loader, config["validate::evaluator"]))
    assert config.get_parsed_content(measured) is config.get_parsed_content(loaded)


@pytest.mark.parametrize(
    "names, parameters",
    [
        (["train"], 21_507_255),
        (["inference"], 21_507_255),
        (["inference", "released"], 21_507_255),
        (["train", "paper"], 21_507_255),
        (["train", "unet"], 2_326_638),
        (["inference", "unet"], 2_326_638),
    ],
)
def test_networks_of_the_configs_have_the_parameters_of_table_6(names, parameters):
    network = parser(*names, trained_with={}).get_parsed_content("network_def")
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_with_a_warm_up_the_learning_rate_rises_in_a_line_and_falls_as_a_cosine():
    config = parser("train", "warmup", learning_rate=1.0, warmup_epochs=3, max_epochs=9, device="cpu")
    config["network_def::channels"] = [4, 4, 8, 8, 8]
    optimizer, schedule = (config.get_parsed_content(key) for key in ("optimizer", "lr_scheduler"))
    rates = []
    for _ in range(9):  # epochs, after each of which the schedule steps
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    cosine = [(1 + np.cos(np.pi * step / 6)) / 2 for step in range(6)]
    np.testing.assert_allclose(rates, [0.1, 0.4, 0.7, *cosine])


@pytest.mark.parametrize("target, classes", [("liver", 2), ("tumor", 2), ("liver_and_tumor", 3)])
def test_the_network_has_a_channel_for_each_class_of_the_target(target, classes):
    assert parser("inference", target=target).get_parsed_content("network_def").heads[0].out_channels == classes


def test_metadata_describes_the_default_network():
    metadata, config = read("metadata"), parser("inference")
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert image["num_channels"] == config["network_def"]["in_channels"]
    names = config.get_parsed_content("class_names")
    assert pred["num_channels"] == len(names)
    assert [pred["channel_def"][str(index)] for index in range(len(names))] == list(names)
    assert metadata["version"] in metadata["changelog"]


def test_metadata_at_the_top_is_that_of_the_configs():
    assert (ROOT / "metadata.json").read_text(encoding="utf-8") == (CONFIGS / "metadata.json").read_text(
        encoding="utf-8"
    )


def read_pins(name):
    pins = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#") and 'python_version < "3.11"' not in line:
            package, version = line.split(";")[0].strip().split("==")
            pins[package] = version
    return pins


def test_metadata_names_the_pinned_versions():
    metadata = read("metadata")
    versions = metadata["required_packages_version"] | {
        "torch": metadata["pytorch_version"], "monai": metadata["monai_version"], "numpy": metadata["numpy_version"]
    }  # fmt: skip
    assert versions == read_pins("requirements.txt")


def test_monai_keeps_the_metadata_as_they_are():
    parser = ConfigParser()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parser.read_meta(CONFIGS / "metadata.json")
        assert parser["_meta_"] == read("metadata")


def test_metadata_fulfils_the_schema():
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(ROOT / "tests/metadata_schema.json"))


def test_the_schema_refuses_metadata_without_a_version(tmp_path):
    incomplete = {key: value for key, value in read("metadata").items() if key != "version"}
    (tmp_path / "metadata.json").write_text(json.dumps(incomplete), encoding="utf-8")
    with pytest.raises(ValueError, match="'version' is a required property"):
        verify_metadata(
            meta_file=str(tmp_path / "metadata.json"), filepath=str(ROOT / "tests/metadata_schema.json")
        )  # fmt: skip


def test_the_network_takes_and_gives_what_the_metadata_say():
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
        device="cpu",
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(MPUNet().state_dict(), path)
    return path


def export(function, weights, filepath, **kwargs):
    function(
        net_id="network_def",
        filepath=str(filepath),
        ckpt_file=str(weights),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
        ckpt_path=str(weights),
        **kwargs,
    )


def expected_output(weights, image):
    network = MPUNet().eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        return network(image)


def test_torchscript_export_gives_the_same_output_at_any_size(weights, tmp_path):
    export(ckpt_export, weights, tmp_path / "model.ts")
    image = torch.randn(1, 1, 24, 20, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result = torch.jit.load(tmp_path / "model.ts").eval()(image)
    torch.testing.assert_close(result, expected_output(weights, image))


def test_onnx_export_gives_the_same_output_in_onnx_runtime(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where MONAI's check leaves a copy of the weights
    export(onnx_export, weights, tmp_path / "model.onnx", input_shape=[1, 1, 32, 24, 16])
    image = torch.randn(1, 1, 32, 24, 16, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    np.testing.assert_allclose(result, expected_output(weights, image).numpy(), atol=1e-3)
