"""`python -m unival_core`."""

from unival_core.cli import main

main()
