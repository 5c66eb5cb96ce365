# SPDX-License-Identifier: Apache-2.0
"""The program of a process that decodes photos of strangers and does nothing else.

A decoder of pictures is where hostile bytes do their work, and a thread that runs one cannot be stopped. So it runs
here, where the kernel bounds its memory, files and processor time, and from where it can be killed. It knows no
network, no settings and no secrets; `worker_process.py` starts it and talks to it.

Protocol, on file descriptor 0, a socket: the first answer says that the worker is ready. Then, one at a time, a request
(`REQUEST`, then the file) and its answer (`ANSWER`, then pixels or an `ImageError`). The end of the socket means that
the gateway is gone.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import os
import re
import resource
import signal
import socket
import struct
import sys
from pathlib import Path

from PIL import Image

from captioner.image_error import ImageError, ImageReason
from captioner.model_contract import FITS
from captioner.preprocessing import ImageLimits, decode_photo

REQUEST = struct.Struct("<IB")  # bytes of the file; whether it may be one that takes long
ANSWER = struct.Struct("<BI")  # Kind; bytes that follow

# Of processor time for one photo. The largest legal ones take 0.8 s. Below the 2 s that we promise, since the worker
# that it ends has to be replaced, which takes 0.3 s, and since the kernel looks at its clock ticks only.
CPU_SECONDS = 1.6

# The most hungry legal photo, a transparent WebP turned by its EXIF, takes 20 bytes a pixel.
_BYTES_PER_PIXEL = 28
_SPARE_BYTES = 64 * 2**20

# What up to so many pixels takes is some 60 ms, 0.1 s with everything a hostile file can add that is known. Whatever
# takes longer is not known, and is not to keep others waiting.
_QUICK_PIXELS = 2_000_000
QUICK_CPU_SECONDS = 0.5

_OPEN_FILES = 16  # Pillow reads a module of its own now and then
_PR_SET_PDEATHSIG = 1


class Kind(enum.IntEnum):
    """What an answer is."""

    READY = 0
    PIXELS = 1
    ERROR = 2  # ImageError as JSON
    TAKES_LONG = 3  # not decoded: ask again when there is time for a photo that takes long


def memory_limit_bytes(limits: ImageLimits) -> int:
    """Address space for one photo, above what the worker has anyway: about 0.7 GiB for 25 megapixels."""
    return _SPARE_BYTES + _BYTES_PER_PIXEL * limits.max_pixels


def main() -> None:
    """Arguments: the owner's process id, the encoder's height, width and fit, then `ImageLimits` in its order."""
    owner_pid, height, width = (int(argument) for argument in sys.argv[1:4])
    (fit,) = (one for one in FITS if one == sys.argv[4])
    limits = ImageLimits(**dict(zip(_names_of_limits(), map(int, sys.argv[5:]), strict=True)))
    quick_limits = dataclasses.replace(limits, max_pixels=min(limits.max_pixels, _QUICK_PIXELS))

    def answer_to(data: bytes, may_take_long: bool) -> tuple[Kind, bytes]:
        try:
            pixels = decode_photo(
                data, height=height, width=width, fit=fit, limits=limits if may_take_long else quick_limits
            )
        except MemoryError:
            return Kind.ERROR, out_of_memory(len(data)).to_json()
        except ImageError as error:
            if error.reason is ImageReason.OUT_OF_MEMORY:
                error = out_of_memory(len(data))
            elif error.reason is ImageReason.TOO_LARGE and not may_take_long and quick_limits != limits:
                return Kind.TAKES_LONG, b""
            return Kind.ERROR, error.to_json()
        return Kind.PIXELS, pixels.tobytes()

    def out_of_memory(num_bytes: int) -> ImageError:
        limit = f"{memory_limit_bytes(limits) // 2**20:,} MiB"
        what = "({} bytes) takes too much memory to decode"
        return ImageError(ImageReason.OUT_OF_MEMORY, what, num_bytes, limit, "send a smaller one")

    _die_with(owner_pid)
    # Pillow refuses twice as many before it makes room for them; we could only look afterwards.
    Image.MAX_IMAGE_PIXELS = (limits.max_pixels + 1) // 2
    answer_to(b"makes Pillow load its formats now", True)
    _confine(memory_limit_bytes(limits))
    connection = socket.socket(fileno=0)
    _send(connection, Kind.READY, b"")
    with connection.makefile("rb") as requests:
        while len(header := requests.read(REQUEST.size)) == REQUEST.size:
            num_bytes, may_take_long = REQUEST.unpack(header)
            data = requests.read(num_bytes)
            if len(data) < num_bytes:
                break
            # Ends the process wherever it is, inside a C library too.
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS if may_take_long else QUICK_CPU_SECONDS)
            answer = answer_to(data, bool(may_take_long))
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(connection, *answer)


def _names_of_limits() -> list[str]:
    return [field.name for field in dataclasses.fields(ImageLimits)]


def _send(connection: socket.socket, kind: Kind, body: bytes) -> None:
    connection.sendall(ANSWER.pack(kind, len(body)) + body)


def _die_with(owner_pid: int) -> None:
    """Also while a photo is decoded and the socket is not read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's affair
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner_pid:  # it ended before the line above
        sys.exit(1)


def _confine(memory_bytes: int) -> None:
    """From here on: no more memory than that, no core dump, no writing to files, and no word on stderr."""
    now = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert now is not None
    os.dup2(1, 2)  # /dev/null: libraries print what they think of a file
    for limit, value in (
        (resource.RLIMIT_AS, int(now[1]) * 1024 + memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        # Never above a limit the administrator has set.
        _, hard = resource.getrlimit(limit)
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (least, least))
