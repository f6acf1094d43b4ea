"""A Starlette app that watches a log and reviews code: both examples, in one runtime, beside everything else it does."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import agentcore
from agentcore import AgentRuntime
from examples import monitor, review
from tests.embedding.apps import parts  # it configures the log

WATCHED = monitor.Log(path=os.environ["LOG"])


async def equip(runtime: AgentRuntime) -> None:
    """Start the agents of both."""
    await monitor.start(runtime, WATCHED, lost=3)
    await review.start(runtime, workers=1)


async def log(request: Request) -> JSONResponse:
    return JSONResponse(WATCHED.report())


async def code(request: Request) -> JSONResponse:
    asked = {"path": request.query_params["path"], "first": None}
    return JSONResponse(await request.state.runtime.run("plan", asked))


async def healthz(request: Request) -> JSONResponse:
    health = request.state.runtime.health()
    return JSONResponse({"state": health.state, "failures": list(map(str, health.failures))})


app = Starlette(
    routes=[Route("/log", log), Route("/review", code, methods=["POST"]), Route("/healthz", healthz)],
    lifespan=agentcore.lifespan(config=parts.CONFIG, setup=equip),
)
