"""The configuration of a program: from keywords, the environment, a TOML file and defaults, with the origin of each value.

Every value of every source is looked at, also one that another overrides: a fault that is hidden today is found by the
one who removes the other. All faults of a load are told at once.

The faults come from rules that stand at the fields, and not from a structuring library: such a library leaves a class at
the first value that its validators refuse, and the second fault would be found by the second start.
"""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import difflib
import logging
import math
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, final

import attrs

from agentcore._rules.backoff import show
from agentcore.errors import ConfigurationError

__all__ = [
    "LoggingConfiguration",
    "MetricsConfiguration",
    "RuntimeSettings",
    "SystemConfiguration",
    "load_configuration",
]

_logger: Final = logging.getLogger("agentcore.config")

_PREFIX: Final = "AGENTCORE_"
_PATH: Final = "AGENTCORE_CONFIG"
# Variables that say something to other parts: the replay of a test, the interpreters of this project's own tests.
_OTHERS: Final = frozenset({_PATH, "AGENTCORE_SIM", "AGENTCORE_PYTHONS"})
_FILE: Final = "agentcore.toml"
_PROJECT: Final = "pyproject.toml"
_TABLE: Final = "[tool.agentcore]"
_MOST: Final = 10**15  # of anything; in milliseconds it is thirty thousand years


@final
@attrs.frozen
class _Rule:
    """What a value must be.

    Attributes:
        says: the same in words, behind "must be".
        remedy: what to do about a value that is not.
        allows: tells whether a value is.
        choices: all values there are, if it is so.
    """

    says: str
    remedy: str
    allows: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def fault(self, name: str, value: object, origin: str = "") -> str:
        """Return the words for a value that is not allowed."""
        remedy = self.remedy
        if self.choices and isinstance(value, str) and (near := _nearest(value, self.choices)):
            remedy = f"did you mean {near!r}?"
        # A table may hold anything, also what nobody should read in a log.
        shown = "a table" if isinstance(value, Mapping) else show(value)
        return f"{name} must be {self.says}: got {shown}{origin and f' ({origin})'}; {remedy}"


def _nearest(word: str, choices: tuple[str, ...]) -> str | None:
    """Return the choice that was probably meant, whatever the case of its letters."""
    by_case = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), by_case, n=1)
    return by_case[near[0]] if near else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST


