"""Three hundred scans in one process take no more memory than a hundred."""

import json
import os
import subprocess
import sys

import itk
import numpy as np
import pytest
import torch

from scripts.networks import MPUNet
from tests import ROOT
from tests.niftis import make_image, save

CASES, WARM = 300, 100
CHANNELS = [4, 4, 8, 8, 8]
SOAK = """
import json, os, sys
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

config_file, settings = sys.argv[1], json.loads(sys.argv[2])
workflow = ConfigWorkflow(config_file, workflow_type="infer", **settings)
workflow.initialize()
resident = []

def measure():
    with open("/proc/self/statm", encoding="utf-8") as file:
        resident.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)

workflow.evaluator.add_event_handler(Events.ITERATION_COMPLETED, measure)
workflow.run()
print(json.dumps(resident))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_scans(tmp_path):
    """NIfTI by nibabel and MetaImage by ITK in turn, with masks, soft maps, pictures and tables of each."""
    torch.manual_seed(0)
    torch.save(MPUNet(channels=CHANNELS).state_dict(), tmp_path / "model.pt")
    for number in range(CASES):
        image = make_image((24, 20, 20))
        if number % 2:
            itk.imwrite(itk.image_from_array(image), str(tmp_path / f"{number:03d}.mha"))
        else:
            save(tmp_path / f"{number:03d}.nii.gz", image, np.eye(4))
    settings = {
        "bundle_root": str(ROOT), "dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "device": "cpu",
        "ckpt_path": str(tmp_path / "model.pt"), "network_def::channels": CHANNELS, "probabilities": True,
        "roi_size": [16, 16, 16], "spacing": [1.0, 1.0, 1.0],
    }  # fmt: skip
    command = [sys.executable, "-c", SOAK, str(ROOT / "configs/inference.json"), json.dumps(settings)]
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, cwd=ROOT, env=usual, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    resident_mb = json.loads(done.stdout.splitlines()[-1])
    assert len(resident_mb) == CASES
    print(f"MB after 25, 50, ... {CASES} cases: {[round(mb) for mb in resident_mb[24::25]]}")
    assert max(resident_mb[WARM:]) < 1.05 * resident_mb[WARM - 1]
    assert len(list((tmp_path / "out").glob("*_seg.png"))) == CASES
