"""The tasks. To add one: a file with a `Task`, and an entry here by the name that a configuration gives."""

from tasks.reverse import Reverse
from tasks.task import Batch, Task

TASKS: dict[str, type[Task]] = {"reverse": Reverse}

__all__ = ["TASKS", "Batch", "Reverse", "Task"]
