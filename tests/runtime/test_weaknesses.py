"""Weaknesses that frameworks of this kind are known for, one test each: here they are not.

All run on asyncio and on trio, in virtual time, strict and hosted. By the numbers of the table that they come from:

1. `stop` with requests in flight or queued; 2. a caller who times out; 3. an error after that; 4. a message that is
dropped; 5. an error of what nobody waits for; 6. many asks and their cancellation; 7. a sibling that is cancelled
twice; 8. a result that comes before the siblings have ended; 9. a thread beside a branch that fails; 10. two branches that
fail together; 11. trio; 12. children of what is cancelled; 13. no way to cancel; 14. one bad message, a timeout, a full
queue, a circle; 16. a producer that never gives way.

Row 15, a store of conversations that grows with the square of their length, does not apply: there is no store yet, and a
runtime keeps nothing of what agents have said. What is nearest to it, the checkpoints of one long task, is tested. Of row 4
there is nothing that drops messages; tasks that are refused, by the runtime or by a busy agent, withdrawn or ended by hand
take its place. Of row 14, `submit` with its bounded queue, and agents with a bounded line; messages, and what else is known
of actors, are in `test_weaknesses_of_actors`. Of row 6, instances for each key are agents that are made for one ask.
"""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import suppress
from typing import Any

import anyio
import pytest

from agentcore import (
    AgentBusyError,
    AgentConfig,
    AgentContext,
    AgentCrashedError,
    AgentExecutionError,
    AgentResult,
    AgentRuntime,
    AgentTimeoutError,
    BaseAgent,
    BaseTask,
    CoreError,
    RuntimeClosedError,
    TaskCanceledError,
    TaskExecutionError,
    TaskGroupError,
    TaskPriority,
    TaskState,
)
from agentcore.testing import current_simulation, simulate
from tests.runtime.lives import Worker, both_kinds, living

RUNS = 5


class Agent(BaseAgent):
    """An agent that does what a worker does, or what the parameter ``then`` says."""

    def __init__(self, name: str = "agent", worker: Worker | None = None, **settings: Any) -> None:
        super().__init__(AgentConfig(name, "weak", **settings))
        self.worker = worker or Worker(seconds=0)

    async def initialize(self) -> bool:
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        if "then" in context.input:
            return AgentResult.success_result(await context.input["then"](context))
        return AgentResult.success_result(await self.worker(context.input))

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        return AgentResult.error_result({"error_type": type(error).__name__, "message": str(error)})


class Callers:
    """Callers in tasks of their own, and what each was told."""

    def __init__(self, group: anyio.abc.TaskGroup) -> None:
        self.told: list[object] = []
        self._group = group

    def start(self, call: Any, *args: Any, **options: Any) -> None:
        """Have somebody call a coroutine function."""
        self._group.start_soon(self._call, lambda: call(*args, **options))

    async def _call(self, call: Any) -> None:
        try:
            self.told.append(await call())
        except CoreError as error:
            self.told.append(type(error))


@both_kinds
@simulate(runs=RUNS)
async def test_stop_with_requests_in_flight_leaves_no_requester_waiting(hosted: bool) -> None:
    """Row 1. Who waits for an answer is told, whether his request runs or waits in line, and when the grace is over."""
    agent = Agent(worker=Worker(), max_concurrency=1)
    async with living(hosted, in_flight=1) as runtime, anyio.create_task_group() as group:
        callers = Callers(group)
        runtime.handler("slow")(Worker())
        for _ in range(20):
            callers.start(runtime.ask, agent)
            callers.start(runtime.run, "slow")
        handles = [await runtime.submit("slow") for _ in range(20)]
        for handle in handles:
            callers.start(handle.result)
        await current_simulation().settle()
        await runtime.shutdown(2.0, "closing time")
        await current_simulation().settle()
        assert (len(callers.told), anyio.current_time()) == (60, 2.0)
    assert callers.told.count(RuntimeClosedError) == 20
    assert callers.told.count(TaskCanceledError) == 40


