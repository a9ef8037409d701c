"""Where does this bundle lie? Its configs work from any working directory, with their ``bundle_root`` of "."."""

import os
from pathlib import Path

from scripts.manifest import find_parser

ROOT = Path(__file__).resolve().parents[1]
HERE = "."  # the configs' default


def locate_bundle() -> None:
    """Give the config that is being initialized the bundle's folder as ``bundle_root``, unless it has another one.

    In the folder itself it stays ".", so that what a run notes has no path of somebody's computer. Then all of the
    config is parsed anew: MONAI had evaluated its imports before ``scripts`` could be found.

    A config names it in ``initialize``, after an expression by which ``scripts`` is found at all.
    """
    parser = find_parser()
    if parser is None:
        return
    elsewhere = parser["bundle_root"] == HERE and not os.path.samefile(HERE, ROOT)
    parser["bundle_root"] = str(ROOT) if elsewhere else parser["bundle_root"]
    parser.parse()
