"""The table of outcomes: what each way in which an execution can end means for each layer.

`TABLE` has a row for every outcome and a cell for every layer, `FROM_OUTSIDE` those that are brought about from outside. A
cell is an expectation that a test checks, a dash where the layer is not concerned, or the part that it waits for; a part
that has come turns its cells into failures until they are filled in. The tests are in `test_outcomes`, those of the
breakers' column in `test_outcomes_breaker`, those of the supervisors' in `test_outcomes_supervisor`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import anyio
import attrs

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentExecutionError,
    AgentInitializationError,
    AgentResult,
    AgentState,
    AgentTimeoutError,
    BaseAgent,
    BaseTask,
    CircuitState,
    TaskExecutionError,
    TaskState,
)

Step = Callable[[], Awaitable[Any]]
Guard = Callable[[Step], Awaitable[Any]]


class BoomError(Exception):
    """What an agent's code raises."""


async def ready() -> bool:
    return True


async def not_ready() -> bool:
    return False


async def succeed() -> AgentResult:
    return AgentResult.success_result({"answer": 42})


async def give_up() -> AgentResult:
    return AgentResult.error_result({"error_type": "Refused", "message": "not today"})


async def raise_boom() -> Any:
    raise BoomError("inside")


async def exit_process() -> Any:
    raise SystemExit(3)


async def hang() -> Any:
    await anyio.sleep_forever()


async def pass_time(seconds: float) -> None:
    """Let virtual time pass."""
    with anyio.move_on_after(seconds):
        await anyio.sleep_forever()


async def unguarded(step: Step) -> Any:
    """Call the dependency of an agent with nothing around the call."""
    return await step()


class Scripted(BaseAgent):
    """An agent that does what a row says, and notes its own state on the way.

    Its `process` calls what the row says as an agent calls a dependency: by `guard`, which may put a breaker around it,
    and `pause` seconds after its beginning.
    """

    def __init__(self, row: Row, guard: Guard = unguarded, pause: float = 0.0) -> None:
        super().__init__(AgentConfig("scripted", "test", timeout=row.timeout))
        self.row = row
        self.guard = guard
        self.pause = pause
        self.handled: list[Exception] = []
        self.initialized = 0
        self.seen: list[AgentState] = []

    async def initialize(self) -> bool:
        self.initialized += 1
        self.seen.append(self.state)
        return bool(await self.row.initialize())

    async def process(self, context: AgentContext) -> AgentResult:
        self.seen.append(self.state)
        if self.pause:
            await pass_time(self.pause)
        result: AgentResult = await self.guard(self.row.process)
        return result

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        self.seen.append(self.state)
        self.handled.append(error)
        if self.row.handle_error is not None:
            result: AgentResult = await self.row.handle_error()
            return result
        return AgentResult.error_result({"error_type": type(error).__name__, "message": "handled"})


@attrs.frozen
class Later:
    """A cell whose part is not there yet: ``name`` will be in ``agentcore`` when it is."""

    name: str


NOT_CONCERNED: Final = "-"
CRASH: Final = "crash"
"""The agent is started again, as its restart type says."""
AT_START: Final = "at start"
"""Told to who spawns the agent; when it is started again, a crash."""
# What a policy that covers every error makes of a task that ends so.
RETRIED: Final = "retried"
NEVER: Final = "never"


@attrs.frozen
class Told:
    """A cell of the guarding breaker: what the end of the guarded call tells it.

    Attributes:
        counts: the metrics that it changes; an error's type is counted under ``failures_by_type.<type>``.
        after_probe: where it takes a half-open circuit that needs one success.
    """

    counts: Mapping[str, int]
    after_probe: CircuitState


def failure(error_type: str, *, timeouts: int = 0) -> Told:
    """Make the cell of a call that failed."""
    counts = {"failures": 1, f"failures_by_type.{error_type}": 1} | ({"timeouts": timeouts} if timeouts else {})
    return Told(counts, CircuitState.OPEN)


SUCCESS: Final = Told({"successes": 1}, CircuitState.CLOSED)
TIMEOUT: Final = failure("timeout", timeouts=1)
# The permit is given back at once: the circuit stays as it is, and the next caller may try.
NEUTRAL: Final = Told({"canceled": 1}, CircuitState.HALF_OPEN)


@attrs.frozen(kw_only=True)
class Row:
    """An outcome, how it is brought about, and what it means."""

    name: str
    # How.
    process: Step = succeed
    initialize: Step = ready
    handle_error: Step | None = None
    timeout: float | None = None
    options: dict[str, Any] = attrs.field(factory=dict)
    # What `execute` gives: the error of a result (None for success), or the type that is raised.
    gives: dict[str, Any] | type[BaseException] | None
    handled: type[Exception] | None = None
    seen: list[AgentState]
    agent: AgentState = AgentState.IDLE
    # The task.
    task: TaskState
    deadline: str | None = None
    waiter: type[BaseException] | None = TaskExecutionError
    cause: type[BaseException] | None = None
    # The breaker around the call that `process` makes; a dash if there is no such call.
    breaker: Told | str
    # The layers that come later.
    retried: str = RETRIED
    # Of an agent that is asked, or executes a task; a message that is not handled with success is a crash in any case.
    supervisor: str = NOT_CONCERNED


INITIALIZING, PROCESSING, ERROR = AgentState.INITIALIZING, AgentState.PROCESSING, AgentState.ERROR

