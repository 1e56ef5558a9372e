"""`python -m merge`."""

from merge.cli import main

main()
