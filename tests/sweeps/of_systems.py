"""Sweeps of whole systems: started, given work, and shut down, in one event loop."""

from __future__ import annotations

import importlib.metadata
from types import TracebackType
from typing import Any, Self
from unittest import mock

import anyio

from agentcore import (
    AgentConfig,
    CoreError,
    SystemContext,
    get_registry,
    initialize_system,
    load_configuration,
    shutdown_system,
)
from agentcore._host import Host
from agentcore.testing import current_simulation, isolated_globals
from tests.sweeps.of_runtime import Temporary
from tests.sweeps.pool_states import Jobs, check_closed
from tests.sweeps.scenarios import LONG, State, scenario, steps

START = ("initialize_system",)
END = ("shutdown_system", "SystemContext.aclose")
BLOCK = ("SystemContext.__aenter__", "SystemContext.__aexit__")
QUIET = load_configuration(env={}, io_workers=2, cpu_workers=2, logging={"enabled": False}, metrics={"enabled": False})


class System(State):
    """A process of its own, with an agent for tasks; the scenario starts and ends a system in it."""

    def __init__(self) -> None:
        self.systems: list[SystemContext] = []
        self.made: list[Temporary] = []
        self.jobs = Jobs()
        self._globals = isolated_globals()
        # What is installed is looked for at each start, which takes longer than all the rest.
        self._installed = mock.patch.object(importlib.metadata, "entry_points", return_value=())

    async def __aenter__(self) -> Self:
        self._globals.__enter__()
        self._installed.__enter__()

        def make() -> Temporary:
            self.made.append(Temporary(AgentConfig("temporary", "t")))
            return self.made[-1]

        get_registry("agents").register("temporary_agent", make)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._installed.__exit__(None, None, None)
        self._globals.__exit__(None, None, None)

    async def start(self) -> SystemContext:
        """Start a system, and note it."""
        system = await initialize_system(QUIET)
        self.systems.append(system)
        return system

    async def use(self, system: SystemContext) -> None:
        """Have a system do something in each of its parts, and leave something to its end."""
        assert system.runtime is not None
        await system.io_pool.asubmit(self.jobs.make("queue"))
        await system.cpu_pool.asubmit(self.jobs.make("threads"))
        await system.runtime.run("temporary")
        await system.runtime.submit("temporary", {"do": "sleep"})
        await system.io_pool.submit(self.jobs.make("queue", "sleep"))  # type: ignore[misc]

    async def end_quietly(self, system: SystemContext) -> None:
        """Shut a system down, which may be refused."""
        try:
            await shutdown_system(system, 5.0)
        except CoreError:
            return

    async def check(self) -> None:
        """Look at what is left: nothing, if the system was ended; and it can be ended now."""
        for system in self.systems:
            with anyio.fail_after(LONG):
                await shutdown_system(system)
            await check_closed(system.io_pool)
            await check_closed(system.cpu_pool)
            assert not system.accepting_tasks
            assert 0 == len(system.task_queue)
        self.jobs.check()
        assert all(agent.is_terminated and agent.inside == 0 for agent in self.made)
        await current_simulation().settle()
        # One whose start was cancelled is nobody's: it has been undone.
        assert Host.find() is None
        await super().check()


@scenario(System, *START, *END, within=5.0)
async def system_from_start_to_end(state: System) -> None:
    system = await state.start()
    await state.use(system)
    report = await shutdown_system(system)
    state.expect(report is not None and report.drained)


@scenario(System, *START, *BLOCK, within=35.0)
async def system_as_a_block(state: System) -> None:
    async with await state.start() as system:
        await state.use(system)
    state.expect([1, 1, 1] == [note.ended for note in state.jobs.notes])


@scenario(System, *START, *BLOCK, within=5.0)
async def system_left_by_an_error(state: System) -> None:
    try:
        async with await state.start() as system:
            await state.use(system)
            await steps(2)
            raise ValueError("the block fails")
    except ValueError:
        return
    state.expect(False)


@scenario(System, *START, *END, within=5.0)
async def system_ended_from_several_sides(state: System) -> None:
    system: Any = await state.start()
    await state.use(system)
    async with anyio.create_task_group() as group:
        group.start_soon(state.end_quietly, system)
        group.start_soon(state.end_quietly, system)
        await steps()
        await system.aclose(0.5)
