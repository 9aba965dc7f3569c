# SPDX-License-Identifier: Apache-2.0
"""Exporters that keep quiet, and what they say when they fail."""

import contextlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator

from slimrank.forward import error_with_source_line

# Characters of an exporter's message that are told; some run over pages.
_MAX_MESSAGE = 300
# Packages that write to the terminal of their own accord.
_TALKERS = ("torch", "torchao", "nncf", "executorch")
# What torch.export says in its first line where it found a dimension fixed.
_CONSTRAINTS = "Constraints violated"
# Torch's exporters, and the output that is held back meanwhile, belong to the process: threads take turns.
EXPORT_TURN = threading.RLock()


@contextlib.contextmanager
def quiet_exporter() -> Iterator[io.StringIO]:
    """Keeps what exporters print and log, and their warnings about code of their own; other warnings pass.

    Yields:
        What was printed and logged so far.
    """
    printed = io.StringIO()
    keeper = logging.StreamHandler(printed)
    # These hang handlers on some of their loggers, which write to the terminal themselves.
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in _TALKERS
    ]
    handlers = {logger: logger.handlers for logger in (logging.root, *loggers)}
    # OpenVINO silences the root for good.
    levels = {logger: logger.level for logger in handlers}
    with contextlib.ExitStack() as stack:
        # onnxruntime logs to the root, which without a handler would get one that stays.
        logging.root.handlers = [keeper]
        for logger in loggers:
            if logger.handlers:
                logger.handlers = [keeper]
        stack.callback(_put_back, handlers, levels)
        stack.enter_context(warnings.catch_warnings())
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(printed))
        yield printed


def told(error: BaseException) -> str:
    """An exporter's error in one line: the innermost cause, which says what went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    if not isinstance(error, Exception):
        return repr(error)
    text = error_with_source_line(error)
    if _CONSTRAINTS in text:
        # The message goes on about torch's own options.
        if "specialized it to be a constant" in str(error):
            return "the code takes the number of samples for fixed (as int(x.shape[0]) or x.view(8, -1) do)"
        text = "the code treats some numbers of samples otherwise (as if x.shape[0] > 8: does)"
        if guard := re.search(r"satisfy the generated guard (.+)", str(error)):
            # What follows on the same line, without a space between, is another message.
            condition = re.sub(r"L\[.*?\]\.size\(\)\[0\]", "batch", guard[1].split("Specializations")[0])
            text += f", or torch cannot tell that it does not: {condition.rstrip('. ')}"
        return text
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."


def _put_back(
    handlers: dict[logging.Logger, list[logging.Handler]], levels: dict[logging.Logger, int]
) -> None:
    for logger, before in handlers.items():
        logger.handlers = before
        logger.setLevel(levels[logger])