TABLE = [
    Row(
        name="success result",
        gives=None,
        seen=[INITIALIZING, PROCESSING],
        task=TaskState.COMPLETED,
        waiter=None,
        breaker=SUCCESS,
        retried=NOT_CONCERNED,
    ),
    Row(
        name="result with success False",
        process=give_up,
        gives={"error_type": "Refused", "message": "not today"},
        seen=[INITIALIZING, PROCESSING],
        task=TaskState.FAILED,
        breaker=SUCCESS,  # unless a predicate on results says otherwise
    ),
    Row(
        name="process raises",
        process=raise_boom,
        gives={"error_type": "BoomError", "message": "handled"},
        handled=BoomError,
        seen=[INITIALIZING, PROCESSING, ERROR],
        task=TaskState.FAILED,
        cause=BoomError,
        breaker=failure("BoomError"),
    ),
    Row(
        name="process raises and handle_error makes a success of it",
        process=raise_boom,
        handle_error=succeed,
        gives=None,
        handled=BoomError,
        seen=[INITIALIZING, PROCESSING, ERROR],
        task=TaskState.COMPLETED,
        waiter=None,
        breaker=failure("BoomError"),
        retried=NOT_CONCERNED,
    ),
    Row(
        name="deadline of the agent",
        process=hang,
        timeout=5.0,
        gives={"error_type": "AgentTimeoutError", "message": "handled"},
        handled=AgentTimeoutError,
        seen=[INITIALIZING, PROCESSING, ERROR],
        task=TaskState.FAILED,
        deadline="agent",
        cause=AgentTimeoutError,
        breaker=TIMEOUT,
    ),
    Row(
        name="deadline of the execution",
        process=hang,
        options={"timeout": 5.0},
        gives={"error_type": "AgentTimeoutError", "message": "handled"},
        handled=AgentTimeoutError,
        seen=[INITIALIZING, PROCESSING, ERROR],
        task=TaskState.FAILED,
        deadline="timeout",
        cause=AgentTimeoutError,
        breaker=TIMEOUT,
    ),
    Row(
        name="deadline of everything",
        process=hang,
        options={"deadline": 5.0},
        retried=NEVER,
        gives={"error_type": "AgentTimeoutError", "message": "handled"},
        handled=AgentTimeoutError,
        seen=[INITIALIZING, PROCESSING, ERROR],
        task=TaskState.FAILED,
        deadline="total",
        cause=AgentTimeoutError,
        breaker=TIMEOUT,
    ),
    Row(
        name="initialize is False",
        initialize=not_ready,
        gives={"error_type": "AgentInitializationError", "message": "handled"},
        handled=AgentInitializationError,
        seen=[INITIALIZING, ERROR],
        task=TaskState.FAILED,
        cause=AgentInitializationError,
        breaker=NOT_CONCERNED,
        supervisor=AT_START,
    ),
    Row(
        name="initialize raises",
        initialize=raise_boom,
        gives={"error_type": "AgentInitializationError", "message": "handled"},
        handled=AgentInitializationError,
        seen=[INITIALIZING, ERROR],
        task=TaskState.FAILED,
        cause=AgentInitializationError,
        breaker=NOT_CONCERNED,
        supervisor=AT_START,
    ),
    Row(
        name="handle_error raises",
        process=raise_boom,
        handle_error=raise_boom,
        gives=AgentExecutionError,
        handled=BoomError,
        seen=[INITIALIZING, PROCESSING, ERROR],
        agent=ERROR,
        task=TaskState.FAILED,
        cause=AgentExecutionError,
        breaker=failure("BoomError"),  # of `process` alone
        supervisor=CRASH,
    ),
    Row(
        name="SystemExit-like",
        process=exit_process,
        gives=SystemExit,
        seen=[INITIALIZING, PROCESSING],
        agent=ERROR,
        task=TaskState.FAILED,
        waiter=SystemExit,
        breaker=failure("SystemExit"),
        retried=NEVER,
        supervisor=CRASH,
    ),
]

# The outcomes that come from outside: by layer the cells that are not checked with the rest of their test.
FROM_OUTSIDE: Final[Mapping[str, Mapping[str, Told | Later | str]]] = {
    "the caller's scope is cancelled": {"breaker": NEUTRAL},
    "handle.cancel(reason)": {"breaker": NEUTRAL},
    "shutdown after grace": {"breaker": NEUTRAL, "supervisor": NOT_CONCERNED, "store": Later("SQLiteStore")},
    "a tell handler fails": {"breaker": failure("BoomError"), "supervisor": CRASH},
    "AgentCrash": {"breaker": failure("AgentCrash"), "supervisor": CRASH},
    "the supervisor restarts the agent": {"breaker": NEUTRAL, "supervisor": NOT_CONCERNED},
}


class Slow(BaseAgent):
    """An agent whose dependency hangs until it is cancelled, and takes its time to unwind."""

    def __init__(self, guard: Guard = unguarded) -> None:
        super().__init__(AgentConfig("slow", "test"))
        self.guard = guard
        self.begun = anyio.Event()
        self.let_go = anyio.Event()
        self.let_go.set()
        self.unwinding = anyio.Event()
        self.task: BaseTask | None = None

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        self.task = context.task
        result: AgentResult = await self.guard(self.call)
        return result

    async def call(self) -> Any:
        """Be the dependency."""
        self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.unwinding.set()
            with anyio.CancelScope(shield=True):
                await self.let_go.wait()
        raise AssertionError("unreachable")

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        raise AssertionError(f"cancellation is no error: {error!r}")
