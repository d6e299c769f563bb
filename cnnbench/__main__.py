"""``python -m cnnbench`` is the ``cnnbench`` command."""

import sys

from cnnbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
