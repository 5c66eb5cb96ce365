# SPDX-License-Identifier: Apache-2.0
"""Starts a gateway with its Triton, searches with one photo, prints the results, and stops both.

`make demo` runs it with a drawing, `make demo PHOTO=your.jpg` with your photo.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends it without a traceback

from captioner.model_contract import ContractError
from captrieve_client.cli import NOTHING_FOUND
from captrieve_client.cli import main as client_main
from demo.sample_catalogue import sample_catalogue
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError, SearchError
from search_gateway.ranking.calibration import with_calibration
from search_gateway.server import Gateway, StartError
from search_gateway.triton.embedded import TritonStartError

_INTERRUPTED = 130


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, required=True, help="JPEG, PNG, WebP or GIF file")
    parser.add_argument("--contact-sheet", type=Path, default=Path("contact-sheet.png"), help="picture of the results")
    parser.add_argument("--run", type=Path, default=Path(".run"), help="folder for the catalogue and logs")
    return parser.parse_args()


async def demo(config: GatewayConfig, photo: Path, sheet: Path) -> int:
    """Start a gateway and search with one photo; returns the exit code of the command `captrieve`.

    Args:
        config: of the gateway.
        photo: image file.
        sheet: where a picture of the results is written.
    """
    async with Gateway(config) as gateway:
        arguments = ["search", str(photo), "--address", gateway.address, "--contact-sheet", str(sheet)]
        try:
            code = await asyncio.to_thread(client_main, arguments)
            if code == NOTHING_FOUND:
                print("\nNo result passed the filters. Without filters, the best results are:\n", flush=True)
                open_filters = ["--min-visual", "-1", "--min-semantic", "0"]
                code = await asyncio.to_thread(client_main, [*arguments, *open_filters])
        except asyncio.CancelledError:  # Ctrl-C: the search fails with the gateway, which needs no message
            _print_nothing_more()
            raise
        return code


def _print_nothing_more() -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # open until the process ends


def main() -> int:
    """Run the command; returns its exit code."""
    args = parse_args()
    if not args.photo.is_file():
        print(f"there is no file {args.photo}; name a photo with PHOTO=your.jpg", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    try:
        config = with_calibration(GatewayConfig.from_env(os.environ))  # the settings that `make up` ranks with
        args.run.mkdir(parents=True, exist_ok=True)
        catalogue = config.catalog or sample_catalogue(config, args.run)
        config = config.replace(
            catalog=catalogue,
            listen_address="127.0.0.1:0",
            drain_seconds=0.0,  # after Ctrl-C
            admin_address="",  # it may run beside a gateway that has the default port
            triton_log=args.run / "triton.log",
        )
        return asyncio.run(demo(config, args.photo, args.contact_sheet))
    except (ConfigError, ContractError, StartError, TritonStartError, SearchError, OSError) as error:
        print(f"captrieve: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    exit_code = main()
    if exit_code == _INTERRUPTED:
        os._exit(exit_code)  # a thread may still wait for DuckDuckGo
    sys.exit(exit_code)
