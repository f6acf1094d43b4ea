"""What installed packages offer, brought into the process-wide registries.

A package offers an agent, a handler or a tool by an entry point, in its ``pyproject.toml``:

    [project.entry-points."agentcore.agents"]
    triage_agent = "my_package.agents:TriageAgent"

Nothing of it is imported before it is asked for.
"""

from __future__ import annotations

from typing import Any

from agentcore._registry import Registry, get_registry


def register_agents(registry: Registry[Any] | None = None) -> list[str]:
    """Register the agents that installed packages offer under the entry point group ``agentcore.agents``.

    Each is imported when it is asked for by the first time; one that cannot be imported is a RegistryError then, which
    names it. A name that is taken stays as it is, so calling this again does nothing.

    Args:
        registry: where to; the process-wide ``agents``, if omitted.

    Returns:
        The names that were added.

    Raises:
        RegistryError: an entry point has no attribute.
    """
    return _register("agents", registry)


def register_task_handlers(registry: Registry[Any] | None = None) -> list[str]:
    """Register the handlers that installed packages offer under the entry point group ``agentcore.task_handlers``.

    As `register_agents` does it. The name of an entry point is the type of task.

    Args:
        registry: where to; the process-wide ``task_handlers``, if omitted.

    Returns:
        The names that were added.

    Raises:
        RegistryError: an entry point has no attribute.
    """
    return _register("task_handlers", registry)


def register_tools(registry: Registry[Any] | None = None) -> list[str]:
    """Register the tools that installed packages offer under the entry point group ``agentcore.tools``.

    As `register_agents` does it.

    Args:
        registry: where to; the process-wide ``tools``, if omitted. Where that one is a registry of functions or classes,
            pass it: ``register_tools(get_function_registry("tools"))``.

    Returns:
        The names that were added.

    Raises:
        RegistryError: an entry point has no attribute; or `registry` is omitted and ``tools`` is of another kind.
    """
    return _register("tools", registry)


def _register(name: str, registry: Registry[Any] | None) -> list[str]:
    # Not `registry or ...`: an empty one must not be taken for none, should it ever have a length.
    target = get_registry(name) if registry is None else registry
    return target.load_entry_points(f"agentcore.{name}")
