"""The lock that a forked process finds free."""

from __future__ import annotations

import os
import sys
from types import FrameType

import pytest

from pharmabackup import mutex
from pharmabackup.mutex import Mutex


def test_an_interrupt_leaves_it_to_nobody_for_ever() -> None:
    """An interrupt comes between steps of Python code: none of the lock's own lies between taking it and `with`."""
    one = Mutex()

    def interrupt(frame: FrameType, event: str, _: object) -> object:
        if frame.f_code.co_filename != mutex.__file__:
            return None
        if event == "return":
            raise KeyboardInterrupt
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with one.own:
            pass
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    assert not one.own.locked()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is POSIX's")
def test_who_forks_within_lets_go_of_his_own_in_the_child() -> None:
    one = Mutex()
    with one.own:
        child = os.fork()
        free = not one.own.locked()
        if not child:
            other = one.own
            other.acquire()  # as another thread of the child's would
    if not child:
        os._exit(not (free and other.locked()))
    assert os.waitpid(child, 0)[1] == 0
    assert not one.own.locked()
