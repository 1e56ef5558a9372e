"""`python -m experiments`: the same as `unival-merge`."""

from experiments.cli import main

main()
