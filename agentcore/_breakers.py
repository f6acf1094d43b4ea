"""Circuit breakers by name: of the whole process, of one owner, of many keys."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, ParamSpec, TypeVar, final, overload

from agentcore._breaker import CircuitBreaker
from agentcore._layer import check_name
from agentcore._rules.circuit import CircuitMode
from agentcore._rules.circuit_config import CircuitBreakerConfig
from agentcore.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")


class NamedCircuitBreakers:
    """The breakers of one owner, each made when its name is asked for by the first time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._breakers: dict[str, CircuitBreaker] = {}

    def get(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        probe: Callable[[], Awaitable[object]] | None = None,
    ) -> CircuitBreaker:
        """Return the breaker of a name.

        Raises:
            ConfigurationError: it is there with another configuration or probe; or an argument is not usable.
        """
        with self._lock:
            breaker = self._breakers.get(name) if isinstance(name, str) else None
            is_new = breaker is None
            if breaker is None:
                breaker = self._breakers[name] = CircuitBreaker(name, config, probe=probe)
        if is_new:
            self._made(breaker)
            return breaker
        for what, wanted, present in (("config", config, breaker.config), ("probe", probe, breaker.probe)):
            if wanted is not None and wanted != present:
                raise ConfigurationError(
                    f"circuit {name!r} exists with another {what}: got {wanted!r}, it has {present!r}; "
                    f"omit {what} to find it, or take another name",
                    {"circuit_name": name, what: wanted},
                )
        return breaker

    def _made(self, breaker: CircuitBreaker) -> None:
        """Do what is to be done with a new one. Called without the lock."""

    def list_all(self) -> dict[str, CircuitBreaker]:
        """Return the breakers by name, in the order in which they were made."""
        with self._lock:
            return dict(self._breakers)

    def clear(self, names: Iterable[str] | None = None) -> None:
        """Forget breakers. Whoever has one keeps it."""
        with self._lock:
            for name in list(self._breakers) if names is None else [names] if isinstance(names, str) else names:
                self._breakers.pop(name, None)

    def replace(self, breakers: dict[str, CircuitBreaker]) -> None:
        """Have these and no others."""
        with self._lock:
            self._breakers = dict(breakers)


of_process: Final = NamedCircuitBreakers()


def get_circuit_breaker(name: str, config: CircuitBreakerConfig | None = None) -> CircuitBreaker:
    """Return the process-wide breaker of this name, made at the first call.

    Args:
        name: what it is called. For names that come from outside, such as hosts, there is `KeyedCircuitBreaker`: it
            forgets those that are not used any more.
        config: how it behaves; whatever it is, if omitted and it is there already.

    Raises:
        ConfigurationError: there is one with another configuration; or an argument is not usable.
    """
    return of_process.get(name, config)


def clear_circuit_breakers(names: Iterable[str] | None = None) -> None:
    """Forget process-wide breakers; the next who asks for one gets a new one. Whoever has one keeps it.

    Args:
        names: which one or which ones; all if omitted. Unknown names are passed over.
    """
    of_process.clear(names)


@overload
async def with_circuit_breaker(
    name: str, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
) -> T: ...
@overload
async def with_circuit_breaker(name: str, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
async def with_circuit_breaker(name: str, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function through the process-wide breaker of this name. Adds no checkpoint.

    Args:
        name: of the breaker, which is made with the default configuration if it is not there.
        func: a function, asynchronous or not; a synchronous one runs here, in the event loop.
        *args: its arguments.
        **kwargs: its arguments.

    Returns:
        What it returns.

    Raises:
        CircuitOpenError: the circuit lets no call through.
        CircuitTimeoutError: this was a probe, and it was cut.
        ConfigurationError: an argument is not usable.
        Exception: whatever the function raises.
    """
    return await of_process.get(name).execute(func, *args, **kwargs)


@final
class KeyedCircuitBreaker:
    """A breaker for each key, such as a host or a tenant: one that fails does not cost the others.

        breakers = KeyedCircuitBreaker("api", config, max_keys=1000)
        await breakers.execute(host, fetch, url)

    Of more keys than `max_keys` the one that was used longest ago is forgotten, with what is known of it; those that keep
    calls away at the moment, or have another mode, only if there are no others. Safe to use from several threads.

    Args:
        name: the breakers are called ``name:key``.
        config: how each of them behaves.
        max_keys: how many are kept.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    __slots__ = ("_breakers", "_lock", "config", "max_keys", "name")

    def __init__(self, name: str, config: CircuitBreakerConfig | None = None, *, max_keys: int = 1024) -> None:
        check_name("keyed circuit breaker", name)
        if isinstance(max_keys, bool) or not isinstance(max_keys, int) or max_keys < 1:
            raise ConfigurationError(
                f"max_keys of circuits {name!r} must be a whole number, 1 or more: got {max_keys!r}; count keys",
                {"name": "max_keys", "value": max_keys},
            )
        self.name: Final[str] = name
        self.config: Final[CircuitBreakerConfig] = CircuitBreaker(name, config).config
        self.max_keys: Final[int] = max_keys
        self._lock = threading.Lock()
        self._breakers: OrderedDict[str, CircuitBreaker] = OrderedDict()

    def __repr__(self) -> str:
        return f"<KeyedCircuitBreaker {self.name!r} with {len(self)} of {self.max_keys} keys>"

    def __len__(self) -> int:
        """Return how many keys are known."""
        return len(self._breakers)

    def __contains__(self, key: object) -> bool:
        """Return whether a key is known; it is not used by that."""
        return key in self._breakers

    def __getitem__(self, key: str) -> CircuitBreaker:
        """Return the breaker of a key, made at the first use.

        Raises:
            ConfigurationError: the key is no string, or empty.
        """
        check_name(f"key of circuits {self.name!r}", key)
        with self._lock:
            breaker = self._breakers.get(key)
            if breaker is None:
                breaker = CircuitBreaker(f"{self.name}:{key}", self.config)
                if len(self._breakers) >= self.max_keys:
                    self._forget_one()
                self._breakers[key] = breaker
            else:
                self._breakers.move_to_end(key)
            return breaker

    @overload
    async def execute(self, key: str, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def execute(self, key: str, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def execute(self, key: str, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function through the breaker of a key; as `CircuitBreaker.execute`. Adds no checkpoint.

        Raises:
            CircuitOpenError: the circuit of this key lets no call through.
            CircuitTimeoutError: this was a probe, and it was cut.
            ConfigurationError: an argument is not usable.
            Exception: whatever the function raises.
        """
        return await self[key].execute(func, *args, **kwargs)

    def list_all(self) -> dict[str, CircuitBreaker]:
        """Return the breakers by key, the one that was used longest ago first."""
        with self._lock:
            return dict(self._breakers)

    def _forget_one(self) -> None:
        # One that keeps calls away now would let the next one through if it were forgotten, so those go last. One that was
        # set by hand too: it would forget that.
        idle = (
            key
            for key, breaker in self._breakers.items()
            if breaker.mode is CircuitMode.NORMAL and breaker.retry_after == 0
        )
        del self._breakers[next(idle, next(iter(self._breakers)))]
