"""Makes the tasks of one kind of program."""

# No `from __future__ import annotations` here: the fields of public classes are read at run time, by cattrs and others.
# Their `__module__` reads agentcore, where names in strings could not be found.

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from agentcore._tasks import BaseTask


class TaskFactory:
    """Makes tasks with the configuration of one kind of program.

    Used as it is, it makes plain tasks. Subclass it to change what is made:

        class IngestFactory(TaskFactory):
            task_class = IngestTask
            defaults = {"timeout_ms": 30_000}
    """

    task_class: ClassVar[type[BaseTask]] = BaseTask
    """The class of the tasks."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Fields of every task, unless the call says otherwise."""

    @classmethod
    def create_task(cls, type: str, input: Mapping[str, Any] | None = None, **fields: Any) -> BaseTask:
        """Make a task.

        Args:
            type: what kind of work.
            input: what the work needs.
            **fields: the other arguments of the task's class by name.

        Raises:
            ConfigurationError: a value is not usable.
            TypeError: there is no such argument.
        """
        # Copied: tasks must not share what their factory has for all of them.
        if cls.defaults:
            fields = {**copy.deepcopy(dict(cls.defaults)), **fields}
        return cls.task_class.create(type, input, **fields)


def remade(task: BaseTask) -> BaseTask:
    """Return a new task that is made of what another one was made of, but for the identifier."""
    arguments = [field for field in attrs.fields(type(task)) if field.init and field.alias != "id"]
    return type(task)(**{str(field.alias): _own(getattr(task, field.name)) for field in arguments})


def _own(value: Any) -> Any:
    return value.copy() if value.__class__ in (dict, list, set) else value
