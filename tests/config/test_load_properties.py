"""What holds for every configuration: it can be written down and read again, and the stronger source wins."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcore import ConfigurationError
from agentcore.config import (
    LoggingConfiguration,
    MetricsConfiguration,
    RuntimeSettings,
    SystemConfiguration,
    load_configuration,
)

Values: TypeAlias = dict[str, Any]

counts = st.integers(1, 10**15)
flags = st.booleans()
outputs = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "io_workers": counts,
    "cpu_workers": counts,
    "api_failure_threshold": counts,
    "api_reset_timeout": st.floats(0.001, 1e15) | counts,
    "logging.enabled": flags,
    "logging.level": st.sampled_from(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]),
    "logging.format": st.sampled_from(["text", "json"]),
    "logging.output": st.just("stderr") | outputs,
    "metrics.enabled": flags,
    "runtime.in_flight": counts,
    "runtime.queue": counts,
    "runtime.ageing": st.floats(0, 1e15) | counts | st.just(math.inf),
    "runtime.retention": counts,
    "runtime.grace": st.floats(0, 1e15) | counts,
    "runtime.dead_letters": st.just(0) | counts,
}
given_values = st.fixed_dictionaries({}, optional=SETTINGS)
# Not one of these is allowed anywhere, by whatever way it comes.
wrong = st.sampled_from([-1, 0.5e-9, [], "?\0"])
CLASSES = {"logging": LoggingConfiguration, "metrics": MetricsConfiguration, "runtime": RuntimeSettings}


def nested(values: Values) -> Values:
    """Return values with dotted names as a mapping of mappings."""
    found: Values = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (found.setdefault(section, {}) if section else found)[key] = value
    return found


def made(values: Values) -> SystemConfiguration:
    """Return the configuration that has these values."""
    return SystemConfiguration(
        **{name: CLASSES[name](**value) if name in CLASSES else value for name, value in nested(values).items()}
    )


def variables(values: Values) -> dict[str, str]:
    """Return values as an environment."""
    return {f"AGENTCORE_{name.upper().replace('.', '__')}": str(value) for name, value in values.items()}


def load(text: str, **arguments: Any) -> SystemConfiguration:
    """Return what is loaded from a file with this text, among others."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "my.toml"
        path.write_bytes(text.encode())
        return load_configuration(path, **{"env": {}, **arguments})


@given(given_values)
@settings(deadline=None)
def test_what_is_written_as_toml_is_read_again(values: Values) -> None:
    """With every value that can be given, and the defaults of the others."""
    configuration = made(values)
    again = load(configuration.to_toml())
    assert configuration == again
    assert {name for name, origin in again.origins.items() if origin == "default"} == {
        name for name in again.origins if lookup(configuration, name) is None
    }
    # What was loaded is written with comments, and read all the same.
    assert load(again.to_toml()) == again


def lookup(configuration: SystemConfiguration, name: str) -> Any:
    """Return the value of a dotted name."""
    found: Any = configuration
    for key in name.split("."):
        found = getattr(found, key)
    return found


@given(given_values)
@settings(deadline=None)
def test_what_is_given_by_the_environment_is_read(values: Values) -> None:
    """As text, and as the type that it is for."""
    values = {name: value for name, value in values.items() if value != ""}
    assert made(values) == load("", env=variables(values))


@given(given_values)
@settings(deadline=None)
def test_what_is_given_by_keyword_is_taken(values: Values) -> None:
    """As mappings, as instances, and by dotted names."""
    assert made(values) == load("", **nested(values)) == load("", **values)
    configuration = made(values)
    whole = {
        field.name: getattr(configuration, field.name) for field in attrs.fields(type(configuration)) if field.init
    }
    assert configuration == load("", **whole)


@given(given_values, given_values, given_values)
@settings(deadline=None)
def test_the_stronger_source_wins(file: Values, environment: Values, keywords: Values) -> None:
    """Whatever values the three have, each value is that of the first which has it, and so is its origin."""
    configuration = load(made_toml(file), env=variables(environment), **nested(keywords))
    assert configuration == made({**file, **environment, **keywords})
    for name, origin in configuration.origins.items():
        if name in keywords:
            assert origin == "keyword"
        elif name in environment:
            assert origin == f"environment variable AGENTCORE_{name.upper().replace('.', '__')}"
        elif name in file:
            assert origin.endswith("my.toml")
        else:
            assert origin == "default"


def made_toml(values: Values) -> str:
    """Return only these values as TOML, out of what the whole configuration is written as."""
    lines, section = [], ""
    for line in made(values).to_toml().split("\n"):  # and at no other separator, which may stand in a string
        if line.startswith("["):
            section = line[1:-1] + "."
        if line.startswith("[") or section + line.partition(" ")[0] in values:
            lines.append(line)
    return "\n".join(lines)


@given(given_values, st.fixed_dictionaries({}, optional=dict.fromkeys(SETTINGS, wrong)))
@settings(deadline=None)
def test_every_fault_is_told(right: Values, faulty: Values) -> None:
    """Each value that cannot be used is named, and none that can."""
    right = {name: value for name, value in right.items() if name not in faulty}
    seconds = [("runtime.ageing", 0.5e-9), ("runtime.grace", 0.5e-9)]  # which are allowed
    faulty = {name: value for name, value in faulty.items() if (name, value) not in seconds}
    outcome = loaded_or_refused("", **nested({**right, **faulty}))
    if isinstance(outcome, ConfigurationError):
        assert sorted(outcome.details["names"]) == sorted(faulty)
        assert all(fault in str(outcome) for fault in outcome.details["faults"])
    else:
        assert (outcome, faulty) == (made(right), {})


def loaded_or_refused(text: str, **arguments: Any) -> SystemConfiguration | ConfigurationError:
    """Return what comes of a load."""
    try:
        return load(text, **arguments)
    except ConfigurationError as error:
        return error


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(list(SETTINGS)), inner),
    max_leaves=8,
)
keys = st.text() | st.sampled_from([*SETTINGS, *CLASSES])


@given(st.dictionaries(keys, anything))
@settings(deadline=None)
def test_whatever_is_given_is_taken_or_told(values: Values) -> None:
    """There is a configuration or the one kind of error, and nothing else."""
    values = {name: value for name, value in values.items() if name not in {"env", "path"}}
    outcome = loaded_or_refused("", **values)
    assert isinstance(outcome, SystemConfiguration) or outcome.details["faults"]


@given(st.text(st.sampled_from("[]{}=.,'\"#\n alogin1-_\\u\0é")) | st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=300, deadline=None)
def test_whatever_stands_in_the_file_is_taken_or_told(text: str) -> None:
    """The same for files."""
    outcome = loaded_or_refused(text)
    assert isinstance(outcome, SystemConfiguration) or outcome.details["faults"]
