"""Ask a service that fails, hangs, dies and comes back; say what is remembered while it cannot be asked.

    agentcore run examples/resilient_client.py:workflow
    agentcore run examples/resilient_client.py:workflow --input '{"questions": 200}'

`Inquirer` is what one would write for a service of one's own: an HTTP client that is opened once, and layers around each
request. The rest is a service on this machine that gets into every kind of trouble, and a report of what came of it.
httpx2 has to be there: `pip install httpx2`.
"""

from collections import Counter
from typing import Any

import anyio
import anyio.abc
import attrs
import httpx2
from anyio.streams.buffered import BufferedByteReceiveStream

from agentcore import (
    AgentConfig,
    AgentContext,
    AgentResult,
    AgentRuntime,
    Backoff,
    BaseAgent,
    Bulkhead,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerError,
    Event,
    Fallback,
    Pipeline,
    PipelineError,
    Retry,
    RetryBudget,
    TaskExecutionError,
    Timeout,
)

Json = dict[str, Any]


# ----------------------------------------------------------------------------------------------- asking, come what may


def is_failure(error: BaseException) -> bool:
    """Tell whether an error speaks against the service. A status of 4xx does not: such a question is wrong anywhere."""
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.is_server_error
    return isinstance(error, httpx2.TransportError | TimeoutError)


CIRCUIT = CircuitBreakerConfig(failure_threshold=5, success_threshold=2, reset_timeout_ms=200, failure_if=is_failure)


class Inquirer(BaseAgent):
    """Answers questions by an HTTP service, and out of its memory while the service cannot.

    Args:
        url: of the service.
        breaker: of the service as well; whoever else asks it should have the same one.
        timeout: seconds for each request.
        attempts: requests for each question.
        at_once: requests at a time.
    """

    def __init__(
        self, url: str, breaker: CircuitBreaker, *, timeout: float = 0.25, attempts: int = 3, at_once: int = 8
    ) -> None:
        super().__init__(AgentConfig("inquirer", "ask", max_concurrency=None))
        self.memory: dict[str, Any] = {}
        # One for all requests, without time limits of its own: `Timeout` sees to that.
        self.client = httpx2.AsyncClient(base_url=url, timeout=None, trust_env=False)
        # From the outside to the inside:
        # - Something is said, whatever happens.
        # - What may pass is tried again, within a budget: a service in trouble is not asked many times as much.
        # - Some requests run at a time, the others wait, and ask the circuit when it is their turn. Inside of it they
        #   would have asked before: all that wait when a service begins to hang would still be sent to it.
        # - The circuit sees every attempt, and can refuse the next one.
        # - The time for an attempt begins when it does, not while it waits for its turn.
        self.layers = Pipeline(
            Fallback(self.remember, on=(httpx2.HTTPError, CircuitBreakerError, PipelineError)),
            Retry(attempts, backoff=Backoff(initial=0.02), budget=RetryBudget(), retry_if=is_failure),
            Bulkhead(at_once, queue=100),
            breaker,
            Timeout(timeout),
        )

    async def initialize(self) -> bool:
        """Have nothing to set up: the client connects when it has to, and keeps connections for later requests."""
        return True

    async def process(self, context: AgentContext) -> AgentResult:
        """Answer one question."""
        return AgentResult.success_result(await self.layers.execute(self.ask, str(context.input["question"])))

    async def ask(self, question: str) -> Json:
        """Have the service answer."""
        response = await self.client.get(f"/answers/{question}")
        response.raise_for_status()
        self.memory[question] = response.json()["answer"]
        return {"answer": self.memory[question], "source": "service"}

    async def remember(self, error: Exception, question: str) -> Json:
        """Say what the service said the last time; raise the error if there is nothing, or nothing better, to say."""
        wrong = isinstance(error, httpx2.HTTPStatusError) and not is_failure(error)
        if wrong or question not in self.memory:
            raise error
        return {"answer": self.memory[question], "source": "memory"}

    async def handle_error(self, error: Exception, context: AgentContext) -> AgentResult:
        """Make the error the result of the task."""
        return AgentResult.error_result(error)

    async def terminate(self) -> None:
        """Close the client, when the runtime is left."""
        await self.client.aclose()


