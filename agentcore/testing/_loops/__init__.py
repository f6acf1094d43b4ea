"""The event loops of simulations: the one package that knows the insides of asyncio, of trio and of AnyIO.

Every private attribute that it touches stands in `_check.py`, which tries them before the first simulation.
"""

from agentcore.testing._kernel import Kernel, SimTask

from . import _asyncio, _trio
from ._asyncio import AsyncioLoop
from ._trio import TrioLoop

__all__ = ["AsyncioLoop", "TrioLoop", "current_kernel", "current_task"]


def current_kernel() -> Kernel | None:
    """Return the kernel of the simulation that runs in this thread, None outside of one."""
    return _asyncio.current_kernel() or _trio.current_kernel()


def current_task() -> SimTask:
    """Return the task of a simulation that is running.

    Raises:
        RuntimeError: no simulation runs here.
    """
    kernel = current_kernel()
    if kernel is None or kernel.current is None:
        raise RuntimeError("no simulation runs here; use @simulate, run_sim or Simulation.run")
    return kernel.current
