"""The bytes of an upload: every try sends the same ones."""

from __future__ import annotations

import time
from zlib import crc32

import pytest

from pharmabackup.storage import body as module
from pharmabackup.storage.body import Body


@pytest.fixture
def body():
    body = Body()
    yield body
    body.close()


@pytest.mark.parametrize("in_memory", [4, 8 << 20])
def test_it_can_be_read_again_in_memory_and_on_disk(monkeypatch, in_memory):
    monkeypatch.setattr(module, "IN_MEMORY", in_memory)
    body = Body()
    for piece in (b"", b"one", bytearray(b"two"), memoryview(b"xthreex")[1:-1]):
        body.write(piece)
    for _ in range(2):
        assert body.seek(0) == 0
        assert body.read(4) + body.read() == b"onetwothree"
        assert body.tell() == len(body) == body.size == 11
    assert body.seek(-5, 2) == 6
    assert body.read(None) == b"three"
    assert body.crc32 == crc32(b"onetwothree")
    body.close()


def test_elements_of_a_buffer_may_be_larger_than_bytes(body):
    body.write(memoryview(bytes(16)).cast("Q"))
    assert body.size == 16


def test_an_empty_one_is_one(body):
    assert body and not len(body)


def test_reading_says_when_it_was(body):
    assert body.moved_at == 0
    before = time.monotonic()
    body.read(1)
    assert before <= body.moved_at <= time.monotonic()
