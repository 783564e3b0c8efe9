"""The node agent: the composition root that connects the Kubernetes API, the compiler, the kernel and the sockets."""