def _is_period(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.001 <= value <= _MOST


def _is_kept(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def _is_grace(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST


def _is_ageing(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and (0 <= value <= _MOST or value == math.inf)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_output(value: object) -> bool:
    # Without lone surrogates: they stand for bytes that no TOML file can hold.
    return isinstance(value, str) and bool(value) and "\0" not in value and not _has_surrogates(value)


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _choice(*choices: str, remedy: str) -> dict[str, _Rule]:
    return {"rule": _Rule(f"one of {', '.join(choices)}", remedy, lambda value: value in choices, choices)}


_COUNT: Final = "a whole number, 1 or more"
_WORKERS: Final = {"rule": _Rule(_COUNT, "leave it out for as many as there are CPUs", _is_count)}
_TASKS: Final = {"rule": _Rule(_COUNT, "leave it out for the default of the runtime", _is_count)}
_LETTERS: Final = {"rule": _Rule("a whole number, 0 or more", "use 0 to keep none", _is_kept)}
_CALLS: Final = {"rule": _Rule(_COUNT, "count failed calls", _is_count)}
_PERIOD: Final = {"rule": _Rule("a number of milliseconds, 0.001 or more", "a second is 1000", _is_period)}
_GRACE: Final = {"rule": _Rule("a number of seconds, 0 or more", "use 0 to cut at once", _is_grace)}
_AGEING: Final = {
    "rule": _Rule("a number of seconds, 0 or more, or inf", "inf is for the most urgent first, always", _is_ageing)
}
_FLAG: Final = {"rule": _Rule("true or false", "write true or false", _is_flag)}
_OUTPUT: Final = {
    "rule": _Rule("'stderr' or the path of a file", "write './stderr' for a file of this name", _is_output)
}
_LEVEL: Final = _choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", remedy="WARNING shows what needs attention")
_FORMAT: Final = _choice("text", "json", remedy="text is for people, json for programs")


def _check(instance: object, field: "attrs.Attribute[Any]", value: object) -> None:
    """Refuse what the rule of a field does not allow; None only where it is the default."""
    rule: _Rule = field.metadata["rule"]
    if not (rule.allows(value) or (value is None and field.default is None)):
        raise ConfigurationError(
            rule.fault(f"{field.name} of {type(instance).__name__}", value), {"name": field.name, "value": value}
        )


def _check_section(instance: object, field: "attrs.Attribute[Any]", value: object) -> None:
    assert field.type is not None  # each is annotated  # noqa: S101
    if not isinstance(value, field.type):
        raise ConfigurationError(
            f"{field.name} of {type(instance).__name__} must be a {field.type.__name__}: got {show(value)}; "
            f"write {field.name}={field.type.__name__}(...)",
            {"name": field.name, "value": value},
        )


def _upper(value: str) -> str:
    return value.upper() if isinstance(value, str) else value


def _to_output(value: str | os.PathLike[str]) -> str:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@final
@attrs.frozen(kw_only=True)
class LoggingConfiguration:
    """What `init_logging` does.

    Args:
        enabled: whether the logger ``agentcore`` gets a handler of its own; without, logging is left to the program.
        level: from which level on records are shown, in letters of any case.
        format: ``text``, or ``json`` for one object a line.
        output: where to: ``stderr``, or the path of a file, which is appended to.

    Raises:
        ConfigurationError: a value is not usable.
    """

    enabled: bool = attrs.field(default=True, validator=_check, metadata=_FLAG)
    level: str = attrs.field(default="INFO", converter=_upper, validator=_check, metadata=_LEVEL)
    format: str = attrs.field(default="text", validator=_check, metadata=_FORMAT)
    output: str = attrs.field(default="stderr", converter=_to_output, validator=_check, metadata=_OUTPUT)


@final
@attrs.frozen(kw_only=True)
class MetricsConfiguration:
    """What `init_metrics` does.

    Args:
        enabled: whether anything is counted.

    Raises:
        ConfigurationError: the value is not usable.
    """

    enabled: bool = attrs.field(default=True, validator=_check, metadata=_FLAG)


@final
@attrs.frozen(kw_only=True)
class RuntimeSettings:
    """What a runtime is to be made with: the arguments of `RuntimeConfig`, as far as they are given.

    Args:
        in_flight: how many tasks run at a time.
        queue: how many submitted tasks may wait for that.
        ageing: seconds of waiting that are worth one step of priority.
        retention: how many tasks are remembered after their end.
        grace: seconds that tasks may go on for when the block has been left.
        dead_letters: how many tasks are kept that have failed for good although they had a policy.

    Raises:
        ConfigurationError: a value is not usable.
    """

    in_flight: int | None = attrs.field(default=None, validator=_check, metadata=_TASKS)
    queue: int | None = attrs.field(default=None, validator=_check, metadata=_TASKS)
    ageing: float | None = attrs.field(default=None, validator=_check, metadata=_AGEING)
    retention: int | None = attrs.field(default=None, validator=_check, metadata=_TASKS)
    grace: float | None = attrs.field(default=None, validator=_check, metadata=_GRACE)
    dead_letters: int | None = attrs.field(default=None, validator=_check, metadata=_LETTERS)

    def given(self) -> dict[str, Any]:
        """Return the arguments that are given, for ``RuntimeConfig(**configuration.runtime.given())``."""
        return attrs.asdict(self, filter=lambda _, value: value is not None)


@final
@attrs.frozen(kw_only=True)
class SystemConfiguration:
    """What a program is configured with; `load_configuration` makes it.

    Args:
        io_workers: workers for what waits; None for as many as there are CPUs, and at least 16.
        cpu_workers: workers for what computes; None for as many as there are CPUs.
        api_failure_threshold: failures in a row that open the circuit of an external service.
        api_reset_timeout: milliseconds that this circuit stays open.
        logging: for `init_logging`.
        metrics: for `init_metrics`.
        runtime: for `RuntimeConfig`.

    Raises:
        ConfigurationError: a value is not usable.
    """

    io_workers: int | None = attrs.field(default=None, validator=_check, metadata=_WORKERS)
    cpu_workers: int | None = attrs.field(default=None, validator=_check, metadata=_WORKERS)
    api_failure_threshold: int = attrs.field(default=5, validator=_check, metadata=_CALLS)
    api_reset_timeout: float = attrs.field(default=30_000.0, validator=_check, metadata=_PERIOD)
    logging: LoggingConfiguration = attrs.field(factory=LoggingConfiguration, validator=_check_section)
    metrics: MetricsConfiguration = attrs.field(factory=MetricsConfiguration, validator=_check_section)
    runtime: RuntimeSettings = attrs.field(factory=RuntimeSettings, validator=_check_section)
    # Not among the arguments: `attrs.evolve` must not hand the origins of old values to new ones.
    _origins: tuple[tuple[str, str], ...] = attrs.field(default=(), init=False, eq=False, repr=False)

    @property
    def origins(self) -> dict[str, str]:
        """Where each value is from, by its name such as ``logging.level``; empty if this was not loaded.

        It is ``keyword``, ``environment variable AGENTCORE_...``, the path of a file, or ``default``.
        """
        return dict(self._origins)

    def to_toml(self) -> str:
        """Return the configuration as the text of an ``agentcore.toml``, with the origins as comments.

        What is None stands there as a comment: TOML has no word for it.
        """
        origins = self.origins
        lines: list[str] = []
        section = ""
        for name, field in _SETTINGS.items():
            table, _, key = name.rpartition(".")
            if table != section:
                section = table
                lines += ["", f"[{table}]"]
            value = getattr(getattr(self, table) if table else self, field.name)
            line = f"# {key} is not given" if value is None else f"{key} = {_in_toml(value)}"
            lines.append(f"{line:<32}  # {_printable(origins[name])}" if origins else line)
        return "\n".join([*lines, ""])


def _in_toml(value: object) -> str:
    import json  # noqa: PLC0415 - loaded when needed

    if isinstance(value, str):
        # Strings of JSON are strings of TOML, but for one letter that only TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _settings(cls: type, section: str = "") -> Iterator[tuple[str, "attrs.Attribute[Any]"]]:
    """Yield every value of a class and of its sections by dotted name, sections last."""
    for field in attrs.fields(cls):
        if field.init and field.type is not None:
            inner = attrs.has(field.type)
            yield from _settings(field.type, f"{field.name}.") if inner else [(f"{section}{field.name}", field)]


_SETTINGS: Final = dict(_settings(SystemConfiguration))
_SECTIONS: Final[dict[str, type]] = {
    field.name: field.type for field in attrs.fields(SystemConfiguration) if field.type and attrs.has(field.type)
}
_VARIABLES: Final = {f"{_PREFIX}{name.upper().replace('.', '__')}": name for name in _SETTINGS}


def load_configuration(
    path: str | os.PathLike[str] | None = None, *, env: Mapping[str, str] | None = None, **overrides: Any
) -> SystemConfiguration:
    """Put the configuration of a program together.

    A value comes from the first of these that has it: a keyword; the environment; the file; the default. The environment
    variable of ``io_workers`` is ``AGENTCORE_IO_WORKERS``, that of ``logging.level`` is ``AGENTCORE_LOGGING__LEVEL``; an
    empty one counts as none. The file is `path`, else the one that the variable ``AGENTCORE_CONFIG`` names, else
    ``agentcore.toml`` in the working directory, else ``pyproject.toml`` there, of which only the table
    ``[tool.agentcore]`` is looked at. A variable that begins with ``AGENTCORE_`` and is none of these is logged as a warning.

    Args:
        path: of the file, which then must exist.
        env: what to take for the environment; that of the process, if omitted.
        **overrides: values by name; those of a section as a mapping, or all of them as an instance of its class.

    Raises:
        ConfigurationError: values are not usable, keys are unknown, or the file is not there or is no TOML. All of it is
            told at once; details: ``names`` of what is wrong, and what it is in ``faults``.
    """
    environment: Mapping[str, str] = os.environ if env is None else env
    load = _Load()
    load.file(path, environment)
    load.environment(environment)
    load.table(overrides, "keyword")
    return load.result()


@final
class _Load:
    """One load: takes from one source after the other, the strongest last, and collects what is wrong."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._origins = dict.fromkeys(_SETTINGS, "default")
        self._faults: list[tuple[str, str]] = []

    def result(self) -> SystemConfiguration:
        """Return what has come together.

        Raises:
            ConfigurationError: something is wrong.
        """
        if self._faults:
            names, faults = (list(column) for column in zip(*self._faults, strict=True))
            text = faults[0]
            if len(faults) > 1:
                text = "\n  ".join([f"the configuration has {len(faults)} faults; correct each of them", *faults])
            raise ConfigurationError(text, {"names": names, "faults": faults})
        arguments: dict[str, Any] = {name: {} for name in _SECTIONS}
        for name, value in self._values.items():
            section, _, key = name.rpartition(".")
            (arguments[section] if section else arguments)[key] = value
        for name, cls in _SECTIONS.items():
            arguments[name] = cls(**arguments[name])
        configuration = SystemConfiguration(**arguments)
        object.__setattr__(configuration, "_origins", tuple(self._origins.items()))
        return configuration

    def table(self, table: Mapping[Any, Any], origin: str, section: str = "") -> None:
        """Take the values of a table, and of the tables in it."""
        for key, value in table.items():
            name = f"{section}{key}"
            if name in _SETTINGS:
                self._take(name, value, origin)
            elif name not in _SECTIONS:
                self._faults.append((name, _unknown(name, origin)))
            elif isinstance(value, Mapping):
                self.table(value, origin, f"{name}.")
            elif isinstance(value, _SECTIONS[name]):
                all_of_it = {field.name: getattr(value, field.name) for field in attrs.fields(_SECTIONS[name])}
                self.table(all_of_it, origin, f"{name}.")
            else:
                self._faults.append((name, _no_table(name, value, origin)))

    def environment(self, environment: Mapping[str, str]) -> None:
        """Take the variables that are settings, and warn of those that only look so."""
        for variable, text in environment.items():
            if not variable.startswith(_PREFIX) or variable in _OTHERS:
                continue
            name = _VARIABLES.get(variable)
            if name is None:
                # Without its value: whatever it is for, it was not meant for this log.
                near = _nearest(variable, tuple(_VARIABLES))
                hint = f"did you mean {near}?" if near else f"known are {', '.join(_VARIABLES)}"
                _logger.warning("environment variable %s is not a setting of agentcore; %s", variable, hint)
            elif text:
                self._take(name, _read(text, _SETTINGS[name].type), f"environment variable {variable}")

    def file(self, path: object, environment: Mapping[str, str]) -> None:
        """Take the values of the file that is named, or of the one that is there."""
        if path is not None:
            self._named_file(path, "argument path")
        elif environment.get(_PATH):
            self._named_file(environment[_PATH], f"environment variable {_PATH}")
        elif (text := self._text_of(_FILE)) is not None:
            self._parse(text, _FILE)
        elif (text := self._text_of(_PROJECT)) is not None:
            self._parse(text, _PROJECT)

    def _named_file(self, path: object, origin: str) -> None:
        if isinstance(path, os.PathLike):
            path = os.fspath(path)
        if not isinstance(path, str) or not path or "\0" in path:
            self._fault("path", f"the path of the configuration file must be a string: got {show(path)}; write one")
        elif (text := self._text_of(path, origin)) is not None:
            self._parse(text, path, is_named=True)

    def _text_of(self, path: str, named_by: str = "") -> str | None:
        """Return what is in a file; None if it is not there or cannot be read, which is a fault if it was named."""
        try:
            data = Path(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if named_by:
                rule = "exist" if isinstance(error, FileNotFoundError) else "be a file"
                self._fault(
                    "path", f"the configuration file must {rule}: got {path!r} ({named_by}); create it, or name another"
                )
            return None
        except OSError as error:
            self._fault(
                "path", f"the configuration file must be readable: got {path!r}, {error.strerror}; let it be read"
            )
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self._fault("path", f"{path} must be in UTF-8: got another byte (at line {line}); save it in UTF-8")
            return None

    def _parse(self, text: str, path: str, *, is_named: bool = False) -> None:
        import tomllib  # noqa: PLC0415 - loaded when needed

        try:
            table: Any = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError also for an integer that is too long
            self._fault("path", f"{path} must be TOML: got {str(error)[:200]}; correct what stands there")
            return
        if Path(path).name != _PROJECT:
            self.table(table, path)
            return
        tool = table.get("tool", {})
        own = tool.get("agentcore") if isinstance(tool, dict) else None
        if isinstance(own, dict):
            self.table(own, f"{path} {_TABLE}")
        elif own is not None:
            self._fault("tool.agentcore", _no_table("tool.agentcore", own, path))
        elif is_named:
            self._fault("path", f"{path} must have a table {_TABLE}: got none; add it, or name another file")

    def _fault(self, name: str, text: str) -> None:
        self._faults.append((name, text))

    def _take(self, name: str, value: Any, origin: str) -> None:
        field, given = _SETTINGS[name], value
        if callable(field.converter):
            value = field.converter(value)
        rule: _Rule = field.metadata["rule"]
        # None can be said by a keyword only: "whatever the environment says, take the default of the part".
        if not (rule.allows(value) or (value is None and field.default is None)):
            self._fault(name, rule.fault(name, given, origin))
            return
        self._values[name], self._origins[name] = value, origin


def _read(text: str, kind: Any) -> Any:
    """Return what a text says as a value of a kind; the text as it is if it says none, for the rule to refuse."""
    (kind, *_) = [one for one in typing.get_args(kind) if one is not type(None)] or [kind]
    if kind is bool:
        return {
            "true": True,
            "1": True,
            "yes": True,
            "on": True,
            "false": False,
            "0": False,
            "no": False,
            "off": False,
        }.get(text.strip().lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _no_table(name: str, value: object, origin: str) -> str:
    example = "enabled" if name not in _SECTIONS else attrs.fields(_SECTIONS[name])[0].name
    return f"{name} must be a table: got {show(value)} ({origin}); give the values in it, such as {name}.{example}"


def _unknown(name: str, origin: str) -> str:
    """Return the words for a key that nobody knows. Without its value, which may be a secret that went astray."""
    section, _, key = name.rpartition(".")
    if section not in _SECTIONS:
        section = ""
    known = [one for one in (*_SETTINGS, *_SECTIONS) if one.rpartition(".")[0] == section]
    # `level` may well be meant for `logging.level`.
    elsewhere = next((one for one in _SETTINGS if one.rpartition(".")[2] == key), None)
    # In a section only the keys are compared: that they share its name says nothing.
    keys = {one.rpartition(".")[2]: one for one in known} if section else {one: one for one in (*_SETTINGS, *_SECTIONS)}
    near = elsewhere or keys.get(_nearest(key if section else name, tuple(keys)) or "")
    return (
        f"a key of the configuration must be a known one: got {name!r} ({origin}); "
        + (f"did you mean {near!r}? " if near else "")
        + f"known {f'in {section} ' if section else ''}are {', '.join(map(repr, known))}"
    )
