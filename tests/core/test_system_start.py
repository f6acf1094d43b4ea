"""The start of a whole system: with everything, or not at all."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import agentcore
from agentcore import (
    AgentRuntime,
    CircuitBreakerConfig,
    ConfigurationError,
    RegistryError,
    RuntimeClosedError,
    SystemConfiguration,
    SystemContext,
    execute_task,
    get_circuit_breaker,
    get_function_registry,
    get_registry,
    get_worker_pool,
    initialize_system,
    load_configuration,
)
from agentcore._breakers import of_process
from agentcore.observe import _metrics
from agentcore.testing import cancel_everywhere, current_simulation
from tests.core.systems import QUIET, check_over, of, process_of_its_own

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def of_its_own() -> Iterator[None]:
    """Begin without anything of the process, and put its log back."""
    with process_of_its_own():
        yield


async def test_what_a_system_consists_of() -> None:
    """Pools of the configured sizes, the circuit of the process, a hosted runtime: all found by their names too."""
    system = await initialize_system(QUIET)
    try:
        assert AgentRuntime.current() is system.runtime
        assert of(system).hosted
        assert await get_worker_pool("io_tasks") is system.io_pool
        assert await get_worker_pool("cpu_tasks") is system.cpu_pool
        assert ("queue_asyncio", "thread") == (system.io_pool.pool_type, system.cpu_pool.pool_type)
        assert (3, 2) == (system.io_pool.config.workers, system.cpu_pool.config.workers)
        assert get_circuit_breaker("api_service") is system.api_circuit
        assert CircuitBreakerConfig(failure_threshold=4, reset_timeout_ms=30_000.0) == system.api_circuit.config
        assert (True, 0, ()) == (system.accepting_tasks, len(system.task_queue), system.active_agents)
    finally:
        await system.aclose()
    check_over(system)


async def test_it_works_from_end_to_end() -> None:
    """A task goes through both pools and the circuit."""

    async def look_up(word: str) -> str:
        return word.upper()

    async with await initialize_system(QUIET) as system:

        @of(system).handler("shout")
        async def shout(given: dict[str, Any]) -> dict[str, Any]:
            found = await system.api_circuit.execute(system.io_pool.asubmit, look_up, given["word"])
            return {"length": await system.cpu_pool.asubmit(len, found), "word": found}

        assert {"length": 5, "word": "HELLO"} == await execute_task("shout", {"word": "hello"})
    check_over(system)
    assert 1 == system.api_circuit.metrics.successes


async def test_it_logs_and_counts_as_configured(tmp_path: Path) -> None:
    """The whole configuration is in force: log, metrics, and the limits of the runtime."""
    log = tmp_path / "log"
    configuration = load_configuration(env={}, logging={"output": str(log)}, runtime={"in_flight": 7, "grace": 1.5})
    async with await initialize_system(configuration) as system:
        assert (7, 1.5) == (of(system).config.in_flight, of(system).config.grace)
        of(system).handler("echo")(lambda given: given)
        await execute_task("echo", {})
    assert 1 == agentcore.init_metrics().collect()["events.task_completed"]
    assert "INFO agentcore.system: the system is shut down" in log.read_text(encoding="utf-8")


async def test_without_a_configuration_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file in the working directory, as `load_configuration` does it; workers that are not given have a default."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agentcore.toml").write_text("cpu_workers = 1\n[logging]\nenabled = false\n", encoding="utf-8")
    async with await initialize_system() as system:
        assert 1 == system.cpu_pool.config.size
        assert (None, True) == (system.io_pool.config.workers, system.io_pool.config.size >= 16)


async def test_tools_may_be_functions() -> None:
    """A program that has made its registries before keeps them, of whatever kind they are."""
    get_function_registry("tools").register("hammer", len)
    async with await initialize_system(QUIET):
        assert len is get_function_registry("tools").get_sync("hammer")


def state_of_process() -> list[object]:
    """Return what a system changes in the process."""
    logger = logging.getLogger("agentcore")
    return [
        {name: get_registry(name).list_names() for name in ("agents", "task_handlers")},
        list(of_process.list_all()),
        (logger.level, tuple(logger.handlers), logger.propagate),
        _metrics.current(),
        [thread.name for thread in threading.enumerate() if "tasks" in thread.name],
    ]


def circuit_is_another(monkeypatch: pytest.MonkeyPatch, _: Path) -> SystemConfiguration:
    """Have the circuit be there with another configuration."""
    get_circuit_breaker("api_service", CircuitBreakerConfig(failure_threshold=99))
    return QUIET


def log_cannot_be_opened(_: pytest.MonkeyPatch, folder: Path) -> SystemConfiguration:
    """Name a file for the log that cannot be written."""
    return load_configuration(env={}, logging={"output": str(folder / "absent" / "log")})


def tools_cannot_be_registered(monkeypatch: pytest.MonkeyPatch, _: Path) -> SystemConfiguration:
    """Have a package offer an agent, and a tool that has no attribute."""
    entries = {
        "agentcore.agents": [metadata.EntryPoint("fox_agent", "forest:Fox", "agentcore.agents")],
        "agentcore.tools": [metadata.EntryPoint("axe", "forest", "agentcore.tools")],
    }
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: entries.get(group, []))
    return QUIET


@pytest.mark.parametrize(
    ("obstacle", "kind", "message"),
    [
        (circuit_is_another, ConfigurationError, "circuit 'api_service' exists with another config"),
        (log_cannot_be_opened, ConfigurationError, "the file of logging.output must be writable"),
        (tools_cannot_be_registered, RegistryError, "a lazy item of registry 'tools' must read"),
    ],
)
async def test_a_start_that_fails_leaves_nothing(
    obstacle: Callable[..., SystemConfiguration],
    kind: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a runtime, nor a registration, nor a circuit, nor a handler of the log; and the next start works."""
    configuration = obstacle(monkeypatch, tmp_path)
    before = state_of_process()
    with pytest.raises(kind, match=message):
        await initialize_system(configuration)
    assert before == state_of_process()
    with pytest.raises(RuntimeClosedError, match="there is no open runtime here"):
        AgentRuntime.current()
    monkeypatch.undo()
    agentcore.clear_circuit_breakers()
    async with await initialize_system(QUIET):
        assert await AgentRuntime.current().drain()


def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    """At whatever point: there is the whole system or none."""
    started: list[SystemContext] = []

    async def act() -> None:
        async with await initialize_system(QUIET) as system:
            started.append(system)

    async def check() -> None:
        await current_simulation().settle()
        for system in started:
            check_over(system)
        with pytest.raises(RuntimeClosedError):
            AgentRuntime.current()
        started.clear()

    cancel_everywhere(
        lambda _: act(), build=lambda: None, check=lambda _: check(), modes=("block", "wake", "native"), within=1
    )


async def test_a_configuration_of_another_kind_is_refused() -> None:
    """The error says what to pass."""
    with pytest.raises(ConfigurationError, match="must be a SystemConfiguration: got 'io_workers = 3'; pass load_conf"):
        await initialize_system("io_workers = 3")  # type: ignore[arg-type]
