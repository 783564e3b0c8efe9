"""`python -m nodenet`: the same as the `nodenet` script, for callers that know an interpreter and not a PATH."""

from nodenet.cli.main import main

main()
