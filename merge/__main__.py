"""`python -m merge`."""

from merge.commands import main

main()
