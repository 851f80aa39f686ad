"""The entry point of the `dit-accel` command.

In: the words on the command line. Out: what `app` does with them.
Knows that the imports of the command take a while: Ctrl-C meanwhile ends it without a traceback.
Ours.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point of the console script."""
    try:
        from dit_accel.cli.app import run
    except KeyboardInterrupt:
        sys.exit(130)
    run()
