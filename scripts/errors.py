"""How a mistake in somebody's input reaches them: as one line, not as a traceback."""

import logging
import os
import re
import sys
import types
from typing import Any

TRACEBACK_VARIABLE = "MPUNET_TRACEBACK"
QUOTED = re.compile(r"^scripts\.errors\.InputError: (.*)$", re.MULTILINE)  # in an error of a data loader's process


class InputError(ValueError):
    """Something a user gave is unusable.

    The message is one line that names the file (or the setting), says what is wrong with it, and what to do.
    """


def find_input_error(error: BaseException | None) -> InputError | None:
    """Return the `InputError` that ``error`` is, was raised from (MONAI and Ignite wrap errors), or quotes, or None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if quoted := QUOTED.findall(str(error)):
            return InputError(quoted[-1])
        if isinstance(error, InputError):
            return error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def report_input_errors() -> None:
    """Make an uncaught `InputError` end the program with one line on stderr and exit status 1.

    Ctrl-C ends it with a line too. Any other error still prints its traceback; with the environment variable
    ``MPUNET_TRACEBACK`` set, all do. The same holds for tracebacks that are logged, as MONAI's engines do, and Ignite's
    engines no longer log an `InputError` that they pass on.
    """
    sys.excepthook = _print_one_line
    logging.setLogRecordFactory(_make_record)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)


def _make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = logging.LogRecord(*args, **kwargs)
    if record.exc_info and find_input_error(record.exc_info[1]) and not os.environ.get(TRACEBACK_VARIABLE):
        record.exc_info = None
    return record


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a record is no engine's word about an `InputError` that it raises again."""
    is_of_engine = record.name.startswith("ignite.engine") and record.levelno == logging.ERROR
    passed_on = is_of_engine and find_input_error(sys.exc_info()[1]) is not None
    return not passed_on or bool(os.environ.get(TRACEBACK_VARIABLE))


def _print_one_line(kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt) and not os.environ.get(TRACEBACK_VARIABLE):
        print("stopped by Ctrl-C", file=sys.stderr)
        return
    input_error = find_input_error(error)
    if input_error is None or os.environ.get(TRACEBACK_VARIABLE):
        sys.__excepthook__(kind, error, traceback)
    else:
        message = " ".join(str(input_error).split())
        print(f"error: {message}", file=sys.stderr)
