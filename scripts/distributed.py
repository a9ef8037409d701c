"""How several processes that `torchrun` started do one piece of work: a training, or the evaluation of one network."""

import datetime
import logging
import os
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from monai.data import DistributedSampler
from torch import Tensor, nn
from torch.utils.data import Dataset

from scripts.errors import InputError


def local_device() -> torch.device:
    """Return the GPU of this process, by its number on its computer; the CPU where there is no GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


def own_shard() -> str:
    """Return which part of the images is this process's, such as ``"0/4"``: see `scripts.records.own_images`."""
    return f"{os.environ.get('RANK', 0)}/{os.environ.get('WORLD_SIZE', 1)}"


def join(device: torch.device | str, timeout_hours: float | None = None) -> None:
    """Meet the other processes: by NCCL on GPUs, by gloo on CPUs. All but the first keep their log to warnings.

    Args:
        device: of this process.
        timeout_hours: for which one waits for another; None for PyTorch's default.

    Raises:
        InputError: if this process was not started by ``torchrun``.
    """
    device = torch.device(device)
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise InputError("multi_gpu_*.json: are for several processes; start them by torchrun: docs/many_machines.md")
    os.environ.pop("SLURM_JOB_ID", None)  # by it Ignite would take the numbers of Slurm's tasks for those of torchrun
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = None if timeout_hours is None else datetime.timedelta(hours=timeout_hours)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    if idist.get_rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)


class CaseSampler(DistributedSampler):
    """Deals the cases of a dataset out to the processes in turn, each case to one.

    Raises:
        InputError: if there are fewer cases than processes.
    """

    def __init__(self, dataset: Dataset):
        if len(dataset) < idist.get_world_size():
            raise InputError(
                f"{len(dataset)} cases to measure, for {idist.get_world_size()} processes; start no more than there "
                "are cases"
            )
        super().__init__(dataset, even_divisible=False, shuffle=False)


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return SumOverProcesses.apply(gradient.contiguous())


class CPUSyncBatchNorm(nn.BatchNorm3d):
    """PyTorch's ``SyncBatchNorm``, which is for GPUs alone, on the CPU: statistics are those of all processes' batches.

    All processes have to have batches of one size.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Normalise ``(B, C, H, W, D)``, in float32 whatever its type."""
        axes, processes = (0, 2, 3, 4), idist.get_world_size()
        if not self.training or processes == 1:
            return super().forward(image)
        mean = SumOverProcesses.apply(image.float().mean(axes, keepdim=True)) / processes
        centred = image.float() - mean
        variance = SumOverProcesses.apply(centred.square().mean(axes, keepdim=True)) / processes
        with torch.no_grad():
            count = image.numel() // image.shape[1] * processes
            self.num_batches_tracked += 1
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.flatten(), momentum)
            self.running_var.lerp_(variance.flatten() * count / (count - 1), momentum)
        scale = (variance + self.eps).rsqrt() * self.weight.view(1, -1, 1, 1, 1)
        return (centred * scale + self.bias.view(1, -1, 1, 1, 1)).to(image.dtype)


def prepare_network(network: nn.Module, device: torch.device | str) -> nn.Module:
    """Return ``network`` as ``DistributedDataParallel`` needs it.

    Its batch norms have the statistics of all processes' batches; names, and what is frozen, stay as they are. Its
    weights lie in memory as `scripts.inferers.DeviceInferer` may lay them: gradients of the first step would be mixed
    up if that came later.

    Args:
        network: is changed.
        device: that it runs on.
    """
    is_gpu = torch.device(device).type == "cuda"
    if is_gpu:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for name, norm in list(network.named_modules()):
        if isinstance(norm, nn.BatchNorm3d) and not is_gpu:
            synchronized = CPUSyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
            synchronized.load_state_dict(norm.state_dict())
            synchronized.weight, synchronized.bias = norm.weight, norm.bias
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, synchronized.to(device).train(norm.training))
    return network.to(memory_format=torch.channels_last_3d)
