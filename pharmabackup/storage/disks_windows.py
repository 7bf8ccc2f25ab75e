"""Disks on Windows, by the functions and control codes of fileapi.h and winioctl.h.

Written from their documentation; never run.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import wintypes

assert sys.platform == "win32"  # type checkers read on only there

FSCTL_LOCK_VOLUME = 0x00090018
FSCTL_DISMOUNT_VOLUME = 0x00090020
IOCTL_STORAGE_EJECT_MEDIA = 0x002D4808
IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS = 0x00560000
GENERIC_READ_WRITE = 0xC0000000
SHARE_READ_WRITE = 3
OPEN_EXISTING = 3
SEM_FAILCRITICALERRORS = 1  # or a card reader without a card asks for one in a window
ERROR_MORE_DATA = 234
INVALID_HANDLE = ctypes.c_void_p(-1).value
LONGEST = 1024

kernel = ctypes.WinDLL("kernel32", use_last_error=True)
kernel.CreateFileW.restype = wintypes.HANDLE
kernel.FindFirstVolumeW.restype = wintypes.HANDLE
kernel.FindNextVolumeW.argtypes = [wintypes.HANDLE, wintypes.LPWSTR, wintypes.DWORD]
kernel.FindVolumeClose.argtypes = [wintypes.HANDLE]
kernel.CloseHandle.argtypes = [wintypes.HANDLE]


def labels() -> Iterator[tuple[str, str]]:
    before = kernel.SetErrorMode(SEM_FAILCRITICALERRORS)
    try:
        for volume in list(_volumes()):
            label, places = ctypes.create_unicode_buffer(LONGEST), ctypes.create_unicode_buffer(LONGEST)
            used = wintypes.DWORD()
            if (
                kernel.GetVolumeInformationW(volume, label, LONGEST, None, None, None, None, 0)
                and label.value
                and kernel.GetVolumePathNamesForVolumeNameW(volume, places, LONGEST, ctypes.byref(used))
                and places.value
            ):
                yield label.value, places.value  # the first of several; each ends with a zero
    finally:
        kernel.SetErrorMode(before)


def hardware(path: str) -> frozenset[str] | None:
    place, volume = ctypes.create_unicode_buffer(LONGEST), ctypes.create_unicode_buffer(LONGEST)
    if not kernel.GetVolumePathNameW(path, place, LONGEST):
        return None
    if not kernel.GetVolumeNameForVolumeMountPointW(place, volume, LONGEST):
        return None  # a share of another computer
    with _opened(volume.value.rstrip("\\"), 0) as handle:
        answer = ctypes.create_string_buffer(8 + 24 * 64)  # VOLUME_DISK_EXTENTS: a count, then 24 bytes for each
        if not _control(handle, IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS, answer) and (
            ctypes.get_last_error() != ERROR_MORE_DATA
        ):
            return None
    count = min(int.from_bytes(answer.raw[:4], "little"), 64)
    disks = (int.from_bytes(answer.raw[8 + 24 * at : 12 + 24 * at], "little") for at in range(count))
    return frozenset(f"PhysicalDrive{disk}" for disk in disks)


attached = hardware  # an image file is a disk of its own here


def eject(place: str) -> str | None:
    with _opened(rf"\\.\{place.rstrip(chr(92))}", GENERIC_READ_WRITE) as handle:
        if not _control(handle, FSCTL_LOCK_VOLUME) or not _control(handle, FSCTL_DISMOUNT_VOLUME):
            return "another program has files open on it"
        _control(
            handle, IOCTL_STORAGE_EJECT_MEDIA
        )  # a disk without a tray has nothing to push out, and is safe by now
    return None


def _volumes() -> Iterator[str]:
    name = ctypes.create_unicode_buffer(LONGEST)
    search = kernel.FindFirstVolumeW(name, LONGEST)
    if search in (None, INVALID_HANDLE):
        return
    try:
        yield name.value
        while kernel.FindNextVolumeW(search, name, LONGEST):
            yield name.value
    finally:
        kernel.FindVolumeClose(search)


@contextmanager
def _opened(name: str, access: int) -> Iterator[int]:
    handle = kernel.CreateFileW(name, access, SHARE_READ_WRITE, None, OPEN_EXISTING, 0, None)
    if handle in (None, INVALID_HANDLE):
        raise ctypes.WinError(ctypes.get_last_error())
    try:
        yield handle
    finally:
        kernel.CloseHandle(handle)


def _control(handle: int, code: int, answer: ctypes.Array[ctypes.c_char] | None = None) -> bool:
    used = wintypes.DWORD()
    size = 0 if answer is None else len(answer)
    return bool(
        kernel.DeviceIoControl(wintypes.HANDLE(handle), code, None, 0, answer, size, ctypes.byref(used), None)
    )
