"""A FastAPI app around a runtime, which endpoints get as a dependency."""

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse

import agentcore
from agentcore import AgentRuntime, RuntimeClosedError, TaskCanceledError
from tests.embedding.apps.parts import CONFIG, equip


def of_state(request: Request) -> AgentRuntime:
    runtime: AgentRuntime = request.state.runtime
    return runtime


Runtime = Annotated[AgentRuntime, Depends(of_state)]

app = FastAPI(lifespan=agentcore.lifespan(config=CONFIG, setup=equip))


@app.exception_handler(RuntimeClosedError)
@app.exception_handler(TaskCanceledError)
async def unavailable(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error), "cause": str(error.__cause__)}, 503)


@app.get("/healthz")
async def healthz(runtime: Runtime, response: Response) -> dict[str, Any]:
    health = runtime.health()
    response.status_code = 200 if health.healthy else 503
    return {"state": health.state, "failures": [str(failure) for failure in health.failures]}


@app.post("/run/{type}")
async def run(type: str, runtime: Runtime, request: Request) -> dict[str, Any]:
    return await runtime.run(type, dict(request.query_params))


@app.post("/submit/{type}", status_code=202)
async def submit(type: str, runtime: Runtime, request: Request) -> dict[str, Any]:
    handle = await runtime.submit(type, dict(request.query_params))
    return {"id": handle.id}
