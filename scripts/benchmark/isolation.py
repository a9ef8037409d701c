"""How is one measurement kept from another: in a process of its own, which ends with it."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import torch

from scripts.errors import InputError, find_input_error

PRELOADED = ["torch", "monai.transforms", "monai.engines", "monai.networks.nets", "monai.inferers", "monai.bundle"]


class MeasurementError(RuntimeError):
    """A measurement ended without a result; the message says how."""


def _send_result(connection: Connection, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    try:
        connection.send(("result", function(**arguments)))
    except Exception as error:  # whatever it is, it is the other process that says so
        if mistake := find_input_error(error):
            connection.send(("mistake", str(mistake)))
            return
        while error.__cause__ is not None:  # MONAI says of many that "a component" failed
            error = error.__cause__
        connection.send(("error", f"{type(error).__name__}: {error}"))


def run_isolated(function: Callable[..., Any], **arguments: Any) -> Any:
    """Return what ``function(**arguments)`` returns in a new process, which has nothing of earlier ones.

    Where the system can, the process is forked off one that has imported the libraries and done nothing else; glibc's
    ``MALLOC_`` variables of the user are left out, so that a plain process is plain, and progress bars too.

    Raises:
        InputError: if the function raises one.
        MeasurementError: if it raises another error, or its process is killed, as for want of memory.
    """
    context = multiprocessing.get_context("forkserver" if sys.platform.startswith("linux") else "spawn")
    if sys.platform.startswith("linux"):
        context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, function, arguments))
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    with mock.patch.dict(os.environ, plain | {"TQDM_DISABLE": "1"}, clear=True):
        process.start()
    sender.close()
    try:
        kind, content = receiver.recv()
    except EOFError:
        kind, content = "error", ""
    except BaseException:  # Ctrl-C: nobody waits for it any more
        process.kill()
        raise
    finally:
        receiver.close()
        process.join()
    if kind == "mistake":
        raise InputError(content)
    if kind == "error":
        raise MeasurementError(content or f"the process ended with exit status {process.exitcode}, as if out of memory")
    return content


def synchronize(device: torch.device) -> None:
    """Wait for what a CUDA device was told to do; other devices have done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
