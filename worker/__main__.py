"""`python -m worker` is the console script."""

from worker.cli import main

main()
