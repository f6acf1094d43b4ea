"""The same traces on every event loop, interpreter and hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRACES = Path(__file__).with_name("traces.py")
# What `traces.py` prints last on every version that is supported: it changes with the programs there, and with nothing else.
EXPECTED = "91fe3535e89975e8"


def traces(seed: str, python: str = sys.executable) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(TRACES.parents[2])}
    done = subprocess.run(
        [python, str(TRACES)], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.thorough
def test_the_traces_do_not_depend_on_the_order_of_hashes() -> None:
    found = {traces(seed) for seed in ("0", "1", "random")}
    assert len(found) == 1
    assert {line.split()[-1] for line in found} == {EXPECTED}


@pytest.mark.parametrize("python", [one for one in os.environ.get("AGENTCORE_PYTHONS", "").split(os.pathsep) if one])
def test_the_traces_do_not_depend_on_the_interpreter(python: str) -> None:
    assert traces("0", python) == traces("0")
