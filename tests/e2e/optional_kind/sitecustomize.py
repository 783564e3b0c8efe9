"""Runs at the start of every Python process that has this folder in PYTHONPATH: declares an optional kind.

The product has none yet. For agents, TestPolicy from a CustomResourceDefinition stands in the place of NetworkPolicy;
whatever else an agent does with it, it does because of the declaration. The lab's daemon only lets agents read it.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

if importlib.util.find_spec("nodenet"):
    from nodenet import kinds

    resource = kinds.ApiResource("policy.example.com", "v1alpha1", "TestPolicy", "testpolicies")
    optional = replace(kinds.NETWORK_POLICY, resource=resource, optional=True)
    is_agent = sys.orig_argv[1:4] == ["-m", "nodenet", "agent"]
    others = [kind for kind in kinds.API_KINDS if kind is not kinds.NETWORK_POLICY or not is_agent]
    kinds.API_KINDS = (*others, optional)
    kinds.KINDS = (*kinds.API_KINDS, kinds.ENDPOINT)
