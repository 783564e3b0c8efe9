"""`python -m nodenet`: the same as the `nodenet` script, for callers that have a Python interpreter but no PATH."""

from nodenet.cli.main import main

main()
