"""A Starlette app around a runtime."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import agentcore
from agentcore import RuntimeClosedError, TaskCanceledError
from tests.embedding.apps.parts import CONFIG, equip


async def healthz(request: Request) -> JSONResponse:
    health = request.state.runtime.health()
    content = {"state": health.state, "failures": [str(failure) for failure in health.failures]}
    return JSONResponse(content, 200 if health.healthy else 503)


async def run(request: Request) -> JSONResponse:
    output = await request.state.runtime.run(request.path_params["type"], dict(request.query_params))
    return JSONResponse(output)


async def submit(request: Request) -> JSONResponse:
    handle = await request.state.runtime.submit(request.path_params["type"], dict(request.query_params))
    return JSONResponse({"id": handle.id}, 202)


async def unavailable(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error), "cause": str(error.__cause__)}, 503)


app = Starlette(
    routes=[
        Route("/healthz", healthz),
        Route("/run/{type}", run, methods=["POST"]),
        Route("/submit/{type}", submit, methods=["POST"]),
    ],
    exception_handlers={RuntimeClosedError: unavailable, TaskCanceledError: unavailable},
    lifespan=agentcore.lifespan(config=CONFIG, setup=equip),
)
