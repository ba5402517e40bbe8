"""`python -m mortm_hf.training.rlmf RECIPE [--field value ...]`: for launchers of several processes."""

import sys

from .feedback_run import main


sys.exit(main())
