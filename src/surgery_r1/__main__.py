"""``python -m surgery_r1``."""

import sys

from surgery_r1.cli import main

if __name__ == "__main__":
    sys.exit(main())