# --------------------------------------------------------------------------------------------- something to be asked


class Service:
    """Squares numbers, and has whatever trouble it is told to have.

    Attributes:
        trouble: what it has now: ``none``, ``fails``, ``hangs`` or ``dead``.
        requests: how many have reached it.
    """

    def __init__(self) -> None:
        self.trouble = "dead"
        self.requests = 0
        self.port = 0  # Any at first; later it comes back where it was.
        self._life = anyio.CancelScope()

    async def fall_into(self, trouble: str, group: anyio.abc.TaskGroup) -> None:
        """Have another trouble from now on, be it none; who was dead is back when this returns."""
        if trouble == "dead":
            self._life.cancel()
        elif self.trouble == "dead":
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.port)
            self.port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - nothing of Django is here
            group.start_soon(self._live, listener)
        self.trouble = trouble

    async def _live(self, listener: anyio.abc.Listener[anyio.abc.SocketStream]) -> None:
        """Answer until it dies, with all its connections."""
        with anyio.CancelScope() as self._life:
            async with listener:
                await listener.serve(self.answer)

    async def answer(self, stream: anyio.abc.SocketStream) -> None:
        """Answer one request."""
        async with stream:
            try:
                head = await BufferedByteReceiveStream(stream).receive_until(b"\r\n\r\n", max_bytes=65536)
                self.requests += 1
                if self.trouble == "hangs":
                    await anyio.sleep_forever()
                # Three of ten requests, and never two in a row.
                unwell = self.trouble == "fails" and self.requests * 3 % 10 < 3
                number = int(head.split()[1].rpartition(b"/")[2])
                body = b'{"answer": %d}' % number**2
                await stream.send(
                    b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (b"503 Not Now" if unwell else b"200 OK", len(body), body)
                )
            except (anyio.BrokenResourceError, anyio.IncompleteRead):
                pass  # Whoever has asked did not wait for the answer.


# ------------------------------------------------------------------------------------------------- and how that went

PAUSE = 0.01  # Seconds between two questions.


async def workflow(given: Json, context: AgentContext) -> Json:
    """Ask the service all the time, whatever trouble it has; return the report."""
    runtime = AgentRuntime.current()
    breaker = runtime.breaker("squares", CIRCUIT)
    service = Service()
    periods: list[Json] = []
    events: list[Json] = []
    began = anyio.current_time()

    def note(event: Event) -> None:
        events.append({"event": event.event_type, "seconds": round(anyio.current_time() - began, 3)})

    async def ask_through(trouble: str) -> None:
        await service.fall_into(trouble, group)
        row = await ask_on(given.get("questions", 30), service, context)
        periods.append({"trouble": trouble, **row, "circuit": breaker.state})

    breaker.subscribe(note)
    async with anyio.create_task_group() as group:
        await service.fall_into("none", group)
        runtime.registry("agents").register("ask_agent", Inquirer(f"http://127.0.0.1:{service.port}", breaker))
        for trouble in ("none", "fails", "hangs", "dead", "none"):
            await ask_through(trouble)
        while not breaker.is_closed:  # It finds out by being asked.
            await ask_through("none")
        group.cancel_scope.cancel()
    return {"periods": periods, "events": events, "breaker": attrs.asdict(breaker.metrics)}


async def ask_on(questions: int, service: Service, context: AgentContext) -> Json:
    """Ask so many questions, one after the other, whether the ones before have been answered or not."""
    before = service.requests
    asked = []
    for number in range(questions):
        asked.append(await context.submit("ask", {"question": number % 10}))
        await anyio.sleep(PAUSE)
    found = Counter(fresh=0, degraded=0, unanswered=0)
    for handle in asked:
        try:
            answer = await handle.result()
        except TaskExecutionError:
            found["unanswered"] += 1
        else:
            found["fresh" if answer["source"] == "service" else "degraded"] += 1
    return {"asked": questions, **found, "requests": service.requests - before}
