"""``python -m rlkit``, where the console script is not on the path."""

from rlkit.cli.main import main

main()
