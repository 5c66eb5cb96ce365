# SPDX-License-Identifier: Apache-2.0
"""The program of a worker process, which decodes untrusted image files and does nothing else.

Hostile files attack decoders, and a thread that runs one cannot be stopped. So decoders run in processes whose memory,
files and processor time the kernel limits, and which can be killed. They have no network access, settings or secrets.
`worker_process.py` starts them and talks to them.

Protocol, on file descriptor 0, a socket: the first answer says that the worker is ready. Then, one at a time, a request
(`REQUEST`, then the file) and its answer (`ANSWER`, then pixels or an `ImageError`; after the pixels for a catalogue
`SIZE` and the thumbnail). The end of the socket means that the gateway is gone.
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
from captioner.preprocessing import ImageLimits, Region, decode_photo
from captioner.small_copy import small_copy_of

# Size of the file in bytes; whether it may be slow to decode; x, y, width and height of the region, 0 0 0 0: none.
REQUEST = struct.Struct("<IB4d")
ANSWER = struct.Struct("<BI")  # Kind; number of bytes that follow
SIZE = struct.Struct("<II")  # width and height of the photo, in pixels

# Processor time of one photo. The largest legal photos take 0.8 s. The limit is below the promised 2 s, since replacing
# the worker takes 0.3 s and the kernel checks the time at its clock ticks only.
CPU_SECONDS = 1.6

# The most demanding legal photo, a transparent WebP rotated by its EXIF, takes 20 bytes per pixel.
_BYTES_PER_PIXEL = 28
_SPARE_BYTES = 64 * 2**20

# Photos of up to this many pixels take about 60 ms, or 0.1 s with every known trick of a hostile file. A file that
# takes longer uses an unknown trick and must not keep others waiting.
_QUICK_PIXELS = 2_000_000
QUICK_CPU_SECONDS = 0.5

_OPEN_FILES = 16  # Pillow reads a module of its own now and then
_PR_SET_PDEATHSIG = 1


class Kind(enum.IntEnum):
    """What an answer is."""

    READY = 0
    PIXELS = 1
    ERROR = 2  # ImageError as JSON
    TAKES_LONG = 3  # not decoded yet: ask again with `may_take_long`


def memory_limit_bytes(limits: ImageLimits) -> int:
    """Return the address space for one photo, beyond that of the idle worker: about 0.7 GiB for 25 megapixels."""
    return _SPARE_BYTES + _BYTES_PER_PIXEL * limits.max_pixels


def main() -> None:
    """Run the worker.

    Its arguments are the owner's process id, the encoder's height, width and fit, 1 for a catalogue or else 0, then the
    fields of `ImageLimits`.
    """
    owner_pid, height, width = (int(argument) for argument in sys.argv[1:4])
    (fit,) = (one for one in FITS if one == sys.argv[4])
    is_for_catalogue = sys.argv[5] == "1"
    limits = ImageLimits(**dict(zip(_names_of_limits(), map(int, sys.argv[6:]), strict=True)))
    quick_limits = dataclasses.replace(limits, max_pixels=min(limits.max_pixels, _QUICK_PIXELS))

    def answer_to(data: bytes, may_take_long: bool, region: Region | None = None) -> tuple[Kind, bytes]:
        try:
            pixels = decode_photo(
                data,
                height=height,
                width=width,
                fit=fit,
                limits=limits if may_take_long else quick_limits,
                region=region,
            )
            if is_for_catalogue:
                small = small_copy_of(data, limits=limits)
                return Kind.PIXELS, pixels.tobytes() + SIZE.pack(small.width, small.height) + small.thumbnail
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
    # Pillow refuses twice as many pixels before it allocates them; our own check comes only afterwards.
    Image.MAX_IMAGE_PIXELS = (limits.max_pixels + 1) // 2
    answer_to(b"Pillow loads its formats now", True)
    _confine(memory_limit_bytes(limits))
    connection = socket.socket(fileno=0)
    _send(connection, Kind.READY, b"")
    with connection.makefile("rb") as requests:
        while len(header := requests.read(REQUEST.size)) == REQUEST.size:
            num_bytes, may_take_long, *place = REQUEST.unpack(header)
            data = requests.read(num_bytes)
            if len(data) < num_bytes:
                break
            # Ends the process at any point, also inside a C library.
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS if may_take_long else QUICK_CPU_SECONDS)
            answer = answer_to(data, bool(may_take_long), Region(*place) if any(place) else None)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(connection, *answer)


def _names_of_limits() -> list[str]:
    return [field.name for field in dataclasses.fields(ImageLimits)]


def _send(connection: socket.socket, kind: Kind, body: bytes) -> None:
    connection.sendall(ANSWER.pack(kind, len(body)) + body)


def _die_with(owner_pid: int) -> None:
    """Make the kernel end this process with its owner, also while it decodes and does not read the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway handles Ctrl-C
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner_pid:  # the owner ended before the line above
        sys.exit(1)


def _confine(memory_bytes: int) -> None:
    """Limit this process from now on: memory and open files; no core dump, no written files, no stderr."""
    now = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert now is not None
    os.dup2(1, 2)  # /dev/null: libraries print warnings about files
    for limit, value in (
        (resource.RLIMIT_AS, int(now[1]) * 1024 + memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        # Never above the administrator's limit.
        _, hard = resource.getrlimit(limit)
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (least, least))
