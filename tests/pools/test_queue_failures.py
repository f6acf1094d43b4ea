"""Pools for coroutines, of either kind: what becomes of the failures of jobs, and what is no job at all."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentcore import ConfigurationError, WorkerPoolConfig, WorkerPoolError
from tests.pools.coroutines import Boom, Kind, both_kinds, configured, counts, double, fail, logged, nothing

pytestmark = [pytest.mark.anyio, both_kinds]


async def test_failures_of_jobs_that_nobody_waits_for(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """They are counted, logged and given to `on_error`; the worker goes on."""
    given: list[BaseException] = []
    async with kind("letters", configured(on_error=given.append)) as pool:
        await pool.submit(fail, "one")
        pool.submit_nowait(fail, "two")
        await pool.submit(nothing)
    assert ["one", "two"] == [str(error) for error in given if isinstance(error, Boom)]
    assert {"succeeded": 1, "failed": 2} == counts(pool.metrics)
    assert ["job fail of worker pool 'letters' failed"] * 2 == [record.message for record in logged(caplog)]
    assert [("agentcore.pools", logging.ERROR)] * 2 == [(record.name, record.levelno) for record in logged(caplog)]
    assert given == [record.exc_info[1] for record in logged(caplog) if record.exc_info]
    assert "fail" in {frame.name for frame in traceback.extract_tb(given[0].__traceback__)}


async def test_on_error_may_fail(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """Both errors are in the log, and the next job is done."""

    def on_error(error: BaseException) -> None:
        raise LookupError("the number of the doctor")

    async with kind("p", configured(on_error=on_error)) as pool:
        await pool.submit(fail)
        await pool.submit(nothing)
    assert {"succeeded": 1, "failed": 1} == counts(pool.metrics)
    assert ["job fail of worker pool 'p' failed", "on_error of worker pool 'p' failed"] == [
        record.message for record in logged(caplog)
    ]
    assert [Boom, LookupError] == [record.exc_info[0] for record in logged(caplog) if record.exc_info]


async def test_failures_are_for_those_who_wait(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """They are told to nobody else."""
    given: list[BaseException] = []
    async with kind("p", configured(on_error=given.append)) as pool:
        error = Boom("mine")

        async def raise_it() -> None:
            raise error

        with pytest.raises(Boom) as caught:
            await pool.asubmit(raise_it)
        assert caught.value is error
        with pytest.raises(ExceptionGroup) as group:
            await pool.asubmit(fail_twice)
        assert 2 == len(group.value.exceptions)
        assert 2 == await pool.asubmit(double, 1)
    assert {"succeeded": 1, "failed": 2} == counts(pool.metrics)
    assert ([], []) == (given, logged(caplog))


async def fail_twice() -> None:
    raise ExceptionGroup("two", [Boom("one"), Boom("two")])


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("odd")], ids=repr)
async def test_what_ends_programs_is_raised_by_asubmit(kind: Kind, error: BaseException) -> None:
    """It is the caller's, and the pool goes on."""

    async def leave() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    async with kind("p", configured()) as pool:
        with pytest.raises(type(error)) as caught:
            await pool.asubmit(leave)
        assert caught.value is error
        assert 2 == await pool.asubmit(double, 1)
    assert {"succeeded": 1, "failed": 1} == counts(pool.metrics)


async def test_plain_functions_are_no_jobs(kind: Kind) -> None:
    """What they return is named, with where such functions belong."""
    given: list[BaseException] = []

    def plain(number: int) -> int:
        return number + 1

    async with kind("p", configured(on_error=given.append)) as pool:
        with pytest.raises(WorkerPoolError) as caught:
            await pool.asubmit(plain, 41)
        await pool.submit(plain, 41)
        await pool.submit(nothing)
    name = plain.__qualname__
    assert (
        f"a job of worker pool 'p' must be a coroutine function: got {name}, which returned 42; "
        "use a thread pool for plain functions"
    ) == str(caught.value)
    assert {"pool": "p", "function": name} == caught.value.details
    assert [str(caught.value)] == [str(error) for error in given]
    assert {"succeeded": 1, "failed": 2} == counts(pool.metrics)


async def test_functions_that_raise_at_once(kind: Kind) -> None:
    """Wrong arguments, or code before the coroutine is made: an error of the job, as any other."""
    given: list[BaseException] = []

    def make(number: int) -> Any:
        raise Boom(str(number))

    async with kind("p", configured(on_error=given.append)) as pool:
        with pytest.raises(TypeError, match="number"):
            await pool.asubmit(double)
        with pytest.raises(Boom, match="1"):
            await pool.asubmit(make, 1)
        await pool.submit(double, 1, 2, 3)
        await pool.submit(make, 2)
    assert [TypeError, Boom] == [type(error) for error in given]
    assert {"failed": 4} == counts(pool.metrics)


async def test_what_cannot_be_called_is_refused(kind: Kind) -> None:
    """At once, and nothing is counted."""
    async with kind("p", configured()) as pool:
        coroutine = double(3)
        for wrong in (None, "double", coroutine):
            with pytest.raises(ConfigurationError, match="a job of worker pool 'p' takes a function"):
                await pool.submit(wrong)  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError, match="a job of worker pool 'p' takes a function"):
                pool.submit_nowait(wrong)  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError, match="a job of worker pool 'p' takes a function"):
                await pool.asubmit(wrong)  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError, match="func of a worker pool takes a function"):
                await pool.amap(wrong, [1])  # type: ignore[arg-type]
        coroutine.close()
    assert {} == counts(pool.metrics)


async def test_results_that_are_exceptions_or_coroutines(kind: Kind) -> None:
    """What a job returns is its result, whatever it is."""
    error = Boom("returned")

    async def give(value: Any) -> Any:
        return value

    async with kind("p", WorkerPoolConfig(workers=1)) as pool:
        assert error is await pool.asubmit(give, error)
        with pytest.raises(RuntimeError) as caught:
            await pool.asubmit(stop)
        assert isinstance(caught.value.__cause__, StopIteration)
        given = await pool.asubmit(give, double(4))
        assert 8 == await given


async def stop() -> None:
    raise StopIteration(3)
