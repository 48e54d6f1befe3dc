"""The ``wgllm`` command, and ``python -m wgllm``."""

import contextlib
import os
import signal
import sys
from typing import NoReturn

_INTERRUPTED = 130


def main() -> int:
    """Runs the command line; returns the exit code, or ends the process when it was interrupted."""
    # Importing takes a while, and Python loses a KeyboardInterrupt that comes at some places of it.
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default:  # else Ctrl-C is ignored, as in `wgllm ... &`
        signal.signal(signal.SIGINT, lambda number, frame: _interrupted())
    from wgllm import cli

    if default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = cli.main()
    except KeyboardInterrupt:  # one that came while another was told
        _interrupted()
    if code == _INTERRUPTED:
        # Python would end with SIGINT, though it was caught, after a KeyboardInterrupt that went through an eval, as
        # in the import of a command; and another Ctrl-C while it ends would show a traceback.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)
    return code


def _interrupted() -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, b"\n")
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
