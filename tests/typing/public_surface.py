"""What a type checker tells the user of agentcore. Checked by mypy and pyright, both strict; never run."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, assert_type

import agentcore
from agentcore import (
    AgentCapability,
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentRuntime,
    BaseAgent,
    BaseTask,
    Bulkhead,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerMetrics,
    CircuitMode,
    CircuitOpenError,
    CircuitState,
    DeadLetter,
    Event,
    Fallback,
    KeyedCircuitBreaker,
    Layer,
    Pipeline,
    RateLimit,
    Registry,
    Retry,
    RetryPolicy,
    RuntimeConfig,
    TaskExecutionError,
    TaskFactory,
    TaskHandle,
    TaskPriority,
    TaskResult,
    TaskState,
    Timeout,
)


class Greeter(BaseAgent):
    """The least that an agent must have."""

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        return AgentResult.success_result({"hello": context.parameters["name"]})

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result({"message": str(error)})


async def agents() -> None:
    async with Greeter(AgentConfig(name="greeter", agent_type="greet")) as greeter:
        assert_type(greeter, Greeter)
        result = await greeter.execute(AgentContext(parameters={"name": "you"}))
        assert_type(result, AgentResult)
        assert_type(result.success, bool)
        assert_type(greeter.is_idle, bool)


async def tasks() -> None:
    task = TaskFactory.create_task("greet", {"name": "you"}, priority=TaskPriority.HIGH)
    assert_type(task, BaseTask)
    assert_type(task.state, TaskState)
    assert_type(task.is_finished, bool)
    assert_type(TaskResult.from_task(task), TaskResult)

    async def answer() -> int:
        return 42

    assert_type(await task.with_timeout(answer()), int)


async def runtimes() -> None:
    async with AgentRuntime() as runtime:
        assert_type(runtime, AgentRuntime)
        handle = await runtime.submit("greet", {"name": "you"})
        assert_type(handle, TaskHandle)
        assert_type(await handle.wait(), TaskResult)
        try:
            await handle.result()
        except TaskExecutionError as error:
            assert_type(error.message, str)


async def retries(runtime: AgentRuntime) -> None:
    policy = RetryPolicy(
        attempts=4, on=OSError, never_on=(PermissionError, KeyError), retry_if=lambda error: not error.args
    )
    assert_type(policy.on, tuple[type[Exception], ...])
    handle = await runtime.submit(
        "greet", retry=policy, key="you", idle_timeout=5, requires={AgentCapability.MEMORY, "greet"}
    )
    assert_type(handle.waiting_for_retry, bool)
    assert_type(handle.task.not_before, datetime | None)
    await runtime.run("greet", retry=False, queue_timeout=1)
    letters = runtime.tasks.dead_letters
    assert_type(letters.list(), list[DeadLetter])
    assert_type(await letters.requeue(letters.list()[0].task_id), TaskHandle)
    RuntimeConfig(retry=policy, retry_budget=None, dead_letters=0)


def registries() -> None:
    names: Registry[int] = Registry("numbers")
    assert_type(names.get_sync("one"), int | None)


def entry(main: Callable[[AgentRuntime, str], Awaitable[int]]) -> None:
    assert_type(agentcore.run(main, "argument", backend="trio"), int)


def outputs(handle: TaskHandle) -> Any:
    return handle.task.output


class Shop:
    """What circuits guard."""

    async def price(self, article: str, *, currency: str = "EUR") -> float:
        return len(article) / len(currency)

    def name(self, article: int) -> str:
        return f"{article}"


async def circuits(shop: Shop) -> None:
    breaker = CircuitBreaker("shop", CircuitBreakerConfig(failure_threshold=3, excluded_exceptions=(KeyError,)))

    # What is called keeps its type, and its arguments are checked.
    assert_type(await breaker.execute(shop.price, "tea", currency="USD"), float)
    assert_type(await breaker.execute(shop.name, 3), str)
    assert_type(await breaker.execute(partial(shop.price, "tea")), float)
    assert_type(breaker.call(shop.name, 3), str)
    assert_type(await agentcore.with_circuit_breaker("shop", shop.price, "tea"), float)
    assert_type(await agentcore.with_circuit_breaker("shop", shop.name, article=3), str)
    assert_type(await KeyedCircuitBreaker("shops").execute("north", shop.price, "tea"), float)
    assert_type(KeyedCircuitBreaker("shops")["north"], CircuitBreaker)
    await breaker.execute(shop.price, 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    breaker.call(shop.name, "tea")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    try:
        async with breaker:
            price = await shop.price("tea")
        assert_type(price, float)
    except CircuitOpenError as error:
        assert_type(error.retry_after, float | None)
        assert_type(error.retryable, bool)

    with breaker.isolate():
        assert_type(breaker.state, CircuitState)
        assert_type(breaker.mode, CircuitMode)
    assert_type(await breaker.allow_request(), bool)
    assert_type(breaker.retry_after, float | None)


async def decorated(breaker: CircuitBreaker, shop: Shop) -> None:
    @breaker
    async def weigh(article: str, *, times: int = 1) -> float:
        return times * await shop.price(article)

    @breaker
    def label(article: int) -> str:
        return shop.name(article)

    assert_type(await weigh("tea", times=2), float)
    assert_type(label(3), str)
    label("tea")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def observed(breaker: CircuitBreaker) -> None:
    metrics = breaker.metrics
    assert_type(metrics, CircuitBreakerMetrics)
    assert_type(metrics.failures_by_type, Mapping[str, int])
    assert_type(metrics.last_failure_at, datetime | None)

    def sink(event: Event) -> None:
        assert_type(event.event_type, str)

    assert_type(breaker.subscribe(sink), Callable[[], None])
    assert_type(agentcore.get_circuit_breaker("shop"), CircuitBreaker)


async def probed(runtime: AgentRuntime, context: AgentContext, shop: Shop) -> None:
    assert_type(runtime.breaker("shop", probe=partial(shop.price, "tea")), CircuitBreaker)
    assert_type(context.breaker("shop"), CircuitBreaker)


async def layers(breaker: CircuitBreaker, shop: Shop) -> None:
    pipeline = Pipeline(Fallback.value(0.0), Retry(3, on=OSError), breaker, RateLimit(10), Bulkhead(4), Timeout(2.5))
    assert_type(pipeline.layers, tuple[Layer, ...])
    for layer in pipeline.layers:
        assert_type(await layer.execute(shop.price, "tea", currency="USD"), float)
    assert_type(await pipeline.execute(shop.name, 3), str)

    @pipeline
    async def weigh(article: str, *, times: int = 1) -> float:
        return times * await shop.price(article)

    assert_type(await weigh("tea", times=2), float)
    await weigh(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    # A layer that cuts a block short raises: what is set inside is set afterwards.
    async with Timeout(2.5), Bulkhead(4):
        price = await shop.price("tea")
    assert_type(price, float)
