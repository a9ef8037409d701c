"""Lets a torchvision for CUDA, as PyPI has it, be imported beside a torch for the CPU alone.

MONAI Label imports it to paste pictures together. Without the CUDA libraries its operators cannot be loaded, and what
it says of them on import fails; here they are declared. Python runs this file when it starts, if it finds it.
"""

import importlib.abc
import sys
from importlib.metadata import version


class OperatorDeclarer(importlib.abc.MetaPathFinder):
    """Declares the operators when torchvision is about to be imported, and finds no module."""

    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None and "+" not in version("torchvision"):
                self.library = torch.library.Library("torchvision", "DEF")
                for operator in ("nms(Tensor dets, Tensor scores, float iou_threshold)", "qnms(Tensor dets)"):
                    self.library.define(f"{operator} -> Tensor")
        return None


declarer = OperatorDeclarer()
sys.meta_path.insert(0, declarer)
