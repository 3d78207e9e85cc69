"""`python -m studies.detectors`: interpreted kernels, on one thread."""

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # as pytest does it, for `helpers`

from studies.detectors.table import main

main()
