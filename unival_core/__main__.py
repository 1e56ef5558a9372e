"""`python -m unival_core`."""

from unival_core.commands import main

main()
