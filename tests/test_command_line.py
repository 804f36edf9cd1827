"""`python -m jaxsoftmax`: its arguments, and what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from jaxsoftmax import __version__
from jaxsoftmax.__main__ import main


def test_one_dtype_as_json():
    # One device: eight virtual ones are the same machine eight times.
    done = subprocess.run(
        [sys.executable, "-m", "jaxsoftmax", "--dtype", "bfloat16", "--json"],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # progress is for a terminal
    found = json.loads(done.stdout)
    assert found["jaxsoftmax"] == __version__
    assert found["passed"]
    assert len(found["checks"]) > 8
    for check in found["checks"]:
        assert check["dtype"] == "bfloat16"
        assert check["passed"]
        assert 0 <= check["errors"]["value"] <= check["allowed"]["value"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "--dtype"),
        (["--version"], 0, __version__),
        (["--nope"], 2, "unrecognized arguments: --nope"),
        (["--dtyp", "float32"], 2, "unrecognized arguments: --dtyp"),
        (["--dtype", "int8"], 2, "invalid choice: 'int8'"),
        (["float32"], 2, "unrecognized arguments: float32"),
    ],
)
def test_arguments(arguments, status, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == status
    out, err = capsys.readouterr()
    assert said in out + err
