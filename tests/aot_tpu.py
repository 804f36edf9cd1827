"""The compiler for TPUs that are not there, for the tests that use it: skipped without libtpu."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed: pip install libtpu", allow_module_level=True)
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no TPU is asked for its kind
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nor needed by one worker of pytest alone
sys.path.insert(0, str(Path(__file__).parent.parent))
aot = importlib.import_module("benchmarks.aot_kernels")
