"""`python -m experiments`: the same as `unival-merge`."""

from experiments.commands import main

main()
