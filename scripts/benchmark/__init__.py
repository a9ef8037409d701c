"""How fast and how lean is all this, beside the released code and the usual networks?

    python -m scripts.benchmark --output_dir runs/benchmark

Every measurement is a process of its own; what is compared is measured in turn, round by round, in one run. Four parts:
`network` (forward and training step), `attention` (by number of positions), `volume` (a whole CT, file to file) and
`epoch` (of the paper's size).

From leaf to root: `machine` (what it ran on), `isolation` (a process of its own), `networks` (what is compared),
`scans` (on what), then what is measured: `network`, `volume` and `epoch`; `plan` (which measurements), `tables`, `run`.
"""
