"""Shared by several commands: options, errors, files, progress and tables.

In: values of a command. Out: text, exit codes and files. `verb.py` makes a command of a dataclass
of options; `errors.py` decides which errors end a command with which code; `files.py` writes all
files of a run or none.
"""
