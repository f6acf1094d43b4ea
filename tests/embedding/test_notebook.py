"""A runtime that is opened in one cell of a notebook, used in others, and closed in a third."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.embedding.hosts import TERM, needs, records

pytestmark = needs("ipykernel", "jupyter_client")
notebook = pytest.importorskip("tests.embedding.notebook")
Notebook, good = notebook.Notebook, notebook.good

OPEN = """
from agentcore import AgentRuntime
from tests.embedding.apps.parts import CONFIG, equip
from tests.embedding.apps.program import until_failed

runtime = await AgentRuntime.open(CONFIG)
await equip(runtime)
"""
OWN = 'print(await runtime.run("work", {"name": "own"}))'
BACKGROUND = 'await runtime.submit("work", {"name": "background"})'
IN_ONE = """
async with AgentRuntime(CONFIG) as another:
    await equip(another)
    print(another.health().state, await another.run("work", {"name": "own"}))
"""


def test_open_work_and_close_in_three_cells(tmp_path: Path) -> None:
    """Nothing of it minds that each cell is a task of its own; and a block in one cell works as everywhere."""
    with Notebook(tmp_path) as kernel:
        assert good(kernel.run(OPEN)) == ""
        own = kernel.start(OWN)
        kernel.expect("own")[0].end()
        assert good(kernel.result(own)) == "own cleaned up\nown done\n{'name': 'own'}\n"
        assert good(kernel.run("await runtime.aclose()")) == "line closed\n"
        own = kernel.start(IN_ONE)
        kernel.expect("own")[0].end()
        assert good(kernel.result(own)).endswith("open {'name': 'own'}\nline closed\n")
        assert kernel.shut_down() == 0
        assert records(kernel.said + kernel.output, "[A-Z]+") == []


def test_failures_show_below_a_cell_and_when_it_is_closed(tmp_path: Path) -> None:
    """The kernel goes on after each of them."""
    with Notebook(tmp_path) as kernel:
        for how, level, text in (
            ("fail", "ERROR", "nobody looked"),
            ("exit", "CRITICAL", "the agent gave up"),
            ("break", "CRITICAL", "the line is dead"),
        ):
            kernel.said = ""
            good(kernel.run(OPEN))
            good(kernel.run(BACKGROUND))
            (background,) = kernel.expect("background")
            # With a semicolon: what a cell shows, the kernel keeps, and whoever has the handle may still ask it.
            good(kernel.run(f"await runtime.submit({how!r});"))
            kernel.until_said(f"^{level} agentcore.runtime: .*")
            if how == "fail":
                assert "open\n" in good(kernel.run("print(runtime.health().state)"))
                background.end()
            else:
                background.wait_for_cut()
                assert "failed\n" in good(kernel.run("await until_failed(runtime)\nprint(runtime.health().state)"))
                refused = kernel.run(OWN)
                assert refused.error == "RuntimeClosedError"
                assert text in refused.traceback
            closed = kernel.run("await runtime.aclose()")
            assert closed.error == "AgentCrashedError"
            assert text in closed.traceback
            assert "background cleaned up\n" in kernel.said
            assert kernel.said.count("line closed\n") == 1
            assert len(records(kernel.said, "[A-Z]+")) == 1
        assert kernel.shut_down() == 0


def test_an_interrupted_cell_takes_only_its_own_work_along(tmp_path: Path) -> None:
    """The button 'stop': what the cell waits for is cut, the runtime and what was submitted go on."""
    with Notebook(tmp_path) as kernel:
        good(kernel.run(OPEN))
        good(kernel.run(BACKGROUND))
        (background,) = kernel.expect("background")
        cell = kernel.start(OWN)
        (own,) = kernel.expect("own")
        kernel.interrupt()
        own.wait_for_cut()
        assert kernel.result(cell).error in {"CancelledError", "KeyboardInterrupt"}
        assert "open\n" in good(kernel.run("print(runtime.health().state)"))
        background.end()
        good(kernel.run("await runtime.aclose()"))
        assert "background done\n" in kernel.said
        assert kernel.shut_down() == 0
        assert records(kernel.said + kernel.output, "[A-Z]+") == []


@pytest.mark.parametrize("how", ["menu", "SIGTERM"])
def test_a_kernel_that_is_shut_down_during_work(how: str, tmp_path: Path) -> None:
    """Nobody has closed the runtime."""
    with Notebook(tmp_path) as kernel:
        good(kernel.run(OPEN))
        good(kernel.run(BACKGROUND))
        kernel.expect("background")
        if how == "menu":
            assert kernel.shut_down() == 0
        else:
            kernel.signal(TERM)
            assert kernel.finish() == -TERM
