"""On what was it measured: processor, cores, memory, GPU, versions; and how much memory does this process use?"""

import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from scripts.devices import half_precision
from scripts.handlers import peak_memory_mb
from scripts.manifest import versions


def _proc(path: str, field: str) -> str:
    """Return what a file of Linux's /proc says of ``field``; empty if there is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def describe_machine() -> dict[str, Any]:
    """Return the machine and the versions, for the report."""
    memory_kb = _proc("/proc/meminfo", "MemTotal").split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _proc("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "half_precision": str(half_precision("cpu")).removeprefix("torch.").replace("None", "none"),
        "memory_gb": round(int(memory_kb[0]) / 1e6 * 1.024, 1) if memory_kb else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "bundle": versions()["bundle"],
            "python": platform.python_version(),
            "torch": torch.__version__,
            "monai": monai.__version__,
            "numpy": np.__version__,
        },
    }


def resident_mb() -> float:
    """Return the memory that this process has now, in MB; NaN where the system does not say."""
    kilobytes = _proc("/proc/self/status", "VmRSS").split()
    return int(kilobytes[0]) * 1024 / 1e6 if kilobytes else math.nan


def free_memory_mb() -> float:
    """Return the memory that new processes can have, in MB; infinite where the system does not say."""
    kilobytes = _proc("/proc/meminfo", "MemAvailable").split()
    return int(kilobytes[0]) * 1024 / 1e6 if kilobytes else math.inf


def forget_peak() -> None:
    """Have the peak of this process begin anew (Linux), so that what came before does not count."""
    if sys.platform.startswith("linux"):
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        except OSError:
            return
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def host_peak_mb() -> float:
    """Return the most memory that this process had since `forget_peak`, in MB; NaN where the system does not say."""
    kilobytes = _proc("/proc/self/status", "VmHWM").split()
    return int(kilobytes[0]) * 1024 / 1e6 if kilobytes else peak_memory_mb(torch.device("cpu"))
