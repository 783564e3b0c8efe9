"""Renders the Service model as input for each kernel mechanism, as kube-proxy programs it. Pure: text in, text out."""

from __future__ import annotations

import base64
import hashlib


def short_hash(text: str, length: int) -> str:
    """The hash in kube-proxy's chain names: the start of a base32 SHA-256 (16 letters for iptables, 8 for nftables)."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:length]
