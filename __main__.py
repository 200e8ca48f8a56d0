"""`python -m qwenref`: the command `engine`."""

import sys

from .tools.main import main

if __name__ == "__main__":
    sys.exit(main())
