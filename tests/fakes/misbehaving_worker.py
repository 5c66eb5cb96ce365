# SPDX-License-Identifier: Apache-2.0
"""A photo worker that misbehaves as the first bytes of a file say: it hangs, allocates, crashes, lies or quits.

For other files it is the real worker. It runs as a program that sees no other packages than this repository's.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from captioner.preprocessing import decode_photo
from search_gateway.imaging import worker_main


def misbehave(data: bytes, **options: Any) -> Any:
    match data[:4]:
        case b"HANG":
            time.sleep(3600)
        case b"BURN":
            while True:
                pass
        case b"EATS":
            eaten = []
            while True:
                eaten.append(bytes(2**26))  # counted, but never touched: it takes no time
        case b"CRSH":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"LIES":
            os.write(0, worker_main.ANSWER.pack(worker_main.Kind.PIXELS, 3) + b"abc")
            time.sleep(3600)
        case b"QUIT":
            os._exit(0)
        case b"FILE":
            Path(data[4:].decode()).write_text("taken over", encoding="ascii")
        case b"LATE":
            time.sleep(float(data[4:12]))
            data = data[12:]
    return decode_photo(data, **options)


if __name__ == "__main__":
    setattr(worker_main, "decode_photo", misbehave)  # noqa: B010  # a name that the module only imports
    worker_main.main()
