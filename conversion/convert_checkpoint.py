#!/usr/bin/env python
"""`mortm convert` for a clone that is not installed: the same options."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mortm_hf.app.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
