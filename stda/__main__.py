"""``python -m stda`` is the ``stda`` command."""

from stda.cli import main

main()
