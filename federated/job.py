"""A federated training by NVFLARE in its simulator: every site keeps its cases, weights alone go round.

python federated/job.py --dataset_dir sites --output_dir runs/federated --rounds 2
"""

import json
import os
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.commands import run_command  # noqa: E402
from scripts.errors import InputError  # noqa: E402
from scripts.files import write_weights  # noqa: E402
from scripts.knobs import check_overrides, check_whole  # noqa: E402
from scripts.manifest import merged_config  # noqa: E402
from scripts.options import refuse_unused  # noqa: E402
from scripts.settings import write_settings  # noqa: E402

try:
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe import SimEnv
except ImportError:
    FedAvgRecipe = None

OF_SITES = {  # knobs that cannot be the same for all
    "pretrained": "every round would begin with these weights, not with those of all",
    "resume": "every round would begin with each site's own weights, not with those of all",
    "ckpt_path": "every site has its own, in its folder of results",
    "datalist_file": "every site has its own, in its folder of results",
}


def main(
    dataset_dir: str, output_dir: str = "runs/federated", rounds: int = 1, local_epochs: int = 1, **overrides
) -> None:
    """Train by federated averaging, weighted by steps, and keep the last weights of all as ``model.pt``.

    Beside them are the settings by which inference finds them right, as beside those of any training.

    Args:
        dataset_dir: with a folder for each site, whose name is the site's, and in it its cases.
        output_dir: where NVFLARE works, and every site has a folder of results.
        rounds: how often weights go round.
        local_epochs: of each site in each round.
        overrides: any knob of configs/train.json but those of `OF_SITES`.
    """
    check_whole("rounds", rounds, 1)
    check_whole("local_epochs", local_epochs, 1)
    folder = Path(dataset_dir)
    sites = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not sites:
        raise InputError(f"{folder}: has no folders; give one as --dataset_dir with a folder of cases for each site")
    for key, reason in OF_SITES.items():
        if key in overrides:
            raise InputError(f"{key}: {reason}; leave it out")
    if FedAvgRecipe is None:
        raise InputError("nvflare: is not installed; pip install -r requirements-nvflare.txt")
    output = Path(output_dir).resolve()
    for name in (str(ROOT), str(output), *sites):
        if len(name.split()) != 1:  # NVFLARE takes its command line apart at spaces
            raise InputError(f"{name}: has a space in its name, which NVFLARE cannot have; rename it")
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/train.json"))
    check_overrides(overrides, parser, "option of the job and no key of configs/train.json")
    parser.update(overrides)
    config = merged_config(parser)
    for option in overrides:
        refuse_unused(option, config)
    network = parser["network_def"]
    arguments = {key: parser.get_parsed_content(f"network_def::{key}") for key in network if not key.startswith("_")}
    set_determinism(parser.get_parsed_content("seed"))
    write_weights(parser.get_parsed_content("network_def").state_dict(), output / "initial.pt")
    job = {
        "bundle_root": str(ROOT), "dataset_dir": str(folder.resolve()), "output_dir": str(output / "sites"),
        "local_epochs": local_epochs, "overrides": overrides,
    }  # fmt: skip
    (output / "job.json").write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
    recipe = FedAvgRecipe(
        name="mpunet",
        model={"class_path": network["_target_"], "args": arguments},
        initial_ckpt=str(output / "initial.pt"),
        min_clients=len(sites),
        num_rounds=rounds,
        train_script=str(ROOT / "federated/client.py"),
        train_args=f"--job_file {output / 'job.json'}",
        key_metric="dice",
    )
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        recipe.execute(SimEnv(clients=sites, num_threads=len(sites), workspace_root=str(output)))
    except RuntimeError as error:
        raise InputError(f"{output}: NVFLARE's simulation failed ({error}); its logs there say why") from error
    found = list(output.rglob("FL_global_model.pt"))
    if len(found) != 1:
        raise InputError(f"{output}: NVFLARE left no weights of all; its logs there say why")
    write_weights(torch.load(found[0], map_location="cpu", weights_only=True)["model"], output / "model.pt")
    write_settings(parser.get_parsed_content("best_checkpoint::settings"), output / "model.pt")
    print(f"weights after {rounds} rounds of {', '.join(sites)}: {output / 'model.pt'}")


if __name__ == "__main__":
    run_command(main)
