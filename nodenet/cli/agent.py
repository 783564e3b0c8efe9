"""`nodenet agent`: the node agent in the foreground."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from nodenet.cli.shown import ShownError
from nodenet.config import Config


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="YAML file; docs/operations.md lists every key.",
)
@click.option("--check", is_flag=True, help="Check the configuration, then whether the agent can start here, and exit.")
@click.option("-v", "--verbose", is_flag=True, help="Log every write and watch event.")
def agent(config_file: Path, check: bool, verbose: bool) -> None:
    """Run the node agent in the foreground: policy, Services and flows of this node, until SIGTERM.

    Programs and maps stay in the kernel when the agent ends; the next start continues with them.
    """
    from nodenet.agent.settings import read_config

    config = read_config(config_file)
    if check:
        click.echo(f"{config_file}: valid: node {config.node_name}")
        _check_node(config)
        return
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    from nodenet.agent.main import run

    run(config)


def _check_node(config: Config) -> None:
    """Raises the last problem of this node, after the others are printed."""
    from nodenet.agent.preflight import problems

    found = list(problems(config))
    for problem in found[:-1]:
        ShownError(problem).show()
    if found:
        raise found[-1]
    click.echo(f"node {config.node_name}: the agent can start")
