"""Measure speed and memory: ``python -m scripts.benchmark --output_dir D [--only network,volume] [--quick]``."""

import sys

from scripts.benchmark.run import PEER_WINDOWS, run_benchmark
from scripts.commands import run_command


def _command(
    output_dir: str = "runs/benchmark",
    only: str | tuple[str, ...] = (),
    repeats: int = 2,
    peer_repeats: int = 1,
    windows: int = PEER_WINDOWS,
    ckpt_path: str = "",
    device: str = "",
    quick: bool = False,
    fresh: bool = False,
) -> bool:
    """Measure the network, its attention, whole CTs and an epoch, beside the released code and other networks.

    Args:
        output_dir: where scans, masks and the report are: benchmark.md, .csv, .json. What is there is not done again.
        only: network, attention, volume, epoch, separated by commas; all by default.
        repeats: rounds in which the reference and MPU-Net are measured.
        peer_repeats: rounds in which the other networks are.
        windows: of a whole CT that other networks compute, the others' seconds being calculated; 0: all.
        ckpt_path: weights of a full-size MPU-Net; without, it is trained for a minute.
        device: to measure on; by default the GPU where there is one.
        quick: small images: minutes, and figures that say nothing.
        fresh: measure again what is there.
    """
    return run_benchmark(output_dir, only, repeats, peer_repeats, windows, ckpt_path, device, quick, fresh)


def main() -> None:
    """Run from the command line; the exit status is 1 if a measurement failed."""
    sys.exit(0 if run_command(_command) else 1)


if __name__ == "__main__":
    main()
