"""`python -m magsd`."""

from magsd.cli import main

main()