@both_kinds
@simulate(runs=RUNS)
async def test_a_caller_who_times_out_cancels_what_he_asked_for(hosted: bool) -> None:
    """Row 2. By his own scope or by the timeout of the call: the handler has ended when he goes on."""
    worker = Worker(cleanup=0.5)
    async with living(hosted) as runtime:
        runtime.handler("slow")(worker)
        for number, call in enumerate((lambda: runtime.run("slow"), lambda: runtime.ask(Agent(worker=worker))), 1):
            with anyio.move_on_after(0.1) as scope:
                await call()
            assert scope.cancelled_caught
            assert (worker.alive, worker.cleaned) == (0, number)
        result = await runtime.ask(Agent(worker=worker), timeout=0.1)
        assert (result.success, type(result.cause), worker.alive) == (False, AgentTimeoutError, 0)


@both_kinds
@simulate(runs=RUNS)
async def test_an_error_after_the_callers_timeout_does_not_hang_the_shutdown(hosted: bool) -> None:
    """Row 3. What raises while it is unwound has ended all the same, and nothing waits for it."""
    worker = Worker(error=ValueError("while it was unwound"))
    async with living(hosted, grace=60) as runtime:
        runtime.handler("slow")(worker)
        handle = await runtime.submit("slow")
        for call in (lambda: runtime.run("slow"), lambda: runtime.ask(Agent(worker=worker)), handle.wait):
            with anyio.move_on_after(0.1), suppress(TaskCanceledError, ValueError):
                await call()
        handle.cancel("not needed")
        assert await runtime.drain(10)
        before = anyio.current_time()
        await runtime.shutdown()
        assert (anyio.current_time(), (await handle.wait()).state) == (before, TaskState.CANCELED)


@both_kinds
@simulate(runs=RUNS)
async def test_what_is_refused_or_withdrawn_does_not_hang_the_shutdown(hosted: bool) -> None:
    """Row 4. Cancelled in line, ended by hand, given up by the submitter, refused: none is waited for."""
    async with living(hosted, grace=60, in_flight=1, queue=2) as runtime:
        runtime.handler("slow")(Worker(seconds=1))
        first = await runtime.submit("slow")
        withdrawn = await runtime.submit("slow")
        by_hand = await runtime.submit("slow")
        with anyio.move_on_after(0.1) as given_up:
            await runtime.submit("slow")
        withdrawn.cancel("withdrawn")
        by_hand.task.cancel("by hand")
        with pytest.raises(CoreError):
            await runtime.submit("nobody knows it")
        assert await runtime.drain(10)
        assert anyio.current_time() == 1
    assert given_up.cancelled_caught
    states = [handle.state for handle in (first, withdrawn, by_hand)]
    assert states == [TaskState.COMPLETED, TaskState.CANCELED, TaskState.CANCELED]


@both_kinds
@simulate(runs=RUNS)
async def test_what_a_busy_agent_refuses_does_not_hang_the_shutdown(hosted: bool) -> None:
    """Row 4. It was never begun, and has ended: the runtime is idle as soon as what the agent took is done."""
    agent = Agent(worker=Worker(seconds=1), max_concurrency=1, max_waiting=2)
    async with living(hosted, grace=60) as runtime:
        runtime.registry("agents").register("busy", agent)
        handles = [await runtime.submit("busy") for _ in range(20)]
        assert await runtime.drain(60)
        assert anyio.current_time() == 3
        states = [(await handle.wait()).state for handle in handles]
        assert (states.count(TaskState.COMPLETED), states.count(TaskState.FAILED)) == (3, 17)


