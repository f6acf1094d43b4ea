"""What is swept: scenarios, the state that each works on, and what must be true of that state however one was cut short.

A scenario is a coroutine function of a state. The state is made anew for each run, outside of what is cancelled, and
checks itself afterwards: nothing is held, nothing runs, every task has ended once, and the next call works.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, ClassVar, Final, Self, TypeAlias, final

import anyio
import anyio.lowlevel
import attrs

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentCrashedError,
    AgentError,
    AgentResult,
    AgentRuntime,
    AgentState,
    BaseAgent,
    BaseTask,
    CoreError,
    Event,
    RuntimeConfig,
    Supervisor,
    TaskHandle,
    TaskState,
)
from agentcore._agents import waits
from agentcore._context import current_execution, current_job, current_runtime, current_terminations
from agentcore._host import Host
from agentcore.testing import current_simulation

Act: TypeAlias = Callable[[Any], Awaitable[None]]

LONG: Final = 1_000.0
"""Virtual seconds in which everything ends that ends at all."""
TERMINAL: Final = ("task_completed", "task_failed", "task_canceled")


class Boom(Exception):
    """What agents of these scenarios raise."""


class Crash(BaseException):
    """What no `except Exception` may catch."""


async def steps(count: int = 1) -> None:
    """Stand for I/O: give way `count` times."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


@final
@attrs.frozen
class Scenario:
    """What is cancelled.

    Attributes:
        name: what it is called.
        covers: the public coroutines that it is about: `Class.method`.
        act: works on the state.
        build: makes the state, which is an asynchronous context manager with a method `check`.
        allow: exceptions that it may raise when it is cut short.
        strict: whether it must end by the cancellation.
        within: the virtual seconds that it may take to end; None for any number.
    """

    name: str
    covers: tuple[str, ...]
    act: Act
    build: Callable[[], State]
    allow: tuple[type[BaseException], ...] = ()
    strict: bool = False
    within: float | None = None

    async def run(self) -> None:
        """Go through it once, undisturbed."""
        async with self.build() as state:
            state.undisturbed = True
            await self.act(state)
            await state.check()


TABLE: Final[dict[str, Scenario]] = {}
"""All scenarios, by their names."""


def scenario(build: Callable[[], State], *covers: str, **rules: Any) -> Callable[[Act], Act]:
    """Return a decorator that puts a scenario into the table.

    Args:
        build: makes its state.
        *covers: the public coroutines that it sweeps.
        **rules: further attributes of the `Scenario`.
    """

    def note(act: Act) -> Act:
        name: str = act.__name__
        assert name not in TABLE
        TABLE[name] = Scenario(name, covers, act, build, **rules)
        return act

    return note


class State:
    """What a scenario works on. Entered before it, left after the check.

    Attributes:
        undisturbed: whether nothing is cancelled in this run, so that everything has to come as expected.
        late: whether a deadline may have passed anywhere, that of `handle_error` included.
    """

    undisturbed = False
    late = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def expect(self, holds: object) -> None:
        """Check what must hold if nothing is cancelled, and need not if a deadline has passed on the way."""
        assert holds or not self.undisturbed

    @contextmanager
    def raises(self, *errors: type[BaseException]) -> Generator[None]:
        """Expect an error in the block: it has to be raised if nothing is cancelled, and may be otherwise."""
        try:
            yield
        except errors:
            return
        self.expect(False)

    def residents(self) -> set[str]:
        """Return the names of the tasks that are there for the whole scenario."""
        return set()

    async def check(self) -> None:
        """Look at what is left: no task, and no trace in the context."""
        await current_simulation().settle()
        assert [0] == [task.task for task in current_simulation().tasks() if task.name not in self.residents()]
        assert (None, None, ()) == (current_execution.get(), current_job.get(), current_terminations.get())
        assert waits._waits == {}


# Agents.


