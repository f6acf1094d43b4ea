"""Worker pools by name, of whatever runs here: the current runtime, else the event loop itself."""

from __future__ import annotations

from agentcore._runtime import AgentRuntime
from agentcore.errors import RuntimeClosedError
from agentcore.pools._named import AnyWorkerPool, HostedWorkerPools
from agentcore.pools._records import AnyWorkerPoolConfig, WorkerPoolReport, WorkerPoolType


async def get_worker_pool(
    name: str,
    pool_type: WorkerPoolType | str | None = None,
    config: AnyWorkerPoolConfig | None = None,
) -> AnyWorkerPool:
    """Return the worker pool of a name, made at the first call. It belongs to the current runtime, else to the event loop.

    Those of a runtime end with it. Those of an event loop end with that, and are drained only if they are shut down before.

    Args:
        name: what it is called.
        pool_type: what runs its jobs. If omitted: whatever it is, if it is there already, else ``queue_asyncio``.
        config: how it behaves; whatever it is, if omitted and it is there already.

    Raises:
        RuntimeClosedError: the runtime or the event loop is ending, or the event loop hosts several runtimes.
        ConfigurationError: there is one of another type or configuration; or an argument is not usable.
    """
    runtime = _current_runtime()
    if runtime is not None:
        return runtime.pool(name, pool_type, config)
    return await HostedWorkerPools.current().find_or_make(name, pool_type, config)


async def shutdown_all_worker_pools(wait: bool = True, timeout: float | None = None) -> dict[str, WorkerPoolReport]:
    """Shut down all pools of the current runtime, else of the event loop, at once.

    Args:
        wait: whether to wait for the jobs there are. If not, those that have not begun are cancelled.
        timeout: seconds to wait, then what is left is cut short; None for each pool's `shutdown_timeout`.

    Returns:
        How that went, by the names of the pools.

    Raises:
        RuntimeClosedError: the runtime has ended, or the event loop hosts several.
        ConfigurationError: the timeout is not usable.
    """
    runtime = _current_runtime()
    pools = HostedWorkerPools.current() if runtime is None else runtime.pools
    return await pools.shutdown_all(wait, timeout)


def _current_runtime() -> AgentRuntime | None:
    try:
        return AgentRuntime.current()
    except RuntimeClosedError as error:
        if error.details["state"] != "none":
            raise
        return None
