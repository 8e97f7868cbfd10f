"""Sums that threads compute, added in the order of the parts."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest

from nlsq_dask.engines.ordered_sum import OrderedSum


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.mark.parametrize("n_parts", [0, 1, 2, 50])
def test_answers_are_added_in_the_order_of_the_parts(pool, n_parts):
    """A list is a sum whose order can be seen."""
    found = OrderedSum(["zero"], lambda part: [part], range(n_parts)).by(pool, 3)
    assert found == ["zero", *range(n_parts)]


def test_an_answer_waits_for_the_answers_of_earlier_parts(pool):
    others_are_done = threading.Event()

    def answer_of(part):
        if part == 0:
            assert others_are_done.wait(30)
        if part == 9:
            others_are_done.set()
        return [part]

    assert OrderedSum([], answer_of, range(10)).by(pool, 2) == [*range(10)]


def test_the_error_is_that_of_the_first_part_that_fails(pool):
    """Whichever thread fails first, and no part is begun after that."""
    both_began, second_failed, begun = threading.Barrier(2), threading.Event(), []

    def answer_of(part):
        begun.append(part)
        if part in (3, 4):
            both_began.wait(30)
            if part == 3:
                assert second_failed.wait(30)
            else:
                second_failed.set()
            raise ValueError(part)
        return [part]

    with pytest.raises(ValueError, match="3"):
        OrderedSum([], answer_of, range(100)).by(pool, 2)
    assert sorted(begun) == [0, 1, 2, 3, 4]


def test_the_thread_that_asks_is_woken_once():
    """Not for each part: the pool gets one piece of work for each thread."""

    class Counting(Executor):
        submitted = 0

        def submit(self, function, /, *args, **kwargs):
            self.submitted += 1
            future = Future()
            future.set_result(function(*args, **kwargs))
            return future

    counting = Counting()
    assert OrderedSum([], lambda part: [part], range(20)).by(counting, 2) == [*range(20)]
    assert counting.submitted == 2
