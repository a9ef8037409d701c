"""How a training begins with weights that another one has learned, perhaps for other classes."""

import logging
import os
import re
from collections.abc import Mapping

from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader
from monai.networks.utils import copy_model_state, freeze_layers
from torch import Tensor, nn

from scripts.errors import InputError
from scripts.files import read_weights
from scripts.handlers import existing_file
from scripts.manifest import find_parser

logger = logging.getLogger(__name__)

LISTED = 10  # tensors named in the log


def weights_of_client() -> str | None:
    """Return the file of weights that MONAI Label's app for bundles begins a training with, None in any other training.

    All it does for that is to put MONAI's ``CheckpointLoader`` among the handlers of the config that it runs. The
    network must be that of the weights by then, and all else too, see ``trained_with`` in ``configs/train.json``.
    """
    parser = find_parser()
    handlers = parser.get("train::handlers", []) if parser else []
    for handler in handlers:
        if isinstance(handler, Mapping) and handler.get("_target_") == CheckpointLoader.__name__:
            return handler["load_path"]
    return None


def take_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str | os.PathLike) -> list[str]:
    """Load into ``network`` every tensor of ``weights`` that has the name and the shape of one of its own.

    Args:
        network: whose other tensors stay as they are, such as the heads of other classes.
        weights: a state dict.
        source: where it is from, for messages.

    Returns:
        The names of the tensors that are still the network's own, sorted.

    Raises:
        InputError: if fewer than half of the network's tensors are there: these are another network's.
    """
    own = network.state_dict()
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{source}: is no state dict of a network; give weights such as models/model.pt")
    state, taken, new = copy_model_state(own, weights, inplace=False)
    if 2 * len(taken) < len(own):
        raise InputError(
            f"{source}: only {len(taken)} of the network's {len(own)} tensors are there in its shape; give weights of "
            "this kind of network, or the configs and network settings that they were trained with"
        )
    network.load_state_dict(state)
    listed = [
        f"{name} {tuple(own[name].shape)}" + (f", not {tuple(weights[name].shape)}" if name in weights else "")
        for name in new[:LISTED]
    ]
    more = f" and {len(new) - LISTED} more" if len(new) > LISTED else ""
    logger.info(
        "%s: %d of %d tensors taken; new: %s%s", source, len(taken), len(own), "; ".join(listed) or "none", more
    )
    return new


class PretrainedWeights:
    """Before a training, takes those weights of another one that fit: see `take_weights`.

    Args:
        network: the network.
        path: of a state dict alone, such as ``models/model.pt``.
        averaged: what holds the average of the network's weights, if there is one: it begins with them too.

    Raises:
        InputError: if there is no such file; when the engine starts, if it is damaged or another network's.
    """

    def __init__(self, network: nn.Module, path: str | os.PathLike, averaged: nn.Module | None = None):
        self.network = network
        self.averaged = averaged
        self.path = existing_file(path, "give weights to begin with by --pretrained")

    def attach(self, engine: Engine) -> None:
        """Take the weights when ``engine`` starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Take the weights."""
        take_weights(self.network, read_weights(self.path), self.path)
        if self.averaged is not None and self.averaged is not self.network:
            self.averaged.load_state_dict(self.network.state_dict())


def freeze(network: nn.Module, layers: str) -> None:
    """Keep the parameters whose names match the regular expression ``layers`` as they are.

    The running statistics of batch norms among them are no parameters: they follow the new scans.

    Raises:
        InputError: if no name matches.
    """
    if not any(re.search(layers, name) for name, _ in network.named_parameters()):
        raise InputError(f"frozen_layers: {layers!r} matches no parameter of {type(network).__name__}; mend it")
    freeze_layers(network, freeze_vars=layers)
