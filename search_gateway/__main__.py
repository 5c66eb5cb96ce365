# SPDX-License-Identifier: Apache-2.0
"""`captrieve-server` serves; `catalog build PHOTOS --out CATALOGUE` makes a catalogue, `keys add NAME` an API key.

`providers check` asks every configured provider once.

`python -m search_gateway` is the same program. Settings come from the environment (`CAPTRIEVE_...`) and from a TOML
file; docs/configuration.md lists them. Exit codes: 0 ended well, 2 wrong settings or arguments, 3 could not start.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends it without a traceback

from captioner.model_contract import ContractError
from search_gateway import providers_command
from search_gateway.catalog.base import CatalogError
from search_gateway.catalog_command import build, prune
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError, SearchError
from search_gateway.observability.logs import flush_log, set_up_logging
from search_gateway.observability.tracing import TracingError
from search_gateway.ranking.calibration import with_calibration
from search_gateway.security import api_keys
from search_gateway.server import StartError, serve
from search_gateway.triton.embedded import TritonStartError


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; argparse ends the program where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="captrieve-server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    help_text = "TOML file of settings; default: CAPTRIEVE_SETTINGS"
    parser.add_argument("--settings", type=Path, metavar="FILE", help=help_text)
    shared = argparse.ArgumentParser(add_help=False)  # the option is accepted after a command, too
    shared.add_argument("--settings", type=Path, metavar="FILE", help=help_text, default=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="run the gateway (also without a command)", parents=[shared])
    catalog = commands.add_parser("catalog", help="a searchable catalogue of your own photos")
    actions = catalog.add_subparsers(dest="action", metavar="ACTION", required=True)
    builder = actions.add_parser("build", help="create or update a catalogue", parents=[shared])
    builder.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of photos")
    builder.add_argument(
        "--titles",
        type=Path,
        metavar="CSV",
        help="list of titles: Kaggle's styles.csv, or any CSV file with a column of files or ids and one of titles; "
        "without it products keep their titles",
    )
    builder.add_argument("--file-column", metavar="NAME", help="column of --titles with files or ids")
    builder.add_argument("--title-column", metavar="NAME", help="column of --titles with the titles")
    builder.add_argument(
        "--force", action="store_true", help="take a list of titles of which fewer than half have a photo"
    )
    builder.add_argument(
        "--replace", action="store_true", help="build again beside the catalogue, which is searched until all is there"
    )
    address_text = "a file, milvus://HOST:PORT/NAME or postgresql://HOST/DATABASE?catalog=NAME"
    builder.add_argument("--out", metavar="CATALOGUE", required=True, help=address_text)
    pruner = actions.add_parser(
        "prune", help="drop what a server has of other models and unfinished builds", parents=[shared]
    )
    pruner.add_argument("catalogue", metavar="CATALOGUE", help=address_text)
    keys = commands.add_parser("keys", help="API keys of the gateway's callers")
    api_keys.add_arguments(keys, shared)
    providers_command.add_arguments(commands.add_parser("providers", help="the image searches that are set"), shared)
    return parser.parse_args(argv)


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the program; returns its exit code."""
    args = parse_args(argv)
    set_up_logging()
    # Pillow warns about odd files, which callers may send; the gateway refuses bad ones by its own limits.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        config = GatewayConfig.from_env(environ, args.settings)
        set_up_logging(config.log_format, config.log_level)
        if args.command == "catalog" and args.action == "prune":
            return prune(config, args.catalogue)
        if args.command == "catalog":
            return build(
                config,
                args.photos,
                args.titles,
                args.out,
                file_column=args.file_column,
                title_column=args.title_column,
                force=args.force,
                replace=args.replace,
            )
        if args.command == "keys":
            return api_keys.run_command(args, config.api_keys)
        if args.command == "providers":
            return providers_command.run_command(args, config)
        reread = functools.partial(GatewayConfig.from_env, environ, args.settings)
        set_up_logging(config.log_format, config.log_level, is_queued=True)
        try:
            asyncio.run(serve(with_calibration(config), reread, ends_process=True))
        finally:
            flush_log()  # what is printed below is the last line
    except (ConfigError, ContractError, CatalogError) as error:
        print(f"captrieve: {error}", file=sys.stderr)
        return 2
    except (StartError, TracingError, TritonStartError, SearchError, OSError) as error:
        print(f"captrieve: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    return 0


def run() -> None:
    """The console script."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:], os.environ))


if __name__ == "__main__":
    run()
