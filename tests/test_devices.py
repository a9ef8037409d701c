import os
import platform
import subprocess
import sys

import pytest
import torch

from scripts.devices import half_precision
from tests import ROOT


def test_half_precision_is_float16_on_cuda():
    assert half_precision("cuda") is half_precision(torch.device("cuda:1")) is torch.float16


@pytest.mark.parametrize(
    ("bf16", "amx", "expected"), [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, None)]
)
def test_half_precision_on_a_cpu_is_what_it_has_instructions_for(monkeypatch, bf16, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert half_precision("cpu") is expected


def test_there_is_no_half_precision_on_devices_that_nobody_tried():
    assert half_precision("meta") is None


BFLOAT16 = "import scripts.devices as devices\ndevices.half_precision = lambda device: torch.bfloat16\n"
FLOAT32 = "import scripts.devices as devices\ndevices.half_precision = lambda device: None\n"


def faults(numbers: int, call: str = "") -> int:
    """Return the pages that a process gets from the system while it takes and frees some float32 numbers ten times."""
    program = (
        "import resource, torch\n"
        "from torch import nn\n"
        "from scripts.devices import *\n"
        "from scripts.networks import MPUNet\n"
        f"{call}\n"
        "def faults():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20):\n"
        f"    torch.ones({numbers})\n"
        "before = faults()\n"
        "for _ in range(10):\n"
        f"    torch.ones({numbers})\n"
        "print(faults() - before)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=120)
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(
    ("call", "largest_kept_mb"),
    [
        ("keep_freed_memory()", 64),
        ("keep_freed_memory(16)", 8),
        (f"{BFLOAT16}keep_freed_memory_in_training(nn.Identity())", 24),
        (f"{BFLOAT16}keep_freed_memory_in_training(nn.Identity(), amp=False)", 64),
        (f"{FLOAT32}keep_freed_memory_in_training(nn.Identity())", 64),
        ("keep_freed_memory_in_training(MPUNet(channels=(8, 8, 8, 8, 8), checkpointing=True))", 0),
    ],
)
def test_freed_memory_is_kept_for_the_next_tensor_up_to_a_size(call, largest_kept_mb):
    for megabytes in (8, 24, 64):
        pages = 10 * megabytes * 1_000_000 / 4096
        kept = faults(megabytes * 250_000, call) < pages / 10
        assert kept == (megabytes <= largest_kept_mb)
