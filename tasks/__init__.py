"""The tasks. To add one: a file with a `Task`, and an entry here by the name that a configuration gives."""

from tasks.associative_recall import AssociativeRecall
from tasks.copy import Copy
from tasks.ngram import NGram
from tasks.priority_sort import PrioritySort
from tasks.repeat_copy import RepeatCopy
from tasks.reverse import Reverse
from tasks.task import Batch, Task, describe, label
from tasks.vectors import VectorTask

TASKS: dict[str, type[Task]] = {
    "reverse": Reverse,
    "copy": Copy,
    "repeat_copy": RepeatCopy,
    "associative_recall": AssociativeRecall,
    "ngram": NGram,
    "priority_sort": PrioritySort,
}

__all__ = ["TASKS", "Batch", "Task", "VectorTask", "describe", "label"]
