"""A Quart-Trio app around a runtime."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from quart import request
from quart_trio import QuartTrio

from agentcore import AgentRuntime, RuntimeClosedError, TaskCanceledError
from tests.embedding.apps.parts import CONFIG, equip

app = QuartTrio(__name__)


@app.while_serving
async def serving() -> AsyncIterator[None]:
    async with AgentRuntime(CONFIG, hosted=True) as app.runtime:
        await equip(app.runtime)
        yield


@app.errorhandler(RuntimeClosedError)
@app.errorhandler(TaskCanceledError)
async def unavailable(error: Exception) -> tuple[dict[str, Any], int]:
    return {"error": str(error), "cause": str(error.__cause__)}, 503


@app.get("/healthz")
async def healthz() -> tuple[dict[str, Any], int]:
    health = app.runtime.health()
    content = {"state": health.state, "failures": [str(failure) for failure in health.failures]}
    return content, 200 if health.healthy else 503


@app.post("/run/<type>")
async def run(type: str) -> dict[str, Any]:
    return await app.runtime.run(type, request.args.to_dict())


@app.post("/submit/<type>")
async def submit(type: str) -> tuple[dict[str, Any], int]:
    handle = await app.runtime.submit(type, request.args.to_dict())
    return {"id": handle.id}, 202