class Worker(BaseAgent):
    """An agent that does what the parameters say, and counts what is done to it.

    Args:
        initialize: what `initialize` does at each call, in turn; the last one from then on.
        handle: what `handle_error` does.
        clean_up: what `terminate` does.
        **settings: of its configuration.
    """

    def __init__(
        self,
        name: str = "worker",
        *,
        initialize: tuple[str, ...] = ("work",),
        handle: str = "work",
        clean_up: str = "work",
        **settings: Any,
    ) -> None:
        super().__init__(AgentConfig(name, "swept", **settings))
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.inside = self.peak = 0
        self._first = initialize
        self._handling = handle
        self._cleaning = clean_up

    async def initialize(self) -> bool:
        index = min(self.begun["initialize"], len(self._first) - 1)
        await self._do("initialize", self._first[index])
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        assert not self.is_terminated
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        try:
            await self._do("process", context.input.get("do", "work"))
            if (inner := context.input.get("then")) is not None:
                await inner()
        finally:
            self.inside -= 1
        return AgentResult.success_result({"by": self.name})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        assert isinstance(error, (Boom, CoreError))
        await self._do("handle_error", self._handling)
        return AgentResult.error_result({"error_type": type(error).__name__, "message": str(error)})

    async def terminate(self) -> None:
        await self._do("terminate", self._cleaning)

    def mend(self) -> None:
        """Have everything succeed from now on."""
        self._first, self._handling = ("work",), "work"

    async def _do(self, call: str, what: str) -> None:
        self.begun[call] += 1
        await do(what)
        self.ended[call] += 1


async def do(what: str) -> None:
    """Do what a word says: `work` gives way, `sleep` takes a second, `long` a minute, `hang` for ever.

    `fail` raises, and so does `crash`, what nothing catches; `stubborn` takes a second to be cancelled.
    """
    await steps()
    if what in _SECONDS:
        await anyio.sleep(_SECONDS[what])
    elif what == "fail":
        raise Boom("as told")
    elif what == "crash":
        raise Crash("as told")
    elif what == "stubborn":
        try:
            await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)


_SECONDS: Final[Mapping[str, float]] = {"sleep": 1.0, "long": 60.0, "hang": float("inf")}


async def check_agent(agent: BaseAgent, *, broken: bool = False) -> None:
    """Check that an agent does nothing, holds nothing, and takes on as much as ever."""
    metrics = agent.metrics
    allowed = [AgentState.IDLE, AgentState.TERMINATED, *([AgentState.ERROR] if broken else [])]
    assert agent.state in allowed
    # Nobody can ever wait for a slot of an agent that is terminated: what is in use then tells nothing.
    in_use = 0 if agent.is_terminated else agent._slots.in_use
    assert (0, 0, 0) == (metrics.running, metrics.waiting, in_use)
    assert ({}, None) == (agent._scopes, agent._initializing)
    assert metrics.cancellations + metrics.failures <= metrics.executions
    if isinstance(agent, Worker):
        assert agent.inside == 0
        assert agent.peak <= (agent.config.max_concurrency or LONG)
        assert agent.begun["terminate"] == int(agent.is_terminated)
    if agent.is_terminated:
        return
    assert not agent._life.terminating
    await _check_slots(agent)


async def _check_slots(agent: BaseAgent) -> None:
    limit = agent.config.max_concurrency or 2
    inside, results = 0, []
    go_on, all_in = anyio.Event(), anyio.Event()

    async def wait() -> None:
        nonlocal inside
        inside += 1
        if inside == limit:
            all_in.set()
        await go_on.wait()

    async def execute() -> None:
        results.append(await agent.execute(AgentContext(parameters={"then": wait})))

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            for _ in range(limit):
                group.start_soon(execute)
            await all_in.wait()
            go_on.set()
    assert [True] * limit == [result.success for result in results]
    assert agent.state is AgentState.IDLE


class Agents(State):
    """Agents without a runtime.

    Args:
        *agents: the agents.
        broken: whether they may be in ERROR.
    """

    def __init__(self, *agents: BaseAgent, broken: bool = False) -> None:
        self.agents = agents
        self.results: list[AgentResult] = []
        self._broken = broken

    async def check(self) -> None:
        """Look at the agents too."""
        await super().check()
        for agent in self.agents:
            if isinstance(agent, Worker):
                agent.mend()
            await check_agent(agent, broken=self._broken or self.late)
        await super().check()

    async def execute(self, what: str = "work", agent: int = 0, **parameters: Any) -> AgentResult:
        """Have an agent do something, and note the result."""
        result = await self.agents[agent].execute(AgentContext(parameters={"do": what, **parameters}))
        self.results.append(result)
        return result


# Runtimes.

_hosted: Final[ContextVar[bool]] = ContextVar("hosted", default=False)


def hosted(build: Callable[[], State]) -> Callable[[], State]:
    """Return what makes the same state with a hosted runtime in the place of a strict one."""

    def make() -> State:
        token = _hosted.set(True)
        try:
            return build()
        finally:
            _hosted.reset(token)

    return make


