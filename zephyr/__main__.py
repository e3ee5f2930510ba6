"""`python -m zephyr` is the command `zephyr`."""

import sys

from zephyr.cli import main

if __name__ == "__main__":
    sys.exit(main())
