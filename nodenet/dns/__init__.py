"""The lab's DNS server: the Kubernetes DNS specification, version 1.1, from Services and EndpointSlices of the API."""
