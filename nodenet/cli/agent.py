"""`nodenet agent`: the node agent in the foreground."""

from __future__ import annotations

import logging
from pathlib import Path

import click


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="YAML file; docs/operations.md lists every key.",
)
@click.option("--check", is_flag=True, help="Check the configuration and exit.")
@click.option("-v", "--verbose", is_flag=True, help="Log every write and watch event.")
def agent(config_file: Path, check: bool, verbose: bool) -> None:
    """Run the node agent in the foreground: policy, Services and flows of this node, until SIGTERM.

    Programs and maps stay in the kernel when the agent ends; the next start continues with them.
    """
    from nodenet.agent.settings import read_config

    config = read_config(config_file)
    if check:
        click.echo(f"{config_file}: valid: node {config.node_name}")
        return
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    from nodenet.agent.main import run

    run(config)