class Runtime(State):
    """A runtime with a handler for every word that `do` knows, and everything that was given to it.

    Args:
        grace: seconds that the runtime lets tasks go on for at its end.
        inside: whether the scenario itself enters and leaves the runtime.
        concurrency: executions of a handler at a time.
        lose: the errors that agents raise when they are terminated.
        supervisor: how the runtime mends the agents that are spawned.
        **limits: of the runtime.
    """

    words: ClassVar = ("work", "sleep", "long", "hang", "fail", "crash", "stubborn")

    def __init__(
        self,
        *,
        grace: float = 5,
        inside: bool = False,
        concurrency: int | None = None,
        agents: tuple[BaseAgent, ...] = (),
        lose: tuple[str, ...] = (),
        supervisor: Supervisor | None = None,
        **limits: int,
    ) -> None:
        self.is_hosted = _hosted.get()
        self.runtime = AgentRuntime(RuntimeConfig(**limits), supervisor=supervisor, grace=grace, hosted=self.is_hosted)
        self.tasks: list[BaseTask] = []
        self.handles: list[TaskHandle] = []
        self.events: list[Event] = []
        self.agents = agents
        self.inside = inside
        self.peak: Counter[str] = Counter()
        self.told: list[BaseException] = []
        """What the runtime raised at its end, leaf by leaf."""
        self._now: Counter[str] = Counter()
        self._nested = False
        self._concurrency = concurrency
        self._lose = lose
        self._limits = limits
        self._retrieved: set[str] = set()
        self.runtime.subscribe(self.events.append)
        for word in self.words:
            self.runtime.handler(word, max_concurrency=concurrency)(self._handler(word))
        for agent in agents:
            self.runtime.registry("agents").register(agent.name, agent)

    def _handler(self, word: str) -> Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]:
        async def handle(given: dict[str, Any]) -> dict[str, Any]:
            self._now[word] += 1
            self.peak[word] = max(self.peak[word], self._now[word])
            self.peak["all"] = max(self.peak["all"], self._now.total())
            try:
                await do(word)
                if "then" in given:
                    self._nested = True
                    return {"then": await given["then"]()}
                return {"word": word}
            finally:
                self._now[word] -= 1

        return handle

    async def __aenter__(self) -> Self:
        if not self.inside:
            await self.runtime.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.inside:
            return
        try:
            await self.runtime.__aexit__(kind, error, traceback)
        except (AgentCrashedError, BaseExceptionGroup) as crashed:
            self.note(crashed)
        if error is None:
            await self.check_closed()
            await current_simulation().settle()
            assert ([0], None) == ([task.task for task in current_simulation().tasks()], Host.find())

    def residents(self) -> set[str]:
        """Return the names of the runtime's own tasks, as long as it is entered."""
        if self.inside:
            return set()
        names = {f"resource {resource}" for resource in self.runtime.resources._all}
        if self.runtime.tasks.state != "closed":
            names.add("portal for threads")
        return names | ({"host of agentcore", "runtime of agentcore"} if self.is_hosted else set())

    def note(self, error: BaseException) -> None:
        """Note what the runtime raised at its end; what is cancelled is not noted."""
        self.told += leaves(error)

    # What a scenario does.

    async def run(self, task_type: str, input: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """Run a task, and note it."""
        task = self.make(task_type, input)
        return await self.runtime.run(task, **options)

    async def submit(self, task_type: str, input: Mapping[str, Any] | None = None, **options: Any) -> TaskHandle:
        """Submit a task, and note it and its handle."""
        task = self.make(task_type, input)
        handle = await self.runtime.submit(task, **options)
        self.handles.append(handle)
        return handle

    def make(self, task_type: str, input: Mapping[str, Any] | None = None) -> BaseTask:
        """Make a task, and note it."""
        task = BaseTask.create(task_type, input)
        self.tasks.append(task)
        return task

    async def run_quietly(self, task_type: str, input: Mapping[str, Any] | None = None, **options: Any) -> None:
        """Run a task, and note what it raises; it has to be an error of this library."""
        try:
            await self.run(task_type, input, **options)
        except CoreError:
            return

    async def retrieve(self, handle: TaskHandle) -> dict[str, Any] | CoreError:
        """Wait for the result of a handle, or for the error."""
        try:
            return await handle.result()
        except CoreError as error:
            return error
        finally:
            if handle.is_done:
                self._retrieved.add(handle.id)

    # What must be true.

    async def check(self) -> None:
        """Let the runtime's tasks end, unless it has ended itself; look at everything."""
        if self.inside:
            await self.check_closed()
        else:
            await self._check_at_rest()
            if self.runtime.tasks.state == "open":
                await self._check_slots()
        await super().check()

    async def _check_at_rest(self) -> None:
        for handle in self.handles:
            if handle.task.type == "hang":
                handle.cancel("it would never end")
        with anyio.fail_after(LONG):
            await self.runtime.tasks.wait_idle()
        self.check_tasks()

    def check_tasks(self) -> None:
        """Check that everything has ended that was accepted, each task once, and that nothing is held."""
        runtime = self.runtime
        asks, statistics = runtime.statistics().asks, runtime.statistics().tasks
        assert (0, 0, 0, []) == (asks, statistics.in_flight, statistics.queued, runtime.tasks.active())
        assert statistics.accepted == statistics.completed + statistics.failed + statistics.canceled
        admission = runtime.tasks._admission
        assert (0, 0, 0) == (len(admission._slots), len(admission._room), admission._room.in_use)
        assert {} == admission._submitters
        assert Counter() == +self._now
        assert Counter() == +runtime.tasks._idlers
        accepted = Counter(event.data["task_id"] for event in self.events if event.event_type == "task_accepted")
        ended = Counter(event.data["task_id"] for event in self.events if event.event_type in TERMINAL)
        assert accepted == ended
        assert set(ended.values()) <= {1}
        for task in self.tasks:
            assert (task.error or {}).get("error_type") != "AssertionError"
            assert task.is_finished if task.id in accepted else task.state is TaskState.PENDING
            assert (0 if task.state is TaskState.PENDING else 1) == sum(
                event.event_type in TERMINAL for event in task.events
            )
        for handle in self.handles:
            assert handle.is_done
            assert handle.id in accepted
        # What waits for its children has lent its slot, but is still inside.
        assert self._nested or self.peak["all"] <= runtime.config.in_flight
        assert max((self.peak[word] for word in self.words), default=0) <= (self._concurrency or LONG)
        for agent in (route.take() for _, route in runtime.agents._functions.values()):
            assert (0, 0, 0) == (agent.metrics.running, agent.metrics.waiting, agent._slots.in_use)
            assert agent.state in (AgentState.IDLE, AgentState.ERROR)

    async def _check_slots(self) -> None:
        """Check that as many tasks as ever run at a time, and one more waits."""
        limit = min(self.runtime.config.in_flight, 3)
        inside = 0
        go_on = anyio.Event()

        async def wait(given: dict[str, Any]) -> None:
            nonlocal inside
            inside += 1
            await go_on.wait()

        self.runtime.handler("check")(wait)
        with anyio.fail_after(LONG):
            handles = [await self.runtime.submit("check") for _ in range(limit + 1)]
            await current_simulation().settle()
            full = self.runtime.config.in_flight == limit
            assert (limit if full else limit + 1) == inside
            go_on.set()
            for handle in handles:
                await handle.result()
        assert "work" == (await self.runtime.run("work"))["word"]
        self.check_tasks()

    async def check_closed(self) -> None:
        """Check a runtime that was left."""
        runtime = self.runtime
        if runtime.tasks.state == "new":  # cancelled before it was entered
            return
        assert runtime.tasks.state == "closed"
        assert current_runtime.get() is None
        self.check_tasks()
        for agent in self.agents:
            assert agent.state is AgentState.TERMINATED
            await check_agent(agent)
        report = runtime.report
        assert report is not None
        assert all(
            result.state in (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELED) for result in report.cut_short
        )
        with anyio.fail_after(LONG):
            for handle in self.handles:
                await handle.wait()
        self._check_errors()

    def _check_errors(self) -> None:
        """Check that every failure was told: by the handle, or at the end of the runtime."""
        failed = [handle for handle in self.handles if handle.state is TaskState.FAILED]
        told = [error for error in self.told if isinstance(error, CoreError)]
        ids = [error.details.get("task_id") for error in told if error.details]
        for handle in failed:
            crashed = handle.task.type == "crash" and any(isinstance(error, Crash) for error in self.told)
            assert crashed or handle.id in self._retrieved or handle.id in ids
        others = [error for error in self.told if not (isinstance(error, CoreError) and error.details)]
        assert {type(error).__name__ for error in others} <= set(self._lose)


def leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions in a group, or the one that is none; what a crash was, where it is told as an error of agentcore."""
    if type(error) is AgentError and error.__cause__ is not None:
        return leaves(error.__cause__)
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]


__all__ = [
    "LONG",
    "TABLE",
    "AgentError",
    "Agents",
    "Boom",
    "Crash",
    "Runtime",
    "Scenario",
    "State",
    "Worker",
    "check_agent",
    "do",
    "hosted",
    "leaves",
    "scenario",
    "steps",
]
