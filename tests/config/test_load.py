"""Where a configuration is from, who wins, and how faults are told."""

from __future__ import annotations

import logging
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentcore import ConfigurationError
from agentcore.config import (
    LoggingConfiguration,
    RuntimeSettings,
    SystemConfiguration,
    load_configuration,
)

TOP = "'io_workers', 'cpu_workers', 'api_failure_threshold', 'api_reset_timeout', 'logging', 'metrics', 'runtime'"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory, with no variable of ours."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("AGENTCORE_"):
            monkeypatch.delenv(name)
    return tmp_path


def write(name: str, text: str) -> None:
    Path(name).write_text(text, encoding="utf-8")


def faults_of(*arguments: Any, **keywords: Any) -> list[str]:
    """Return what a load is refused for."""
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(*arguments, **{"env": {}, **keywords})
    error = caught.value
    faults: list[str] = error.details["faults"]
    assert len(faults) == len(error.details["names"])
    assert all(fault in str(error) for fault in faults)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    return faults


# Who wins.


def test_nothing_given() -> None:
    """Every value is the default, and says so."""
    configuration = load_configuration()
    assert configuration == SystemConfiguration()
    assert set(configuration.origins.values()) == {"default"}
    assert list(configuration.origins)[:2] == ["io_workers", "cpu_workers"]
    assert "logging.level" in configuration.origins


