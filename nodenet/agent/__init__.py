"""The node agent: the composition root that joins the Kubernetes API, the compiler, the kernel and the sockets."""
