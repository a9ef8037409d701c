"""What suits the device that a network runs on: numbers of half width, memory that is kept or has run out."""

import ctypes
import ctypes.util
import sys

import torch
from torch import nn

# mallopt(3) of glibc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGEST_INT = 2**31 - 1
LARGEST_THRESHOLD_MB = 32  # of M_MMAP_THRESHOLD


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


def keep_freed_memory(largest_mb: int | None = None) -> None:
    """Have this process keep memory that it frees, for its next tensors, instead of giving it back to the system.

    A network on the CPU frees and takes gigabytes in every step; pages that come anew from the system are filled with
    zeros first, which can take as long as the convolutions. What is kept leaves holes that fit nothing: a training,
    whose tensors have many sizes, takes a quarter more memory if the largest are kept too. Needs glibc (Linux);
    elsewhere it does nothing.

    Args:
        largest_mb: of blocks that are kept, up to 32 MiB; larger ones are given back when freed. None: all are kept.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(ctypes.util.find_library("c")), "mallopt", None)
    if mallopt is None:
        return
    if largest_mb is None:
        mallopt(M_MMAP_MAX, 0)
    else:
        mallopt(M_MMAP_THRESHOLD, min(largest_mb, LARGEST_THRESHOLD_MB) << 20)
    mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def keep_freed_memory_in_training(network: nn.Module, amp: bool = True) -> None:
    """Choose what `keep_freed_memory` keeps while ``network`` is trained, in `half_precision` if ``amp``.

    Little, if it is to take little memory. In float32, whose blocks are twice as large, giving the largest back costs
    more than the quarter of memory is worth: all are kept.
    """
    if getattr(network, "checkpointing", False):
        keep_freed_memory(1)
    else:
        keep_freed_memory(LARGEST_THRESHOLD_MB if amp and half_precision("cpu") else None)
