"""Circuit breakers by name: one for the whole process, one for each key."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import anyio
import pytest

from agentcore import (
    CircuitBreakerConfig,
    CircuitOpenError,
    CircuitTimeoutError,
    ConfigurationError,
    KeyedCircuitBreaker,
    clear_circuit_breakers,
    get_circuit_breaker,
    with_circuit_breaker,
)
from agentcore.testing import isolated_globals, simulate
from tests.core.circuits import Down, at_once, fail, hang, open_up, succeed

pytestmark = pytest.mark.anyio

STRICT = CircuitBreakerConfig(failure_threshold=1, success_threshold=1, reset_timeout_ms=10_000)


@pytest.fixture(autouse=True)
def isolated() -> Generator[None]:
    """Begin with no breaker, and leave none behind."""
    with isolated_globals():
        yield


# ---------------------------------------------------------------- of the process


def test_one_breaker_for_a_name() -> None:
    """It is made at the first call; an omitted configuration finds it, an equal one too."""
    breaker = get_circuit_breaker("api", STRICT)
    assert ("api", STRICT) == (breaker.name, breaker.config)
    assert breaker is get_circuit_breaker("api")
    assert breaker is get_circuit_breaker(
        "api", CircuitBreakerConfig(failure_threshold=1, success_threshold=1, reset_timeout_ms=10_000)
    )
    assert breaker is not get_circuit_breaker("other")
    assert CircuitBreakerConfig() == get_circuit_breaker("other").config


@pytest.mark.parametrize("first", [None, STRICT])
def test_another_configuration_is_an_error(first: CircuitBreakerConfig | None) -> None:
    """Neither the first nor the last one wins in silence, also if the first one was not given."""
    breaker = get_circuit_breaker("api", first)
    other = CircuitBreakerConfig(failure_threshold=7)
    with pytest.raises(ConfigurationError) as caught:
        get_circuit_breaker("api", other)
    assert (
        f"circuit 'api' exists with another config: got {other!r}, it has {breaker.config!r}; "
        "omit config to find it, or take another name"
    ) == str(caught.value)
    assert {"circuit_name": "api", "config": other} == caught.value.details
    assert breaker is get_circuit_breaker("api")


@pytest.mark.parametrize("name", ["", None, 3, ["api"], {}])
def test_unusable_names(name: Any) -> None:
    """Also those that no dictionary takes."""
    with pytest.raises(ConfigurationError, match="name of a circuit breaker must be a string that is not empty"):
        get_circuit_breaker(name)


def test_an_unusable_configuration_leaves_nothing_behind() -> None:
    config: Any = {"failure_threshold": 1}
    with pytest.raises(ConfigurationError, match="config of circuit 'api' must be a CircuitBreakerConfig"):
        get_circuit_breaker("api", config)
    assert STRICT == get_circuit_breaker("api", STRICT).config


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (None, ""),
        ("one", "two three"),
        (["one", "three"], "two"),
        ({"two", "unknown"}, "one three"),
        ("unknown", "one two three"),
        ([], "one two three"),
    ],
)
def test_breakers_are_forgotten(names: Any, left: str) -> None:
    """The next who asks gets another one; who has one keeps it as it is."""
    breakers = {name: get_circuit_breaker(name, STRICT) for name in ("one", "two", "three")}
    for breaker in breakers.values():
        open_up(breaker)
    clear_circuit_breakers(names)
    assert left.split() == [name for name, breaker in breakers.items() if get_circuit_breaker(name) is breaker]
    assert all(breaker.is_open for breaker in breakers.values())


async def test_calls_by_name() -> None:
    """They go through the breaker of that name, with what it has been configured with."""
    breaker = get_circuit_breaker("api", STRICT)

    async def add(left: int, *, right: int, name: str) -> str:
        return f"{name} {left + right}"

    assert "sum 3" == await with_circuit_breaker("api", add, 1, right=2, name="sum")
    assert 3 == await with_circuit_breaker("api", lambda: 3)
    with pytest.raises(Down):
        await with_circuit_breaker("api", fail)
    with pytest.raises(CircuitOpenError, match="circuit 'api' lets no call through"):
        await with_circuit_breaker("api", succeed)
    assert "well" == await with_circuit_breaker("other", succeed)
    metrics = breaker.metrics
    assert (2, 1, 1) == (metrics.successes, metrics.failures, metrics.rejected)


async def test_calls_by_name_refuse_what_cannot_be_called() -> None:
    mistake: Any = succeed()
    with pytest.raises(ConfigurationError) as caught:
        await with_circuit_breaker("api", mistake)
    assert str(caught.value).startswith("execute of circuit 'api' takes a function: got <coroutine object ")
    assert str(caught.value).endswith("write succeed, not succeed()")
    with pytest.raises(ConfigurationError, match="name of a circuit breaker must be a string"):
        await with_circuit_breaker("", succeed)


def test_calls_by_name_add_no_checkpoint() -> None:
    assert "well" == at_once(with_circuit_breaker("api", succeed))
    assert "well" == at_once(KeyedCircuitBreaker("api").execute("here", succeed))


@simulate(runs=3)
async def test_a_process_wide_breaker_in_virtual_time() -> None:
    """It takes the clock of whoever calls, so it can be tested like others."""
    clear_circuit_breakers()
    breaker = get_circuit_breaker("api", STRICT)
    with pytest.raises(Down):
        await with_circuit_breaker("api", fail)
    assert 10.0 == breaker.retry_after
    await anyio.sleep(10)
    assert "well" == await with_circuit_breaker("api", succeed)
    assert breaker.is_closed


def test_the_names_of_a_test_are_its_own() -> None:
    """`isolated_globals` hides the breakers from before, and gives them back."""
    outer = get_circuit_breaker("api", STRICT)
    with isolated_globals():
        inner = get_circuit_breaker("api")
        assert inner is not outer
        get_circuit_breaker("another")
    assert outer is get_circuit_breaker("api")
    assert STRICT == get_circuit_breaker("another", STRICT).config


# ---------------------------------------------------------------- keyed


def test_a_breaker_for_each_key() -> None:
    keyed = KeyedCircuitBreaker("hosts", STRICT)
    assert ("hosts", STRICT, 1024) == (keyed.name, keyed.config, keyed.max_keys)
    here = keyed["here"]
    assert ("hosts:here", STRICT) == (here.name, here.config)
    assert here is keyed["here"]
    assert here is not keyed["there"]
    assert (True, False, 2) == ("here" in keyed, "nowhere" in keyed, len(keyed))
    assert {"here": here, "there": keyed["there"]} == keyed.list_all()
    assert "<KeyedCircuitBreaker 'hosts' with 2 of 1024 keys>" == repr(keyed)
    assert CircuitBreakerConfig() == KeyedCircuitBreaker("hosts").config


async def test_one_that_fails_does_not_cost_the_others() -> None:
    keyed = KeyedCircuitBreaker("hosts", STRICT)

    async def fetch(host: str, *, key: str = "") -> str:
        if host == "bad":
            raise Down
        return host + key

    with pytest.raises(Down):
        await keyed.execute("bad", fetch, "bad")
    with pytest.raises(CircuitOpenError, match="circuit 'hosts:bad' lets no call through"):
        await keyed.execute("bad", fetch, "good")
    assert "good/a" == await keyed.execute("good", fetch, "good", key="/a")
    assert 3 == await keyed.execute("good", lambda: 3)
    assert (True, 2) == (keyed["bad"].is_open, keyed["good"].metrics.successes)


def test_the_longest_unused_key_is_forgotten() -> None:
    keyed = KeyedCircuitBreaker("hosts", STRICT, max_keys=3)
    for key in ("one", "two", "three", "one", "four"):
        assert keyed[key].is_closed
    assert ["three", "one", "four"] == list(keyed.list_all())
    assert "two" not in keyed  # which is no use of it
    keyed["five"].call(lambda: 1)
    assert ["one", "four", "five"] == list(keyed.list_all())


def test_an_open_circuit_is_forgotten_last() -> None:
    """To forget it would be to let calls through. If all are open, the bound stands nevertheless."""
    keyed = KeyedCircuitBreaker("hosts", STRICT, max_keys=3)
    open_up(keyed["bad"])
    for number in range(10):
        keyed[f"good {number}"].call(lambda: 1)
    assert ["bad", "good 8", "good 9"] == list(keyed.list_all())
    for key in ("good 8", "good 9"):
        open_up(keyed[key])
    assert keyed["new"].is_closed
    assert ["good 8", "good 9", "new"] == list(keyed.list_all())


def test_a_forgotten_breaker_works_for_who_has_it() -> None:
    keyed = KeyedCircuitBreaker("hosts", STRICT, max_keys=1)
    first = keyed["first"]
    assert keyed["second"].is_closed
    open_up(first)
    assert (True, 1) == (first.is_open, len(keyed))
    assert keyed["first"] is not first


def test_many_keys_are_bounded() -> None:
    keyed = KeyedCircuitBreaker("hosts", STRICT, max_keys=10)
    for number in range(1_000):
        open_up(keyed[str(number)])
    assert [str(number) for number in range(990, 1_000)] == list(keyed.list_all())


@pytest.mark.parametrize("key", ["", None, 3, b"here", []])
async def test_unusable_keys(key: Any) -> None:
    keyed = KeyedCircuitBreaker("hosts")
    text = f"name of a key of circuits 'hosts' must be a string that is not empty: got {key!r}; give it one"
    with pytest.raises(ConfigurationError) as caught:
        keyed[key]
    assert text == str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        await keyed.execute(key, succeed)
    assert (text, 0) == (str(caught.value), len(keyed))


@pytest.mark.parametrize("max_keys", [0, -1, 1.5, True, None, "many"])
def test_unusable_bounds(max_keys: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        KeyedCircuitBreaker("hosts", max_keys=max_keys)
    assert (f"max_keys of circuits 'hosts' must be a whole number, 1 or more: got {max_keys!r}; count keys") == str(
        caught.value
    )
    assert {"name": "max_keys", "value": max_keys} == caught.value.details


def test_unusable_arguments_of_keyed_breakers() -> None:
    """Told when it is made, and not at the first call."""
    config: Any = {"failure_threshold": 1}
    with pytest.raises(ConfigurationError, match="name of a keyed circuit breaker must be a string"):
        KeyedCircuitBreaker("")
    with pytest.raises(ConfigurationError, match="must be a CircuitBreakerConfig"):
        KeyedCircuitBreaker("hosts", config)


@simulate(runs=5)
async def test_a_keyed_probe_is_cut() -> None:
    """All that holds for one breaker holds for those of keys."""
    keyed = KeyedCircuitBreaker("hosts", STRICT)
    open_up(keyed["here"])
    await anyio.sleep(10)
    with pytest.raises(CircuitTimeoutError) as caught:
        await keyed.execute("here", hang)
    assert {"circuit_name": "hosts:here", "timeout": 10.0} == caught.value.details
    await anyio.sleep(10)
    assert "well" == await keyed.execute("here", succeed)
    assert keyed["here"].is_closed
