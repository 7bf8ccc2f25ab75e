"""Requests side by side: in order, no more at once than there are lanes, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pharmabackup.engine.lanes import Beside, Threads, in_lanes
from pharmabackup.errors import InvalidInput
from tests.threads import threads_left

PATIENCE_S = 60


class Work:
    """What is done for each number: it can be made to wait, or to fail."""

    def __init__(self, *, fails: tuple[int, ...] = ()) -> None:
        self.begun: list[int] = []
        self.threads: set[str] = set()
        self.most = self._now = 0
        self._fails = fails
        self._lock = threading.Lock()

    def __call__(self, number: int) -> int:
        with self._lock:
            self.begun.append(number)
            self.threads.add(threading.current_thread().name)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            if number in self._fails:
                raise ValueError(number)
            return number * number
        finally:
            with self._lock:
                self._now -= 1


def _left() -> list[str]:
    return threads_left("pharmabackup-lane")


def test_one_lane_is_a_plain_loop_on_the_callers_thread() -> None:
    work, taken = Work(), []
    for number, get in in_lanes(1, work, range(5)):
        assert work.begun == list(range(number))  # nothing before it is asked for
        taken.append(get())
    assert taken == [0, 1, 4, 9, 16]
    assert work.threads == {threading.current_thread().name}


def test_results_come_in_order_though_the_first_of_four_ends_last() -> None:
    done = {number: threading.Event() for number in range(40)}

    def upside_down(number: int) -> int:
        if number % 4 == 0:
            assert done[number + 3].wait(PATIENCE_S)
        done[number].set()
        return number

    assert [get() for _, get in in_lanes(4, upside_down, range(40))] == list(range(40))
    assert not _left()


def test_as_many_are_under_way_as_there_are_lanes_and_no_more() -> None:
    """Each waits until four are: one after the other they would never come back."""
    together, work = threading.Barrier(4), Work()

    def waits(number: int) -> int:
        together.wait(PATIENCE_S)
        return work(number)

    assert [get() for _, get in in_lanes(4, waits, range(40))] == [number**2 for number in range(40)]
    assert work.most <= 4


def test_what_is_ahead_is_bounded_in_number() -> None:
    work = Work()
    for number, get in in_lanes(4, work, range(100)):
        get()
        assert len(work.begun) <= number + 8


def test_what_is_ahead_is_bounded_in_bytes_and_a_larger_one_comes_alone() -> None:
    work, sizes = Work(), {7: 1000}
    coming = in_lanes(4, work, range(20), size=lambda number: sizes.get(number, 30), at_most=100)
    for number, get in coming:
        get()
        ahead = sum(sizes.get(one, 30) for one in work.begun if one >= number)
        assert ahead <= 100 or (number == 7 and ahead == 1000)
    assert sorted(work.begun) == list(range(20))


@pytest.mark.parametrize("lanes", [1, 4])
def test_an_error_comes_in_its_place_and_stops_nothing_else(lanes: int) -> None:
    found = []
    for number, get in in_lanes(lanes, Work(fails=(0, 3, 9)), range(10)):
        if number in (0, 3, 9):
            with pytest.raises(ValueError, match=str(number)):
                get()
        else:
            found.append(get())
    assert found == [1, 4, 16, 25, 36, 49, 64]
    assert not _left()


@pytest.mark.parametrize("at", [0, 5, 11])
def test_who_ends_early_leaves_no_thread_and_begins_nothing_more(at: int) -> None:
    work = Work()

    def until(stop: int) -> None:
        with in_lanes(4, work, range(1000)) as coming:
            for number, get in coming:
                get()
                if number == stop:
                    raise KeyError

    with pytest.raises(KeyError):
        until(at)
    assert not _left()
    assert len(work.begun) <= at + 8


def test_the_garbage_collector_waits_for_nothing_and_takes_back_what_has_not_begun() -> None:
    """It comes to what was let go of in a cycle, such as with an error: also on a thread that just starts."""
    work, begun, go = Work(), threading.Barrier(3), threading.Event()

    def waits(number: int) -> int:
        begun.wait(PATIENCE_S)
        go.wait(PATIENCE_S)
        return work(number)

    coming = in_lanes(2, waits, range(100))
    next(coming)
    cycle: list[object] = [coming]
    cycle.append(cycle)
    begun.wait(PATIENCE_S)
    del coming, cycle
    collecting = threading.Thread(target=gc.collect)
    collecting.start()
    collecting.join(PATIENCE_S / 4)
    waited = collecting.is_alive()
    go.set()
    collecting.join(PATIENCE_S)
    assert not waited
    for thread in threading.enumerate():
        if thread.name in _left():
            thread.join(PATIENCE_S)
    assert sorted(work.begun) == [0, 1]


def test_what_has_not_begun_when_somebody_ends_never_begins() -> None:
    work, go = Work(), threading.Event()

    def waits(number: int) -> int:
        work(number)
        go.wait(PATIENCE_S)
        return number

    with ThreadPoolExecutor(1) as pool:
        coming = in_lanes(4, waits, range(100), pool=pool)
        next(coming)
        coming.close()
        go.set()
    assert work.begun == [0]


def test_threads_that_are_shared_outlive_who_reads() -> None:
    work = Work()
    with ThreadPoolExecutor(2, thread_name_prefix="shared") as pool:
        one, other = (in_lanes(4, work, range(10), pool=pool) for _ in range(2))
        assert [next(one)[1]() for _ in range(10)] == [get() for _, get in other]
        one.close()
        assert pool.submit(work, 3).result() == 9
    assert work.most <= 2


def test_what_was_given_up_is_waited_for_when_its_threads_are_closed() -> None:
    threads, work, go = Threads(), Work(), threading.Event()

    def waits(number: int) -> int:
        work(number)
        go.wait(PATIENCE_S)
        return number

    coming = in_lanes(2, waits, range(100), pool=threads.pool())
    next(coming)
    while len(work.begun) < 4:
        pass
    del coming
    ended = threading.Thread(target=threads.close)
    ended.start()
    ended.join(0.2)
    assert ended.is_alive()
    go.set()
    ended.join(PATIENCE_S)
    assert not ended.is_alive() and sorted(work.begun) == [0, 1, 2, 3]
    assert threads.pool().submit(work, 7).result(PATIENCE_S) == 49  # and it can be used again
    threads.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is POSIX's")
def test_a_forked_child_has_threads_of_its_own() -> None:
    threads = Threads()
    assert threads.pool().submit(int, "1").result(PATIENCE_S) == 1
    child = os.fork()
    if not child:
        done = threads.pool().submit(int, "2").result(PATIENCE_S) == 2
        threads.close()
        os._exit(0 if done else 1)
    assert os.waitpid(child, 0)[1] == 0
    threads.close()


@pytest.mark.parametrize("lanes", [1, 4])
def test_beside_gives_or_raises_what_comes_of_it_each_time(lanes: int) -> None:
    done: list[int] = []
    with Beside(lanes, lambda: done.append(1) or "there") as beside:  # type: ignore[func-returns-value]
        assert beside.result() == beside.result() == "there" and done == [1]


def test_beside_works_while_the_caller_does_and_is_waited_for() -> None:
    met, ended = threading.Barrier(2), threading.Event()

    def work() -> None:
        met.wait(10)
        ended.set()

    with Beside(2, work):
        met.wait(10)
    assert ended.is_set()


def test_beside_an_error_of_the_callers_own_is_the_one_that_is_raised() -> None:
    def work() -> None:
        raise ValueError

    with pytest.raises(KeyError), Beside(2, work):
        raise KeyError
    with pytest.raises(ValueError), Beside(2, work) as beside:
        beside.result()


def test_whoever_reads_on_after_the_end_is_told_so() -> None:
    """Of what had begun the results are there; what had not is not begun."""
    threads, work, go = Threads(), Work(), threading.Event()
    lanes = in_lanes(4, lambda number: (go.wait(PATIENCE_S), work(number))[1], range(100), pool=threads.pool())
    coming = [next(lanes)[1] for _ in range(2)]
    ending = threading.Thread(target=threads.close)
    ending.start()
    while not threads.ends:
        time.sleep(0.001)
    go.set()
    ending.join(PATIENCE_S)
    assert [get() for get in coming] == [0, 1]
    with pytest.raises(InvalidInput, match="was closed"):
        for _, get in lanes:
            get()
    assert len(work.begun) < 100


def test_the_end_of_the_interpreter_is_not_told_as_a_close() -> None:
    code = """
import atexit
from pharmabackup.engine.lanes import Threads, in_lanes

coming = in_lanes(2, str, range(100), pool=Threads().pool())
next(coming)

def late():
    try:
        for _ in coming:
            pass
    except Exception as error:
        print(type(error).__name__)

atexit.register(late)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "RuntimeError\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is POSIX's")
def test_a_forked_child_waits_for_none_of_its_parents_threads() -> None:
    threads, go = Threads(), threading.Event()
    lanes = in_lanes(4, lambda _: go.wait(PATIENCE_S), range(8), pool=threads.pool())
    next(lanes)
    child = os.fork()
    if not child:
        signal.alarm(10)
        try:
            with pytest.raises(InvalidInput, match="forked"):
                next(lanes)
            del lanes
            gc.collect()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    go.set()
    lanes.close()
    threads.close()
