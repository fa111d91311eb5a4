"""``python -m selectserve APP``."""

from __future__ import annotations

import sys

from selectserve.cli import main  # absolute: anyio's processes load this file by its path

if __name__ == "__main__":
    sys.exit(main())
