"""The NetworkPolicy engine: networking.k8s.io/v1 read into types, resolved, explained, laid out as a matrix and linted.

Pure: no I/O, no clock, nothing of nodenet. Policies are additive allow lists without any order between them; the rules
are those of the Kubernetes API documentation (networking.k8s.io/v1 NetworkPolicySpec).
"""