@both_kinds
def test_the_error_of_what_nobody_waits_for_is_told(hosted: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Row 5. Raised where the runtime is left; a hosted one, which may live for long, also logs it, once."""

    @simulate(runs=1)
    async def scenario() -> None:
        with pytest.raises(AgentCrashedError) as caught:
            async with living(hosted, grace=1) as runtime:
                await runtime.submit("fail", {"n": 7})
                await anyio.sleep(1)
        assert [str(leaf.__cause__) for leaf in caught.value.exceptions] == ["number 7"]
        assert isinstance(caught.value.exceptions[0], TaskExecutionError)

    caplog.clear()
    scenario()
    gc.collect()
    logged = [record for record in caplog.records if "number 7" in record.getMessage()]
    assert len(logged) == (2 if hosted else 0)  # on each backend


@both_kinds
@simulate(runs=1)
async def test_hundreds_of_asks_are_limited_and_end_with_their_callers(hosted: bool) -> None:
    """Row 6. As many run as the agent takes, none is alive when the callers are cancelled, and the agent goes on."""
    agent = Agent(worker=Worker(cleanup=0.1), max_concurrency=3)
    async with living(hosted) as runtime:
        with anyio.move_on_after(0.5):
            async with anyio.create_task_group() as group:
                for _ in range(300):
                    group.start_soon(runtime.ask, agent)
        assert (agent.worker.peak, agent.worker.alive, agent.worker.begun) == (3, 0, 3)
        assert (agent.metrics.running, agent.metrics.waiting, runtime.statistics().asks) == (0, 0, 0)
        assert (await runtime.ask(agent, {"then": answer})).success
        runtime.handler("hung")(hung := Worker())
        await runtime.submit("hung")
        await current_simulation().settle()
    assert (hung.begun, hung.alive) == (1, 0)


@both_kinds
@simulate(runs=1)
async def test_a_crowd_of_asks_is_told_at_once_that_the_agent_is_busy(hosted: bool) -> None:
    """Row 6. Of 1,000, as many run and as many wait as the agent takes; nobody else waits, and none is alive in the end."""
    agent = Agent(worker=Worker(cleanup=0.1), max_concurrency=3, max_waiting=5)
    async with living(hosted) as runtime:
        with anyio.move_on_after(0.5):
            async with anyio.create_task_group() as group:
                callers = Callers(group)
                for _ in range(1_000):
                    callers.start(runtime.ask, agent)
                await current_simulation().settle()
                assert callers.told == [AgentBusyError] * 992
                assert (agent.metrics.running, agent.metrics.waiting, anyio.current_time()) == (3, 5, 0)
        assert (agent.worker.begun, agent.worker.alive, runtime.statistics().asks) == (3, 0, 0)
        assert (await runtime.ask(agent, {"then": answer})).success


async def answer(context: AgentContext) -> dict[str, Any]:
    """Answer at once."""
    return {"answered": True}


@both_kinds
@simulate(runs=1)
async def test_no_instance_is_kept_of_agents_that_were_made_for_one_ask(hosted: bool) -> None:
    """Row 6. Each is terminated, and then forgotten."""
    made: list[weakref.ref[Agent]] = []

    def make() -> Agent:
        agent = Agent("short")
        made.append(weakref.ref(agent))
        return agent

    async with living(hosted) as runtime:
        runtime.registry("agents").register("short", make)
        for _ in range(50):
            assert (await runtime.ask("short")).success
        gc.collect()
        assert (len(made), [ref for ref in made if ref() is not None]) == (50, [])


@both_kinds
@pytest.mark.parametrize("how", ["a branch fails", "the caller times out"])
@simulate(runs=RUNS)
async def test_a_sibling_is_cancelled_once_and_its_cleanup_finishes(how: str, hosted: bool) -> None:
    """Rows 7 and 8. Its shielded clean-up is not cut off, and whoever waits goes on only after it: nothing is alive then."""
    sibling = Worker(cleanup=1.0)
    async with living(hosted) as runtime:
        runtime.handler("sibling")(sibling)
        runtime.handler("failing")(Worker(seconds=0.25, error=ValueError("as told")))
        with anyio.move_on_after(0.5) as scope:
            try:
                async with runtime.group() as group:
                    group.start("sibling")
                    group.start("failing" if how == "a branch fails" else "hang")
            except TaskGroupError:
                assert how == "a branch fails"
        assert scope.cancelled_caught == (how == "the caller times out") or scope.cancel_called
        assert (sibling.cancelled, sibling.cleaned, sibling.alive) == (1, 1, 0)
        assert runtime.tasks.active() == []
        assert anyio.current_time() == (1.25 if how == "a branch fails" else 1.5)


@both_kinds
def test_a_thread_beside_a_branch_that_fails_has_ended_before_the_error_is_told(hosted: bool) -> None:
    """Row 9. What the thread does is done when the caller learns of the error, and not some time afterwards."""

    @simulate(runs=1)
    async def scenario() -> None:
        working, failing = threading.Event(), threading.Event()
        done: list[str] = []

        def in_thread(given: dict[str, Any]) -> dict[str, Any]:
            working.set()
            assert failing.wait(5)
            done.append("side effect")
            return given

        def raising(given: dict[str, Any]) -> None:
            assert working.wait(5)
            failing.set()
            raise ValueError("as told")

        async with living(hosted) as runtime:
            runtime.handler("in_thread")(in_thread)
            runtime.handler("raising")(raising)
            with pytest.raises(TaskGroupError):
                async with runtime.group() as group:
                    group.start("in_thread")
                    group.start("raising")
            done.append("told")
        assert done == ["side effect", "told"]

    scenario()


@both_kinds
@simulate(runs=RUNS)
async def test_two_branches_that_fail_together_are_both_told(hosted: bool) -> None:
    """Row 10. Both errors are leaves of the group's; with `first`, the second one is a note on the first."""
    async with living(hosted) as runtime:
        for number in (1, 2):
            runtime.handler(f"branch {number}")(Worker(seconds=1, error=ValueError(f"branch {number}")))
        with pytest.raises(TaskGroupError) as caught:
            async with runtime.group() as group:
                group.start("branch 1")
                group.start("branch 2")
        assert {str(leaf.__cause__) for leaf in caught.value.exceptions} == {"branch 1", "branch 2"}
        with pytest.raises(TaskExecutionError) as first:
            async with runtime.group("first") as group:
                group.start("branch 1")
                group.start("branch 2")
        told = str(first.value) + "".join(getattr(first.value, "__notes__", ()))
        assert all(f"branch {number}" in told for number in (1, 2))


@both_kinds
@simulate(runs=RUNS)
async def test_a_branch_and_the_block_that_fail_together_are_both_told(hosted: bool) -> None:
    """Row 10. The error of the block stands beside those of the tasks; alone, it comes as it is."""
    async with living(hosted) as runtime:
        with pytest.raises(TaskGroupError) as caught:
            async with runtime.group() as group:
                group.start("fail", {"n": 1})
                try:
                    await anyio.sleep_forever()
                finally:
                    raise KeyError("the block")
        assert {type(leaf) for leaf in caught.value.exceptions} == {TaskExecutionError, KeyError}
        for on_error in ("cancel", "first", "collect"):
            with pytest.raises(KeyError, match="alone"):
                async with runtime.group(on_error) as group:  # type: ignore[arg-type]
                    group.start("hang")
                    raise KeyError("alone")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@both_kinds
def test_it_runs_on_trio_as_on_asyncio(backend: str, hosted: bool) -> None:
    """Row 11. On the real event loop, without the testing kit."""

    async def main() -> list[Any]:
        async with AgentRuntime(hosted=hosted) as runtime:
            runtime.handler("double")(double)
            handle = await runtime.submit("double", {"n": 1})
            asked = await runtime.ask(Agent(), {"then": answer})
            mapped = await runtime.map("double", [{"n": 2}, {"n": 3}])
            return [await handle.result(), asked.output, *mapped]

    expected = [{"result": 2}, {"answered": True}, {"result": 4}, {"result": 6}]
    assert anyio.run(main, backend=backend) == expected


async def double(given: dict[str, Any]) -> int:
    """Double a number."""
    return 2 * int(given["n"])


@both_kinds
@simulate(runs=RUNS)
async def test_cancelling_a_task_cancels_its_running_step_and_its_children(hosted: bool) -> None:
    """Row 12. All that is part of it: what it runs, asks, and has started in a group."""
    steps, asked, child = Worker(), Worker(), Worker()
    async with living(hosted) as runtime:
        runtime.handler("step")(steps)
        runtime.handler("child")(child)

        @runtime.handler("parent")
        async def parent(given: dict[str, Any], context: AgentContext) -> None:
            async with context.group() as group, anyio.create_task_group() as own:
                group.start("child")
                own.start_soon(context.run, "step")
                own.start_soon(context.ask, Agent(worker=asked))

        handle = await runtime.submit("parent")
        await current_simulation().settle()
        assert [worker.alive for worker in (steps, asked, child)] == [1, 1, 1]
        handle.cancel("not needed")
        assert (await handle.wait()).state is TaskState.CANCELED
        assert [(worker.alive, worker.cancelled) for worker in (steps, asked, child)] == [(0, 1)] * 3
        assert runtime.tasks.active() == []


@both_kinds
@simulate(runs=RUNS)
async def test_a_handle_cancels_and_nothing_is_alive_after_the_shutdown(hosted: bool) -> None:
    """Row 13. The handle ends its task; the end of the runtime ends the others, and names them."""
    worker = Worker(cleanup=1.0)
    async with living(hosted) as runtime:
        runtime.handler("slow")(worker)
        handles = [await runtime.submit("slow") for _ in range(3)]
        await current_simulation().settle()
        assert handles[0].cancel("not needed")
        with pytest.raises(TaskCanceledError, match="not needed"):
            await handles[0].result()
        assert worker.alive == 2
    assert (worker.alive, worker.cleaned) == (0, 3)
    assert runtime.report is not None
    assert [result.task_id for result in runtime.report.cut_short] == [handle.id for handle in handles[1:]]


@both_kinds
@simulate(runs=RUNS)
async def test_one_bad_message_kills_no_agent(hosted: bool) -> None:
    """Row 14. After an error, and after a handler of errors that fails itself, the agent takes the next one."""

    class Fragile(Agent):
        async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
            raise KeyError("cannot handle that") from error

    async def bad(context: AgentContext) -> None:
        raise ValueError("bad")

    async with living(hosted) as runtime:
        robust, fragile = Agent(), Fragile()
        assert not (await runtime.ask(robust, {"then": bad})).success
        with pytest.raises(AgentExecutionError):
            await runtime.ask(fragile, {"then": bad})
        for agent in (robust, fragile):
            assert (await runtime.ask(agent, {"then": answer})).output == {"answered": True}


@both_kinds
@simulate(runs=RUNS)
async def test_an_ask_that_times_out_leaves_the_agent_free(hosted: bool) -> None:
    """Row 14. The next one is answered at once."""
    agent = Agent(worker=Worker(), max_concurrency=1)
    async with living(hosted) as runtime:
        assert not (await runtime.ask(agent, timeout=0.1)).success
        assert (await runtime.ask(agent, {"then": answer})).success
        assert anyio.current_time() == 0.1


@both_kinds
@simulate(runs=RUNS)
async def test_a_busy_agent_keeps_nobody_waiting_who_may_not_wait(hosted: bool) -> None:
    """Row 14. Whoever asks while it works is told so at once, and the next one after that is answered."""
    agent = Agent(worker=Worker(seconds=1.4), max_concurrency=1, max_waiting=0)
    async with living(hosted) as runtime, anyio.create_task_group() as group:
        callers = Callers(group)
        callers.start(runtime.ask, agent)
        await current_simulation().settle()
        with pytest.raises(AgentBusyError) as caught:
            await runtime.ask(agent)
        assert (caught.value.retryable, anyio.current_time()) == (True, 0)
        await anyio.sleep(1.5)
        assert (await runtime.ask(agent, {"then": answer})).success


@both_kinds
@simulate(runs=1)
async def test_what_a_busy_agent_is_sent_does_not_pile_up(hosted: bool) -> None:
    """Row 14. Of 1,000 tasks for an agent that is at work, so many wait for it as may; each of the others has ended."""
    agent = Agent(worker=Worker(), max_concurrency=1, max_waiting=10)
    async with living(hosted) as runtime:
        runtime.registry("agents").register("busy", agent)
        handles = [await runtime.submit("busy") for _ in range(1_000)]
        await current_simulation().settle()
        statistics = runtime.statistics().tasks
        assert (statistics.accepted, statistics.failed, len(runtime.tasks.active())) == (1_000, 989, 11)
        for handle in handles:
            if handle.state is TaskState.FAILED:
                await handle.wait()


@both_kinds
@simulate(runs=1)
async def test_a_full_queue_pushes_back(hosted: bool) -> None:
    """Row 14. Of 1,000 tasks for a runtime that does nothing, so many are taken as there are places."""
    async with living(hosted, in_flight=1, queue=10) as runtime:
        with anyio.move_on_after(5):
            for _ in range(1_000):
                await runtime.submit("hang")
        assert runtime.statistics().tasks.accepted == 11


@both_kinds
@simulate(runs=RUNS)
async def test_a_circle_of_asks_is_told_at_once(hosted: bool) -> None:
    """Row 14. A asks B, and B asks A: an error that names the agents, and not two timeouts."""
    first, second = Agent("first", max_concurrency=1), Agent("second", max_concurrency=1)

    async def ask_second(context: AgentContext) -> Any:
        return (await context.ask(second, {"then": ask_first})).error

    async def ask_first(context: AgentContext) -> Any:
        return (await context.ask(first, {"then": answer})).error

    async with living(hosted) as runtime:
        told = await runtime.ask(first, {"then": ask_second}, timeout=60)
        assert told.output["error_type"] == "AgentDeadlockError"
        assert all(name in told.output["message"] for name in ("first", "second"))
        assert anyio.current_time() == 0


@both_kinds
@simulate(runs=1)
async def test_the_checkpoints_of_a_long_task_do_not_pile_up(hosted: bool) -> None:
    """Row 15, as far as it applies. After 2,000 turns the newest are kept, and no more of them."""
    async with living(hosted) as runtime:

        @runtime.handler("turns")
        async def turns(given: dict[str, Any], context: AgentContext) -> None:
            for turn in range(2_000):
                context.checkpoint({"turn": turn})

        task = BaseTask.create("turns")
        await runtime.run(task)
        assert (len(task.checkpoints), len(task.events)) <= (256, 256)
        assert task.checkpoints[-1].data == {"turn": 1_999}


@both_kinds
@simulate(runs=1)
async def test_a_producer_gives_way_to_what_it_has_submitted(hosted: bool) -> None:
    """Row 16. Each `submit` lets others go on: most is done while it submits, and nothing is alive after a shutdown."""
    seen: list[int] = []
    async with living(hosted, in_flight=4, queue=16) as runtime:

        @runtime.handler("note")
        async def note(given: dict[str, Any]) -> None:
            seen.append(given["n"])

        for number in range(1_000):
            await runtime.submit("note", {"n": number})
        assert len(seen) >= 1_000 - 4 - 16
        runtime.handler("slow")(slow := Worker(cleanup=0.5))
        with anyio.move_on_after(1):
            for _ in range(1_000):
                await runtime.submit("slow")
        await runtime.shutdown(0.1)
        assert (slow.peak, slow.alive, runtime.tasks.active()) == (4, 0, [])


@both_kinds
@simulate(runs=1)
async def test_a_flood_of_urgent_tasks_does_not_starve_the_others(hosted: bool) -> None:
    """Row 16. They overtake whoever is less urgent for as long as the bound says, and not for as long as they come."""
    async with living(hosted, in_flight=1, ageing=5) as runtime, anyio.create_task_group() as group:
        runtime.handler("urgent")(Worker(seconds=1))
        runtime.handler("patient")(patient := Worker(seconds=1))

        async def flood() -> None:
            while True:
                await runtime.submit("urgent", priority=TaskPriority.CRITICAL)
                await anyio.sleep(0.75)

        group.start_soon(flood)
        await current_simulation().settle()
        handle = await runtime.submit("patient", priority=TaskPriority.LOW)
        # In the first 15 s come 21 that overtake it, of a second each.
        await handle.result()
        assert (patient.begun, anyio.current_time()) == (1, 22)
        group.cancel_scope.cancel()
