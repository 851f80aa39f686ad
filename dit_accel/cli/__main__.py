"""`python -m dit_accel.cli`: the command, if its script is not on the path."""

from dit_accel.cli import main

main()