def test_keyword_before_environment_before_file_before_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value by itself, those of one section from different places."""
    write(
        "agentcore.toml",
        "io_workers = 1\ncpu_workers = 1\n[logging]\nlevel = 'error'\nformat = 'json'\n[runtime]\ngrace = 1",
    )
    monkeypatch.setenv("AGENTCORE_IO_WORKERS", "2")
    monkeypatch.setenv("AGENTCORE_CPU_WORKERS", "2")
    monkeypatch.setenv("AGENTCORE_LOGGING__LEVEL", "debug")
    configuration = load_configuration(io_workers=3, logging={"output": "x.log"})
    assert configuration == SystemConfiguration(
        io_workers=3,
        cpu_workers=2,
        logging=LoggingConfiguration(level="DEBUG", format="json", output="x.log"),
        runtime=RuntimeSettings(grace=1),
    )
    origins = configuration.origins
    assert {name: origin for name, origin in origins.items() if origin != "default"} == {
        "io_workers": "keyword",
        "cpu_workers": "environment variable AGENTCORE_CPU_WORKERS",
        "logging.level": "environment variable AGENTCORE_LOGGING__LEVEL",
        "logging.format": "agentcore.toml",
        "logging.output": "keyword",
        "runtime.grace": "agentcore.toml",
    }


def test_a_section_may_be_given_whole() -> None:
    """An instance of its class says all values of it, also those that are the default."""
    env = {"AGENTCORE_LOGGING__LEVEL": "debug", "AGENTCORE_LOGGING__FORMAT": "json"}
    configuration = load_configuration(env=env, logging=LoggingConfiguration(level="ERROR"))
    assert configuration.logging == LoggingConfiguration(level="ERROR")
    assert configuration.origins["logging.format"] == "keyword"


def test_none_by_keyword_takes_back_what_was_given() -> None:
    """A program can ask for the default of the part, whatever the environment says."""
    configuration = load_configuration(env={"AGENTCORE_IO_WORKERS": "4"}, io_workers=None)
    assert (configuration.io_workers, configuration.origins["io_workers"]) == (None, "keyword")


def test_a_value_may_be_named_with_its_section() -> None:
    """In a mapping that somebody else has made, a dotted name is what it says."""
    assert load_configuration(env={}, **{"logging.level": "ERROR"}).logging.level == "ERROR"


# The environment.


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("IO_WORKERS", "12", 12),
        ("IO_WORKERS", " 12\n", 12),
        ("API_RESET_TIMEOUT", "1500", 1500.0),
        ("API_RESET_TIMEOUT", "0.5", 0.5),
        ("API_RESET_TIMEOUT", "1e3", 1000.0),
        *[("METRICS__ENABLED", text, True) for text in ("true", "True", "1", "yes", "ON")],
        *[("METRICS__ENABLED", text, False) for text in ("false", "FALSE", "0", "no", "off")],
        ("LOGGING__OUTPUT", "12", "12"),
        ("RUNTIME__GRACE", "0", 0.0),
        ("RUNTIME__AGEING", "inf", math.inf),
    ],
)
def test_variables_are_read_as_what_they_are_for(variable: str, text: str, value: object) -> None:
    """A number, a flag or a text."""
    configuration = load_configuration(env={f"AGENTCORE_{variable}": text})
    section, _, key = variable.lower().rpartition("__")
    found = getattr(getattr(configuration, section) if section else configuration, key)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("variable", "text", "rule"),
    [
        ("IO_WORKERS", "many", "io_workers must be a whole number, 1 or more"),
        ("IO_WORKERS", "8.0", "io_workers must be a whole number, 1 or more"),
        ("IO_WORKERS", "9" * 5000, "io_workers must be a whole number, 1 or more"),
        ("API_RESET_TIMEOUT", "30s", "api_reset_timeout must be a number of milliseconds, 0.001 or more"),
        ("API_RESET_TIMEOUT", "nan", "api_reset_timeout must be a number of milliseconds, 0.001 or more"),
        ("RUNTIME__GRACE", "inf", "runtime.grace must be a number of seconds, 0 or more"),
        ("RUNTIME__AGEING", "nan", "runtime.ageing must be a number of seconds, 0 or more, or inf"),
        ("METRICS__ENABLED", "2", "metrics.enabled must be true or false"),
        ("LOGGING__FORMAT", "yaml", "logging.format must be one of text, json"),
    ],
)
def test_variables_that_do_not_say_what_they_are_for(variable: str, text: str, rule: str) -> None:
    """The error names the value by its own name and the variable by its."""
    (fault,) = faults_of(env={f"AGENTCORE_{variable}": text})
    assert fault.startswith(f"{rule}: got ")
    assert f" (environment variable AGENTCORE_{variable}); " in fault
    assert len(fault) < 400


def test_an_empty_variable_is_none() -> None:
    """Deployments set variables to nothing where they have nothing to say."""
    write("agentcore.toml", "io_workers = 3")
    env = {"AGENTCORE_IO_WORKERS": "", "AGENTCORE_LOGGING__LEVEL": "", "AGENTCORE_CONFIG": ""}
    assert load_configuration(env=env) == SystemConfiguration(io_workers=3)


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("AGENTCORE_IO_WORKER", "did you mean AGENTCORE_IO_WORKERS?"),
        ("AGENTCORE_LOGGING_LEVEL", "did you mean AGENTCORE_LOGGING__LEVEL?"),
        ("AGENTCORE_io_workers", "did you mean AGENTCORE_IO_WORKERS?"),
        ("AGENTCORE_XYZZY", "known are AGENTCORE_IO_WORKERS, AGENTCORE_CPU_WORKERS, "),
    ],
)
def test_unknown_variables_are_warned_of(variable: str, hint: str, caplog: pytest.LogCaptureFixture) -> None:
    """By name and without the value, which may be a secret of somebody else."""
    with caplog.at_level(logging.WARNING, "agentcore.config"):
        assert load_configuration(env={variable: "hunter2"}) == SystemConfiguration()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("agentcore.config", "WARNING")
    assert f"environment variable {variable} is not a setting of agentcore; {hint}" in record.getMessage()
    assert "hunter2" not in record.getMessage()


def test_variables_of_others_are_none_of_its_business(caplog: pytest.LogCaptureFixture) -> None:
    """Neither those of other programs nor those that other parts read."""
    load_configuration(env={"HOME": "x", "AGENTCORE": "x", "AGENTCORE_SIM": "x", "agentcore_io_workers": "x"})
    assert caplog.records == []


# The file.


def test_project_file() -> None:
    """Without a file of its own, its table in the project's is taken, and nothing else of that."""
    write(
        "pyproject.toml",
        "[project]\nname = 'x'\n[tool.other]\nio_workers = 1\n[tool.agentcore.logging]\nlevel = 'ERROR'",
    )
    configuration = load_configuration()
    assert configuration == SystemConfiguration(logging=LoggingConfiguration(level="ERROR"))
    assert configuration.origins["logging.level"] == "pyproject.toml [tool.agentcore]"


@pytest.mark.parametrize("text", ["", "[tool]", "tool = 3", "[tool.other]\nx = 1"])
def test_project_file_without_the_table(text: str) -> None:
    """Most projects have such a file."""
    write("pyproject.toml", text)
    assert load_configuration() == SystemConfiguration()


