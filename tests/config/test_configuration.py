"""The records of a configuration: their defaults, what they refuse, how they are written down."""

from __future__ import annotations

import copy
import math
import pickle
import tomllib
from pathlib import Path
from typing import Any

import attrs
import cattrs
import pytest

from agentcore import CircuitBreakerConfig, ConfigurationError, RuntimeConfig
from agentcore.config import (
    LoggingConfiguration,
    MetricsConfiguration,
    RuntimeSettings,
    SystemConfiguration,
    load_configuration,
)

DEFAULTS = {
    "io_workers": None,
    "cpu_workers": None,
    "api_failure_threshold": 5,
    "api_reset_timeout": 30_000.0,
    "logging": {"enabled": True, "level": "INFO", "format": "text", "output": "stderr"},
    "metrics": {"enabled": True},
    "runtime": {
        "in_flight": None,
        "queue": None,
        "ageing": None,
        "retention": None,
        "grace": None,
        "dead_letters": None,
    },
}
COUNTS = [0, -1, 1.5, True, "2", [], 10**16, math.nan]
PERIODS = [0, -1.0, True, "2", math.nan, math.inf, 10**16]
REFUSED: list[tuple[type, str, list[Any], str]] = [
    *[
        (SystemConfiguration, name, COUNTS, "a whole number, 1 or more")
        for name in ("io_workers", "cpu_workers", "api_failure_threshold")
    ],
    (SystemConfiguration, "api_failure_threshold", [None], "a whole number, 1 or more"),
    (SystemConfiguration, "api_reset_timeout", [*PERIODS, None], "a number of milliseconds, 0.001 or more"),
    *[(RuntimeSettings, name, COUNTS, "a whole number, 1 or more") for name in ("in_flight", "queue", "retention")],
    (RuntimeSettings, "ageing", [-1, True, "1", math.nan, 1e300], "a number of seconds, 0 or more, or inf"),
    (RuntimeSettings, "grace", [-1, True, "1", math.nan, math.inf], "a number of seconds, 0 or more"),
    (RuntimeSettings, "dead_letters", [-1, 0.0, True, False, "1", math.nan, 10**16], "a whole number, 0 or more"),
    (MetricsConfiguration, "enabled", [None, 1, "true"], "true or false"),
    (LoggingConfiguration, "enabled", [None, 0, "no"], "true or false"),
    (LoggingConfiguration, "level", ["LOUD", "", 10, None], "one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
    (LoggingConfiguration, "format", ["yaml", "JSON", None], "one of text, json"),
    (LoggingConfiguration, "output", ["", "a\0b", "\udc80", b"x", None], "'stderr' or the path of a file"),
]


def test_defaults() -> None:
    """They are part of the interface, and so are the names."""
    configuration = attrs.asdict(SystemConfiguration(), filter=lambda field, _: field.init)
    assert configuration == DEFAULTS


def test_defaults_of_the_circuit_are_those_of_a_circuit_breaker() -> None:
    """Who configures nothing gets the breaker that everyone gets."""
    configuration, breaker = SystemConfiguration(), CircuitBreakerConfig()
    assert breaker == CircuitBreakerConfig(
        failure_threshold=configuration.api_failure_threshold, reset_timeout_ms=configuration.api_reset_timeout
    )


@pytest.mark.parametrize(
    ("cls", "name", "value", "rule"),
    [(cls, name, value, rule) for cls, name, values, rule in REFUSED for value in values],
)
def test_unusable_values_are_refused(cls: type, name: str, value: object, rule: str) -> None:
    """The error names the setting, what it must be, and the value."""
    with pytest.raises(ConfigurationError) as caught:
        cls(**{name: value})
    error = caught.value
    assert str(error).startswith(f"{name} of {cls.__name__} must be {rule}: got {value!r}; ")
    assert error.details["name"] == name
    assert isinstance(pickle.loads(pickle.dumps(error)), ConfigurationError)


@pytest.mark.parametrize("name", ["logging", "metrics", "runtime"])
def test_a_section_must_be_one(name: str) -> None:
    """A mapping is for `load_configuration`; the class takes its own kind."""
    with pytest.raises(
        ConfigurationError, match=rf"^{name} of SystemConfiguration must be a \w+: got {{}}; write {name}="
    ):
        SystemConfiguration(**{name: {}})  # type: ignore[arg-type]


def test_a_very_long_number_is_told_without_being_written_out() -> None:
    """Python refuses to print such a number; the error is still this one."""
    with pytest.raises(ConfigurationError, match="io_workers of SystemConfiguration must be a whole number"):
        SystemConfiguration(io_workers=10**5000)


@pytest.mark.parametrize("level", ["debug", "Debug", "DEBUG"])
def test_levels_may_be_written_in_any_case(level: str) -> None:
    """They are kept in capitals, as logging has them."""
    assert LoggingConfiguration(level=level).level == "DEBUG"


def test_an_output_may_be_a_path() -> None:
    """It is kept as text."""
    assert LoggingConfiguration(output=Path("logs") / "a.log").output == str(Path("logs") / "a.log")  # type: ignore[arg-type]


def test_a_configuration_does_not_change() -> None:
    """Everyone who shares it can rely on it; what is equal in all values is equal, wherever they are from."""
    made, loaded = SystemConfiguration(io_workers=2), load_configuration(env={}, io_workers=2)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.io_workers = 3  # type: ignore[misc]
    assert {made: "found"}[loaded] == "found"


def test_origins_go_with_the_values_they_are_told_of() -> None:
    """A copy has them, another configuration that was made from this one has none."""
    loaded = load_configuration(env={}, io_workers=2)
    assert loaded.origins["io_workers"] == "keyword"
    assert copy.copy(loaded).origins == pickle.loads(pickle.dumps(loaded)).origins == loaded.origins
    assert attrs.evolve(loaded, io_workers=3).origins == SystemConfiguration().origins == {}
    loaded.origins.clear()
    assert loaded.origins["io_workers"] == "keyword"


def test_settings_of_the_runtime() -> None:
    """What is not given is left to the runtime, whose own check stays the last word."""
    assert RuntimeSettings().given() == {}
    assert RuntimeSettings(in_flight=3, grace=0).given() == {"in_flight": 3, "grace": 0}
    assert RuntimeConfig(**RuntimeSettings(queue=7).given()) == RuntimeConfig(queue=7)
    names = {field.name for field in attrs.fields(RuntimeConfig)}
    assert {field.name for field in attrs.fields(RuntimeSettings)} <= names


def test_a_structuring_library_can_make_it() -> None:
    """It is a plain class of attrs with types that can be read at run time."""
    made = cattrs.structure({"io_workers": 3, "logging": {"level": "debug"}}, SystemConfiguration)
    assert made == SystemConfiguration(io_workers=3, logging=LoggingConfiguration(level="DEBUG"))


def test_as_toml() -> None:
    """What was made by hand is written without origins; what is None is a comment."""
    text = SystemConfiguration(io_workers=3, runtime=RuntimeSettings(grace=0.5)).to_toml()
    assert text == (
        "io_workers = 3\n"
        "# cpu_workers is not given\n"
        "api_failure_threshold = 5\n"
        "api_reset_timeout = 30000.0\n"
        "\n"
        "[logging]\n"
        "enabled = true\n"
        'level = "INFO"\n'
        'format = "text"\n'
        'output = "stderr"\n'
        "\n"
        "[metrics]\n"
        "enabled = true\n"
        "\n"
        "[runtime]\n"
        "# in_flight is not given\n"
        "# queue is not given\n"
        "# ageing is not given\n"
        "# retention is not given\n"
        "grace = 0.5\n"
        "# dead_letters is not given\n"
    )


def test_as_toml_with_origins() -> None:
    """Each line says where its value is from."""
    text = load_configuration(env={"AGENTCORE_METRICS__ENABLED": "no"}, cpu_workers=2).to_toml()
    lines = dict(line.split("  #", 1) for line in text.splitlines() if "  #" in line)
    told = {key.strip(): origin.strip() for key, origin in lines.items()}
    assert told["cpu_workers = 2"] == "keyword"
    assert told["enabled = false"] == "environment variable AGENTCORE_METRICS__ENABLED"
    assert told["# io_workers is not given"] == "default"
    assert tomllib.loads(text)["metrics"] == {"enabled": False}


def test_an_origin_cannot_break_out_of_its_comment(tmp_path: Path) -> None:
    """The path of a file may have a line break in it, and still is a comment."""
    path = tmp_path / "a\nio_workers = 9\n.toml"
    path.write_text("cpu_workers = 2", encoding="utf-8")
    text = load_configuration(path, env={}).to_toml()
    assert "io_workers" not in tomllib.loads(text)


def test_the_documentation_has_every_value() -> None:
    """With its variable and its default, in the order in which they are written."""
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    rows = [line.split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if "| `AGENTCORE_" in line]
    expected = []
    section = ""
    for line in SystemConfiguration().to_toml().splitlines():
        if line.startswith("["):
            section = f"{line[1:-1]}."
        elif line:
            key, _, value = line.removeprefix("# ").partition(" = " if " = " in line else " is ")
            name = f"{section}{key}"
            variable = f"AGENTCORE_{name.upper().replace('.', '__')}"
            expected.append([f"| `{name}`", f"`{variable}`", value if value == "not given" else f"`{value}`"])
    assert expected == [row[:3] for row in rows]
