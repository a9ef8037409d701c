"""What suits the device that a network runs on: numbers of half width, memory that is kept or has run out."""

import ctypes
import ctypes.util
import sys

import torch

# mallopt(3) of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


def half_precision(device: torch.device | str) -> torch.dtype | None:
    """Return the numbers of half width that the device computes with faster than with float32; None if there are none.

    float16 on a CUDA device, bfloat16 on a CPU that has instructions for it (AVX-512 BF16 or AMX).
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.float16
    if kind == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of PyTorch's means that a device, or the CPU, has no memory left."""
    signs = ("not enough memory", "DefaultCPUAllocator", "out of memory", "Seems to be OOM")  # the last one is MONAI's
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def keep_freed_memory() -> None:
    """Have this process keep memory that it frees, for its next tensors, instead of giving it back to the system.

    A network on the CPU frees and takes gigabytes in every step; pages that come anew from the system are filled with
    zeros first, which can take as long as the convolutions. Needs glibc (Linux); elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(ctypes.util.find_library("c")), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
