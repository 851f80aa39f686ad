"""Runs commands of dit-accel one after the other in this process, whose imports take the longest.

Goes in: on stdin a list of commands, each a list of words, as JSON; and a file's name. Comes out:
that file, with exit code and output of each, and how often it loaded weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from commands import invoke

import dit_accel
from dit_accel.models import loading

LOADED: list[Any] = []


def main() -> None:
    read = loading.read
    loading.read = lambda model, **given: LOADED.append(model) or read(model, **given)
    ran = []
    for words in json.load(sys.stdin):
        LOADED.clear()
        result = invoke(*words)
        ran.append([result.exit_code, result.stdout + result.stderr, len(LOADED)])
    found = {"package": dit_accel.__file__, "ran": ran}
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
