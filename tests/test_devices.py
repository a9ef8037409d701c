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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_tensor():
    """Count the pages that a process gets from the system while it takes and frees 64 MB ten times."""
    program = (
        "import resource, torch\n"
        "from scripts.devices import keep_freed_memory\n"
        "{}\n"
        "def faults():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20):\n"
        "    torch.ones(16_000_000)\n"
        "before = faults()\n"
        "for _ in range(10):\n"
        "    torch.ones(16_000_000)\n"
        "print(faults() - before)\n"
    )

    def faults(call: str) -> int:
        command = [sys.executable, "-c", program.format(call)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        return int(
            subprocess.run(
                command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=120
            ).stdout
        )

    assert faults("keep_freed_memory()") < faults("") / 10
