"""One site of a federated training: NVFLARE brings the weights of all, MONAI's `MonaiAlgo` runs the bundle's configs.

NVFLARE starts it, see ``federated/job.py``.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import fire
import nvflare.client as flare
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject


def main(job_file: str) -> None:
    """Measure the weights of all on the validation cases of this site, train them here, send them back; every round.

    Args:
        job_file: JSON that ``federated/job.py`` has written: bundle_root; dataset_dir and output_dir, in which a site's
            folder has its name; local_epochs of each round; overrides: more settings.
    """
    flare.init()
    name = flare.get_site_name()
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    sys.path.insert(0, job["bundle_root"])
    folder = os.path.join(job["output_dir"], name)
    settings: dict[str, Any] = {
        "dataset_dir": os.path.join(job["dataset_dir"], name), "output_dir": folder, "ckpt_path": f"{folder}/model.pt"
    } | job["overrides"]  # fmt: skip
    algo = MonaiAlgo(
        job["bundle_root"],
        local_epochs=job["local_epochs"],
        send_weight_diff=False,
        train_kwargs=settings | {"val_interval": job["local_epochs"]},
        eval_kwargs=settings | {"section": "validation", "save_predictions": False},
    )
    algo.initialize({ExtraItems.CLIENT_NAME: name})
    while flare.is_running():
        received = flare.receive()
        weights = {key: torch.as_tensor(value) for key, value in received.params.items()}
        metrics = algo.evaluate(ExchangeObject(weights=weights)).metrics
        algo.train(ExchangeObject(weights=weights))
        trained = algo.get_weights()
        steps = trained.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS]
        flare.send(
            flare.FLModel(
                params=trained.weights,
                metrics={key: float(value) for key, value in metrics.items() if isinstance(value, int | float)},
                meta={"NUM_STEPS_CURRENT_ROUND": steps},
            )
        )


if __name__ == "__main__":
    fire.Fire(main)
