"""The command line: ``tfc`` and ``python -m tfc``."""

import signal
import sys

from . import _tfc


def main() -> int:
    """Runs the command line and returns its exit code."""
    # Python's own handler would only note the signal until the command is over. An ignored signal stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _tfc.main(["tfc", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
