"""What `import agentcore` loads: only what every program needs."""

import subprocess
import sys

import pytest

# Each of these costs more than the whole of `import agentcore`, or is an optional extra.
LATER = ["cattrs", "hypothesis", "pytest", "rich", "sqlite3", "trio", "uvloop"]


@pytest.mark.parametrize("module", ["agentcore", "agentcore.cli", "agentcore.testing"])
def test_import_loads_nothing_that_can_wait(module: str) -> None:
    """What a program may never use is loaded when it is first used."""
    # What the interpreter itself has loaded before, as it does under coverage, does not count.
    code = f"import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert [name for name in LATER if name in loaded] == []


def test_import_has_no_side_effects() -> None:
    """No thread, no signal handler, no logging handler appears because of an import."""
    code = (
        "import logging, signal, threading\n"
        "before = [signal.getsignal(number) for number in signal.valid_signals()]\n"
        "import agentcore\n"
        "assert before == [signal.getsignal(number) for number in signal.valid_signals()]\n"
        "assert threading.active_count() == 1\n"
        "assert logging.getLogger().handlers == []\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
