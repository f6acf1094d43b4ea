"""The command line: ``agentcore run module:object --input ...``.

Tables on a terminal, JSON in a pipe. Exit codes: 0 it worked, 1 the task failed, 2 the call was wrong, 124 the time was
over, 130 it was interrupted.
"""

from agentcore.cli._main import main

__all__ = ["main"]
