"""Registries: names for components, with what is known of each.

Reads take no lock. Writes take one, copy a dictionary, change the copy and swap it in, so a look-up is a look-up in a
dictionary. There are three dictionaries, swapped in such an order that a reader always finds an item that is registered
before and after the write: items before metadata when something comes, the other way round when it goes.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, TypeVar, cast, final

import attrs

from agentcore._events import Event, EventLog, EventSink
from agentcore.errors import ConfigurationError, RegistryError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)
R = TypeVar("R", bound="Registry[Any]")

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@final
@attrs.frozen
class _Lazy:
    """An item that is still to be imported: ``package.module:attribute``."""

    target: str


@final
@attrs.frozen(kw_only=True)
class RegistryStatistics:
    """How a registry has been used.

    Attributes:
        registrations: items registered, replacements included.
        replacements: registrations under a name that was taken.
        lookups: items asked for.
        hits: look-ups that found something.
        misses: look-ups that found nothing.
        size: items registered now.
    """

    registrations: int
    replacements: int
    lookups: int
    hits: int
    misses: int
    size: int


class Registry(Generic[T]):
    """Components of one kind by name, with metadata. Safe to use from several threads.

    Args:
        name: the registry's own name, for messages.
        on_duplicate: what a registration under a name that is taken does: ``replace`` the item (with an event
            ``item_replaced``), or be an ``error``.
        beneath: another registry, which is asked for what is not in this one. Writes never reach it.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    def __init__(
        self,
        name: str,
        *,
        on_duplicate: Literal["replace", "error"] = "replace",
        beneath: Registry[T] | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"name of a registry must be a string that is not empty: got {name!r}", {"name": "name", "value": name}
            )
        if on_duplicate not in ("replace", "error"):
            raise ConfigurationError(
                f"on_duplicate of registry {name!r} must be 'replace' or 'error': got {on_duplicate!r}",
                {"name": "on_duplicate", "value": on_duplicate},
            )
        self.name = name
        self._replaces = on_duplicate == "replace"
        self._beneath = beneath
        self._lock = threading.RLock()
        self._items: dict[str, T] = {}
        # Names in here have no item yet; a look-up that misses `_items` comes by.
        self._lazy: dict[str, _Lazy] = {}
        self._metadata: dict[str, Mapping[str, Any]] = {}
        self._log = EventLog()
        self._registrations = 0
        self._replacements = 0
        self._hits = 0
        self._misses = 0
        # Called after each write, under the lock.
        self._on_write: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} with {self.size()} items>"

    def register(self, name: str, item: T, /, **metadata: Any) -> T:
        """Register an item.

        Args:
            name: what to find it by.
            item: the component.
            **metadata: what else is known of it. Any key may be used, ``name`` and ``item`` too.

        Returns:
            The item.

        Raises:
            RegistryError: the name is not usable, or taken and duplicates are errors here.
        """
        self._write(name, metadata, item=item)
        return item

    def register_lazy(self, name: str, target: str, /, **metadata: Any) -> None:
        """Register an item that is imported when it is asked for by the first time.

        Args:
            name: what to find it by.
            target: ``package.module:attribute``.
            **metadata: what else is known of it.

        Raises:
            RegistryError: the name is not usable, or taken and duplicates are errors here; `target` has another form.
        """
        module, colon, attribute = target.partition(":")
        if not (module and colon and attribute):
            raise RegistryError(
                f"a lazy item of registry {self.name!r} must read 'package.module:attribute': got {target!r}",
                {"registry": self.name, "name": name, "target": target},
            )
        self._write(name, metadata, lazy=_Lazy(target))

    def unregister(self, name: str) -> T | None:
        """Remove an item.

        Returns:
            The item; None if there was none, or if it was a lazy one that nobody had asked for.
        """
        with self._lock:
            item = self._items.get(name)
            self._metadata = _without(self._metadata, name)
            self._lazy = _without(self._lazy, name)
            self._items = _without(self._items, name)
            self._written()
        return item

    async def get(self, name: str) -> T | None:
        """Return an item, None if there is none. Adds no checkpoint; a lazy item is imported on the spot.

        Raises:
            RegistryError: the item is lazy and cannot be imported.
        """
        return self.get_sync(name)

    def get_sync(self, name: str) -> T | None:
        """Return an item, None if there is none.

        Raises:
            RegistryError: the item is lazy and cannot be imported.
        """
        try:
            item = self._items[name]
        except KeyError:
            return self._get_other(name)
        self._hits += 1
        return item

    def get_metadata(self, name: str) -> dict[str, Any] | None:
        """Return a copy of an item's metadata, None if there is no such item."""
        metadata = self._metadata.get(name)
        if metadata is None:
            return self._beneath.get_metadata(name) if self._beneath is not None else None
        return dict(metadata)

    def has(self, name: str) -> bool:
        """Return whether there is an item of this name."""
        return name in self._metadata or (self._beneath is not None and self._beneath.has(name))

    def list_names(self) -> list[str]:
        """Return the names of all items, in the order of their registration."""
        names = dict.fromkeys(self._beneath.list_names()) if self._beneath is not None else {}
        return list(names | dict.fromkeys(self._metadata))

    def list_items(self) -> list[T]:
        """Return all items, in the order of their registration. Lazy ones are imported.

        Raises:
            RegistryError: a lazy item cannot be imported.
        """
        return list(self.list_all().values())

    def _own_items(self) -> list[T]:
        """Return the items that are here and not beneath, without lazy ones that nobody has asked for."""
        return list(self._items.values())

    def list_all(self) -> dict[str, T]:
        """Return all items by name, in the order of their registration. Lazy ones are imported.

        Raises:
            RegistryError: a lazy item cannot be imported.
        """
        found: dict[str, T] = {}
        for name in self.list_names():
            item = self._peek(name)
            if item is not _NOTHING:
                found[name] = cast("T", item)
        return found

    def find(self, /, **metadata: Any) -> dict[str, T]:
        """Return the items by name whose metadata has all of these values.

        Raises:
            RegistryError: a lazy item cannot be imported.
        """
        wanted = metadata.items()
        found = {}
        for name in self.list_names():
            known = self.get_metadata(name)
            if known is not None and all(key in known and known[key] == value for key, value in wanted):
                item = self._peek(name)
                if item is not _NOTHING:
                    found[name] = cast("T", item)
        return found

    def clear(self) -> None:
        """Remove all items."""
        with self._lock:
            self._metadata, self._lazy, self._items = {}, {}, {}
            self._written()

    def size(self) -> int:
        """Return how many items there are."""
        return len(self.list_names()) if self._beneath is not None else len(self._metadata)

    def decorator(self, name: str | None = None, **metadata: Any) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates and leaves it as it is.

        Args:
            name: what to find it by; its own ``__name__`` if omitted.
            **metadata: what else is known of it.

        Raises:
            RegistryError: the name is not usable, or `decorator` was used without parentheses.
        """
        self._check_decorator_name(name, "decorator")

        def register(item: T) -> T:
            return self.register(self._name_of(item) if name is None else name, item, **metadata)

        return register

    def load_entry_points(self, group: str) -> list[str]:
        """Register what installed packages offer under an entry point group, each lazily and under its entry's name.

        A name that is taken stays as it is: what the program registers by itself goes before what is merely installed.

        Returns:
            The names that were added.

        Raises:
            RegistryError: an entry point has no attribute.
        """
        added = []
        for entry in importlib.metadata.entry_points(group=group):
            with self._lock:
                if not self.has(entry.name):
                    self.register_lazy(entry.name, f"{entry.module}:{entry.attr or ''}", entry_point=group)
                    added.append(entry.name)
        return added

    def statistics(self) -> RegistryStatistics:
        """Return how the registry has been used."""
        return RegistryStatistics(
            registrations=self._registrations,
            replacements=self._replacements,
            lookups=self._hits + self._misses,
            hits=self._hits,
            misses=self._misses,
            size=self.size(),
        )

    def events(self) -> tuple[Event, ...]:
        """Return the newest replacements, oldest first: ``item_replaced`` with ``registry``, ``name``, ``old``, ``new``."""
        return self._log.recent()

    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        """Call a sink with every event from now on; returns the function that ends this."""
        return self._log.subscribe(sink)

    def _unknown(self, name: object) -> RegistryError:
        """Return the error for a name under which nothing is registered, with the known names and the nearest one."""
        known = self.list_names()
        near = difflib.get_close_matches(str(name), known, n=1)
        return RegistryError(
            f"registry {self.name!r} has no item of this name: got {name!r}; "
            + (f"did you mean {near[0]!r}? " if near else "")
            + (f"known are {', '.join(map(repr, known))}" if known else "nothing is registered yet"),
            {"registry": self.name, "name": name, "known": known},
        )

    def _get_other(self, name: str) -> T | None:
        """Look up what is not simply there: a lazy item, one of the registry beneath, or nothing."""
        item = self._peek(name)
        if item is _NOTHING:
            self._misses += 1
            return None
        self._hits += 1
        return cast("T", item)

    def _peek(self, name: str) -> T | Mapping[str, Any]:
        """Return an item without counting, `_NOTHING` if there is none."""
        item = self._items.get(name, _NOTHING)
        if item is _NOTHING:
            item = self._resolve(name)
        if item is not _NOTHING or self._beneath is None:
            return item
        return self._beneath._peek(name)

    def _resolve(self, name: str) -> T | Mapping[str, Any]:
        while True:
            with self._lock:
                if name in self._items:
                    return self._items[name]
                lazy = self._lazy.get(name)
            if lazy is None:
                return _NOTHING
            # Not under the lock: the module may register things by itself, and wait for a thread that imports it while
            # that one waits for this registry. Several threads that ask at once import once all the same.
            found = self._import(name, lazy.target)
            with self._lock:
                # Unless it was replaced in the meantime, also by the import itself.
                if self._lazy.get(name) is lazy:
                    self._items = {**self._items, name: found}
                    self._lazy = _without(self._lazy, name)

    def _import(self, name: str, target: str) -> Any:
        module, _, attribute = target.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:
            raise RegistryError(
                f"item {name!r} of registry {self.name!r} cannot be imported: got {error!r} from {target!r}; "
                "install the package or register another target",
                {"registry": self.name, "name": name, "target": target},
            ) from error
        return found

    def _write(self, name: str, metadata: Mapping[str, Any], *, item: Any = None, lazy: _Lazy | None = None) -> None:
        if not isinstance(name, str) or not name:
            raise RegistryError(
                f"a name in registry {self.name!r} must be a string that is not empty: got {name!r}",
                {"registry": self.name, "name": name},
            )
        with self._lock:
            taken = name in self._metadata
            if taken and not self._replaces:
                raise RegistryError(
                    f"registry {self.name!r} has an item named {name!r} already and on_duplicate is 'error'; "
                    "unregister it first or take another name",
                    {"registry": self.name, "name": name},
                )
            old = self._items.get(name, self._lazy.get(name))
            if lazy is None:
                self._items = {**self._items, name: item}
                self._lazy = _without(self._lazy, name)
            else:
                self._lazy = {**self._lazy, name: lazy}
                self._items = _without(self._items, name)
            self._metadata = {**self._metadata, name: metadata}
            self._registrations += 1
            self._written()
            if taken:
                self._replacements += 1
                self._log.emit(
                    "item_replaced", registry=self.name, name=name, old=old, new=item if lazy is None else lazy
                )

    def _written(self) -> None:
        if self._on_write is not None:
            self._on_write()

    def _check_decorator_name(self, name: object, method: str) -> None:
        # Without parentheses the decorated thing arrives as the name, and would be lost.
        if name is not None and (not isinstance(name, str) or not name):
            raise RegistryError(
                f"{method} of registry {self.name!r} takes a name: got {name!r}; write @registry.{method}()",
                {"registry": self.name, "name": name},
            )

    def _name_of(self, item: object) -> str:
        name = getattr(item, "__name__", None)
        if not isinstance(name, str):
            raise RegistryError(
                f"an item of registry {self.name!r} without __name__ needs one: got {item!r}; pass it to the decorator",
                {"registry": self.name, "item": repr(item)},
            )
        return name


class FunctionRegistry(Registry[Callable[..., Any]]):
    """Functions by name. The metadata has their ``signature``, ``docstring``, ``module`` and ``is_async``."""

    def register_function(self, name: str | None = None, **metadata: Any) -> Callable[[F], F]:
        """Return a decorator that registers a function and leaves it as it is.

        Args:
            name: what to find it by; its own name if omitted.
            **metadata: what else is known of it; goes before what is read off the function.

        Raises:
            RegistryError: the name is not usable, or `register_function` was used without parentheses.
        """
        self._check_decorator_name(name, "register_function")

        def register(function: F) -> F:
            if not callable(function):
                raise RegistryError(
                    f"registry {self.name!r} takes functions: got {function!r}; write @registry.register_function()",
                    {"registry": self.name, "item": repr(function)},
                )
            read = {
                "signature": str(_signature(function)),
                "docstring": inspect.getdoc(function),
                "module": getattr(function, "__module__", None),
                "is_async": inspect.iscoroutinefunction(function),
            }
            self.register(self._name_of(function) if name is None else name, function, **{**read, **metadata})
            return function

        return register


class ClassRegistry(Registry[type]):
    """Classes by name. The metadata has their ``docstring``, ``module``, ``bases`` and the constructor's ``signature``."""

    def register_class(self, name: str | None = None, **metadata: Any) -> Callable[[C], C]:
        """Return a decorator that registers a class and leaves it as it is.

        Args:
            name: what to find it by; its own name if omitted.
            **metadata: what else is known of it; goes before what is read off the class.

        Raises:
            RegistryError: the name is not usable, or `register_class` was used without parentheses.
        """
        self._check_decorator_name(name, "register_class")

        def register(cls: C) -> C:
            if not isinstance(cls, type):
                raise RegistryError(
                    f"registry {self.name!r} takes classes: got {cls!r}; write @registry.register_class()",
                    {"registry": self.name, "item": repr(cls)},
                )
            read = {
                "signature": str(_signature(cls)),
                "docstring": inspect.getdoc(cls),
                "module": cls.__module__,
                "bases": [base.__qualname__ for base in cls.__bases__],
            }
            self.register(cls.__name__ if name is None else name, cls, **{**read, **metadata})
            return cls

        return register

    async def create_instance(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Make an instance of a registered class. Adds no checkpoint.

        Args:
            name: of the class.
            *args: for its constructor.
            **kwargs: for its constructor; ``name`` may be one of them.

        Raises:
            RegistryError: there is no class of this name.
            Exception: whatever the constructor raises.
        """
        cls = await self.get(name)
        if cls is None:
            raise self._unknown(name)
        return cls(*args, **kwargs)


def _signature(item: Callable[..., Any]) -> inspect.Signature | str:
    try:
        return inspect.signature(item)
    except (TypeError, ValueError):  # some builtins have none
        return "(...)"


def _without(mapping: dict[str, T], name: str) -> dict[str, T]:
    return {key: value for key, value in mapping.items() if key != name} if name in mapping else mapping


# Registries of the whole process. All are known weakly; one that has items is held by `_filled` as well, so that only
# what is empty and referenced nowhere vanishes by itself.
_lock: Final = threading.RLock()
_known: Final[weakref.WeakValueDictionary[str, Registry[Any]]] = weakref.WeakValueDictionary()
_filled: Final[dict[str, Registry[Any]]] = {}


def _get(name: str, kind: type[R]) -> R:
    with _lock:
        registry = _known.get(name)
        if registry is None:
            registry = kind(name)
            registry._on_write = _HoldWhileFilled(registry)
            _known[name] = registry
        elif type(registry) is not kind:
            raise RegistryError(
                f"registry {name!r} is a {type(registry).__name__}: got a request for a {kind.__name__}; "
                "ask for that kind or take another name",
                {"registry": name, "kind": type(registry).__name__, "requested": kind.__name__},
            )
        return registry


class _HoldWhileFilled:
    """Keeps a process-wide registry alive from its first item to its last."""

    def __init__(self, registry: Registry[Any]) -> None:
        self._registry = weakref.ref(registry)

    def __call__(self) -> None:
        registry = self._registry()
        assert registry is not None  # it is calling  # noqa: S101
        with _lock:
            # One that clear_registries has let go of stays gone: its name may belong to another by now.
            if _known.get(registry.name) is not registry:
                return
            if registry.size():
                _filled[registry.name] = registry
            else:
                _filled.pop(registry.name, None)


def get_registry(name: str) -> Registry[Any]:
    """Return the process-wide registry of this name, made at the first call.

    Raises:
        RegistryError: there is one of another kind under this name.
        ConfigurationError: the name is not usable.
    """
    return _get(name, Registry)


def get_function_registry(name: str) -> FunctionRegistry:
    """Return the process-wide registry of functions of this name, made at the first call.

    Raises:
        RegistryError: there is one of another kind under this name.
        ConfigurationError: the name is not usable.
    """
    return _get(name, FunctionRegistry)


def get_class_registry(name: str) -> ClassRegistry:
    """Return the process-wide registry of classes of this name, made at the first call.

    Raises:
        RegistryError: there is one of another kind under this name.
        ConfigurationError: the name is not usable.
    """
    return _get(name, ClassRegistry)


def clear_registries(names: Iterable[str] | None = None) -> None:
    """Empty process-wide registries and forget them.

    Args:
        names: which one or which ones; all if omitted. Unknown names are passed over.
    """
    forgotten = []
    with _lock:
        for name in list(_known) if names is None else [names] if isinstance(names, str) else names:
            forgotten.append(_known.pop(name, None))
            _filled.pop(name, None)
    # Not under the lock: a registry takes it while it holds its own, and the other order would be a deadlock.
    for registry in forgotten:
        if registry is not None:
            registry.clear()