def test_only_one_file_is_read() -> None:
    """The file of its own before the project's; what is named before both; the argument before the variable."""
    write("pyproject.toml", "[tool.agentcore]\nio_workers = 1\ncpu_workers = 1")
    assert load_configuration().io_workers == 1
    write("agentcore.toml", "io_workers = 2")
    assert load_configuration() == SystemConfiguration(io_workers=2)
    write("other.toml", "io_workers = 3")
    env = {"AGENTCORE_CONFIG": "other.toml"}
    assert load_configuration(env=env).origins["io_workers"] == "other.toml"
    assert load_configuration("agentcore.toml", env=env) == SystemConfiguration(io_workers=2)
    assert load_configuration(Path("pyproject.toml"), env=env).io_workers == 1


def test_a_directory_is_no_file() -> None:
    """One that happens to have the name is passed over."""
    Path("agentcore.toml").mkdir()
    assert load_configuration() == SystemConfiguration()


def test_byte_order_mark_and_line_ends_of_other_systems() -> None:
    """A file that was saved by any editor is read."""
    Path("agentcore.toml").write_bytes(b"\xef\xbb\xbfio_workers = 3\r\n[logging]\r\nlevel = 'ERROR'\r\n")
    assert load_configuration() == SystemConfiguration(io_workers=3, logging=LoggingConfiguration(level="ERROR"))


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_file_that_is_named_must_be_there(by_variable: bool) -> None:
    """The error says who has named it."""
    arguments, env = ([], {"AGENTCORE_CONFIG": "no.toml"}) if by_variable else (["no.toml"], {})
    by = "environment variable AGENTCORE_CONFIG" if by_variable else "argument path"
    assert faults_of(*arguments, env=env) == [
        f"the configuration file must exist: got 'no.toml' ({by}); create it, or name another"
    ]


def test_a_file_that_is_named_must_be_a_file() -> None:
    """Neither a directory nor something below a file."""
    Path("d").mkdir()
    write("f", "")
    for path in ("d", "f/x.toml"):
        assert faults_of(path) == [
            f"the configuration file must be a file: got {path!r} (argument path); create it, or name another"
        ]


@pytest.mark.parametrize("path", [5, b"agentcore.toml", "", "a\0b"])
def test_a_path_must_be_one(path: Any) -> None:
    """Whatever else is given is told."""
    assert faults_of(path) == [f"the path of the configuration file must be a string: got {path!r}; write one"]


