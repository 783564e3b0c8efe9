"""The NetworkPolicy engine: parses, resolves, explains and lints networking.k8s.io/v1 policies, and computes their
matrix.

Pure: no I/O, no clock, no imports from nodenet. Policies are additive allow lists without an order among them; the
rules are those of the Kubernetes API documentation (networking.k8s.io/v1 NetworkPolicySpec).
"""
