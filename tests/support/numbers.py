"""The numbers that an engine gave to tasks, beside those that the model gave to the same ones."""

from collections.abc import Iterable
from typing import Any

from msgspec import structs

from taskqueue.core.batch import Applied
from taskqueue.core.task import ClaimedTask, Event, Task, TaskDetail


class Numbers:
    """Which of the model's numbers goes with which of an engine's.

    Engines may number tasks as they like, as long as the numbers of those that are there at the
    same time are in the order of their submits.
    """

    def __init__(self, *, are_counted: bool) -> None:
        """`are_counted`: they must be the model's own, which counts from 1."""
        self._are_counted = are_counted
        self._theirs = {0: 0}  # a submit that another task stands for has no number

    def learn(self, ours: Applied, theirs: Applied) -> None:
        """Note how the new tasks of a transaction are numbered."""
        for mine, other in zip(ours.moved, theirs.moved, strict=False):
            if mine.last_event is other.last_event is Event.SUBMIT:
                assert mine.seq not in self._theirs, "a number was given twice"
                assert mine.seq == other.seq or not self._are_counted
                self._theirs[mine.seq] = other.seq

    def in_terms_of_the_model(self, answer: Any) -> Any:
        """An engine's answer with the model's numbers in it; -1 for one nobody was given."""
        match answer:
            case Task():
                return structs.replace(answer, seq=self._theirs.get(answer.seq, -1))
            case ClaimedTask() | TaskDetail():
                return structs.replace(answer, task=self.in_terms_of_the_model(answer.task))
            case list():
                return [self.in_terms_of_the_model(one) for one in answer]
            case _:
                return answer

    def check_order(self, present: Iterable[Task]) -> None:
        """The tasks that are there are numbered in the order of their submits."""
        ours = [mine for mine, _ in self._among(present)]
        assert ours == sorted(ours), "numbers are not in the order of the submits"

    def place_of(self, number: int, present: Iterable[Task]) -> int:
        """The engine's number that has the same tasks before it as one of the model's has."""
        return next((mine for mine, other in self._among(present) if other >= number), 2**62)

    def _among(self, present: Iterable[Task]) -> list[tuple[int, int]]:
        wanted = {task.seq for task in present}
        pairs = [(mine, other) for mine, other in self._theirs.items() if other in wanted]
        return sorted(pairs, key=lambda pair: pair[1])