def test_unreadable_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not passed over: what it says was meant to hold."""

    def read_bytes(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert faults_of() == [
        f"the configuration file must be readable: got {name!r}, Permission denied; let it be read"
        for name in ("agentcore.toml", "pyproject.toml")
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("io_workers = 3\nlogging = \n", "line 2, column 11"),
        ("a = 1\n\na = 2\n", "line 3, column 6"),
        ("[logging", "at end of document"),
        ("x = " + "9" * 5000, "4300 digits"),
        ("x = " + "[" * 100_000, "recursion"),
    ],
)
def test_syntax_errors_name_file_and_line(text: str, place: str) -> None:
    """Who reads the message can open the file at the place."""
    write("my.toml", text)
    (fault,) = faults_of("my.toml")
    assert fault.startswith("my.toml must be TOML: got ")
    assert place in fault
    assert len(fault) < 300


def test_another_encoding_is_told_with_its_line() -> None:
    """A file that is no UTF-8."""
    Path("agentcore.toml").write_bytes("io_workers = 3\n# Größe\n".encode("latin-1"))
    assert faults_of() == ["agentcore.toml must be in UTF-8: got another byte (at line 2); save it in UTF-8"]


def test_a_named_project_file_must_have_the_table() -> None:
    """Who names it expects something of it."""
    write("pyproject.toml", "[project]")
    assert faults_of("pyproject.toml") == [
        "pyproject.toml must have a table [tool.agentcore]: got none; add it, or name another file"
    ]


def test_the_table_of_a_project_file_must_be_one() -> None:
    """Also where nobody has named the file."""
    write("pyproject.toml", "[tool]\nagentcore = 5")
    assert faults_of() == [
        "tool.agentcore must be a table: got 5 (pyproject.toml); give the values in it, such as tool.agentcore.enabled"
    ]


# Faults.


def test_all_faults_of_a_load_are_told_at_once() -> None:
    """Those of every source, also where another source overrides the value."""
    write("agentcore.toml", "io_workers = 'many'\npools = 3\n[logging]\nlevel = 'INOF'")
    env = {"AGENTCORE_IO_WORKERS": "0", "AGENTCORE_METRICS__ENABLED": "maybe", "AGENTCORE_CPU_WORKERS": "2"}
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(env=env, io_workers=1, runtime={"grace": -1})
    count = "must be a whole number, 1 or more: got"
    remedy = "leave it out for as many as there are CPUs"
    variable = "environment variable AGENTCORE_METRICS__ENABLED"
    assert str(caught.value).splitlines() == [
        "the configuration has 6 faults; correct each of them",
        f"  io_workers {count} 'many' (agentcore.toml); {remedy}",
        f"  a key of the configuration must be a known one: got 'pools' (agentcore.toml); known are {TOP}",
        "  logging.level must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL: got 'INOF' (agentcore.toml); did you mean 'INFO'?",
        f"  io_workers {count} 0 (environment variable AGENTCORE_IO_WORKERS); {remedy}",
        f"  metrics.enabled must be true or false: got 'maybe' ({variable}); write true or false",
        "  runtime.grace must be a number of seconds, 0 or more: got -1 (keyword); use 0 to cut at once",
    ]
    assert caught.value.details["names"] == [
        "io_workers",
        "pools",
        "logging.level",
        "io_workers",
        "metrics.enabled",
        "runtime.grace",
    ]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("io_worker", "io_workers"),
        ("io-workers", "io_workers"),
        ("IO_WORKERS", "io_workers"),
        ("level", "logging.level"),
        ("in_flight", "runtime.in_flight"),
        ("loging", "logging"),
        ("runtime.inflight", "runtime.in_flight"),
        ("runtime.level", "logging.level"),
    ],
)
def test_unknown_keys_with_what_was_probably_meant(key: str, meant: str) -> None:
    """A slip, another spelling, a value outside of its section."""
    section, _, inner = key.rpartition(".")
    (fault,) = faults_of(**{section: {inner: "hunter2"}} if section else {key: "hunter2"})
    expected = f"a key of the configuration must be a known one: got {key!r} (keyword); did you mean {meant!r}? known "
    assert fault.startswith(expected)
    assert section or fault == f"{expected}are {TOP}"


def test_unknown_keys_of_a_section() -> None:
    """What is known there is listed."""
    assert faults_of(metrics={"port": 9000, 5: 5}) == [
        f"a key of the configuration must be a known one: got 'metrics.{key}' (keyword); known in metrics are 'metrics.enabled'"
        for key in ("port", 5)
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        {"api_key": "hunter2"},
        {"secrets": {"password": "hunter2"}},
        {"logging": {"password": "hunter2"}},
        {"io_workers": {"password": "hunter2"}},
    ],
)
def test_what_went_astray_is_not_printed(overrides: dict[str, Any]) -> None:
    """The value of an unknown key may be a secret; so may a table where none is expected."""
    write("agentcore.toml", "")
    (fault,) = faults_of(**overrides)
    assert "hunter2" not in fault


@pytest.mark.parametrize("value", [5, "debug", None, [], RuntimeSettings()])
def test_a_section_must_be_a_table(value: object) -> None:
    """The error shows how a value of it is named."""
    assert faults_of(logging=value) == [
        f"logging must be a table: got {value!r} (keyword); give the values in it, such as logging.enabled"
    ]


def test_none_is_no_value_where_it_is_not_the_default() -> None:
    """Only what may be left out may be None."""
    (fault,) = faults_of(api_failure_threshold=None)
    assert fault == "api_failure_threshold must be a whole number, 1 or more: got None (keyword); count failed calls"


def test_text_is_no_number_outside_of_the_environment() -> None:
    """A file can say 3 where it means 3."""
    write("agentcore.toml", "io_workers = '3'\n[metrics]\nenabled = 'true'")
    assert [fault.partition(":")[0] for fault in faults_of()] == [
        "io_workers must be a whole number, 1 or more",
        "metrics.enabled must be true or false",
    ]


def test_loading_brings_no_library_in() -> None:
    """A program that starts often pays for TOML only if there is a file."""
    code = (
        "import sys; before = set(sys.modules); import agentcore.config as c; c.load_configuration(env={}); "
        "print({'cattrs', 'tomllib'} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
