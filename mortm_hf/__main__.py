"""`python -m mortm_hf` is the command `mortm`."""

import sys

from mortm_hf.app.cli import main


if __name__ == "__main__":
    sys.exit(main())
