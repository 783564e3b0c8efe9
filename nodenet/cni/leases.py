"""The leases of all networks of a node, with their pods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nodenet.cni.ipam import Store
from nodenet.cni.records import Records
from nodenet.errors import CannotRunError


def list_leases(data_dir: Path, run_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per lease, sorted by network and address, and a sentence for each endpoint file that cannot be read.

    `namespace` and `pod` are "" if no endpoint file has the owner. Raises CannotRunError if a folder is not readable.
    """
    records, problems = Records(run_dir).all()
    pods = {record.owner: record.endpoint.pod for record in records}
    rows = []
    try:
        for folder in sorted(path for path in data_dir.iterdir() if path.is_dir()) if data_dir.is_dir() else []:
            held = Store(data_dir, folder.name).leases()
            for address, owner in sorted(held.items(), key=lambda item: (item[0].version, int(item[0]))):
                pod = pods.get(owner)
                rows.append(
                    {
                        "network": folder.name,
                        "address": str(address),
                        "container": owner.container_id,
                        "ifname": owner.ifname,
                        "namespace": pod.namespace if pod else "",
                        "pod": pod.name if pod else "",
                    }
                )
    except PermissionError as error:
        raise CannotRunError(f"{error.filename}: {error.strerror}", "run it as root") from error
    return rows, problems
