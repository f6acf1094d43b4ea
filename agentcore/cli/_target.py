"""What the command line names: the object to run, and its input."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from agentcore import AgentRuntime, BaseAgent, ConfigurationError

Target: TypeAlias = "Callable[..., Any] | type[BaseAgent] | BaseAgent"


def load_target(text: str) -> tuple[str, Target]:
    """Import what ``module:object`` or ``file.py:object`` names.

    Returns:
        The object's name and the object.

    Raises:
        ConfigurationError: it is not there, cannot be imported, or is nothing that can be run.
    """
    where, colon, name = text.rpartition(":")
    if not (where and colon and name):
        raise _unusable(
            "target", text, "read module:object or file.py:object", "for example examples/triage.py:workflow"
        )
    try:
        found = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        raise _unusable(
            "target", text, f"be importable, but {type(error).__name__}: {error}", "mend the module"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            known = ", ".join([key for key in dir(found) if not key.startswith("_")][:12])
            raise _unusable("target", text, f"name something in {where}", f"there is {known or 'nothing'}")
        found = getattr(found, part)
    if not isinstance(found, BaseAgent) and (not callable(found) or _is_other_class(found)):
        raise _unusable("target", text, "name a function, a class of agents or an agent", f"this is {found!r}")
    return name, found


def _is_other_class(found: object) -> bool:
    return isinstance(found, type) and not issubclass(found, BaseAgent)


def register_target(runtime: AgentRuntime, name: str, target: Target) -> None:
    """Have tasks of type `name` served by the target."""
    if isinstance(target, BaseAgent) or (isinstance(target, type) and issubclass(target, BaseAgent)):
        runtime.registry("agents").register(name, target)
    else:
        runtime.handler(name)(target)


def read_input(text: str, standard_input: TextIO) -> dict[str, Any]:
    """Return the input of the task.

    Args:
        text: ``-`` for JSON on standard input, the name of a ``.json`` file, a JSON object, or any other path, which the
            task gets as ``{"path": ...}``.
        standard_input: where ``-`` reads.

    Raises:
        ConfigurationError: there is no such file, or what is in it is no JSON object.
    """
    if text == "-":
        try:
            return _parse("standard input", standard_input.read())
        except UnicodeDecodeError as error:
            raise _unusable("--input", text, "be text in UTF-8", str(error)) from error
    if text.lstrip().startswith("{"):
        return _parse("--input", text)
    if text.endswith(".json"):
        try:
            return _parse(text, Path(text).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise _unusable("--input", text, "name a file that can be read", str(error)) from error
    return {"path": text}


def _parse(where: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unusable("--input", text[:60], f"be JSON, but {where} is not", str(error)) from error
    if not isinstance(value, dict):
        raise _unusable("--input", text[:60], "be a JSON object", 'for example {"path": "."}')
    return value


def _import_module(name: str) -> Any:
    # As `python -m` does: what is in the current directory can be named.
    if "" not in sys.path:
        sys.path.insert(0, "")
    return importlib.import_module(name)


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise _unusable("target", str(path), "name a file that is there", f"looked in {Path.cwd()}")
    # Found by its own name, by pickle for instance; unless another module has it, which must stay what it is.
    name = path.stem
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"_agentcore_target_{name}"
    # Modules beside it can be imported. At the end of the path: a file named json.py must not hide the real one.
    sys.path.append(str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a file that ends in .py has both  # noqa: S101, PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _unusable(subject: str, value: object, rule: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"{subject} must {rule}: got {value!r}; {remedy}", {"name": subject, "value": value})
