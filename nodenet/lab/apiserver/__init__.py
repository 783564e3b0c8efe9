"""The lab's Kubernetes API endpoint: in memory, on aiohttp, for the kinds that a node's network agent needs.

Embed it (this package imports nothing by itself, so that the command line starts quickly):

    from nodenet.lab.apiserver.server import ApiServer, serve

    api = ApiServer(service_cidrs=("10.96.0.0/16", "fd00:10:96::/112"))
    async with serve(api, addresses=[("127.0.0.1", 0)]) as server:
        print(server.urls)                                              # ["http://127.0.0.1:40123"]
        await api.client.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}})
        async for event in api.client.watch("Pod"):                     # ADDED for all that exists, then changes
            ...

Everything runs in the event loop that serves it. `api.client` is the in-process Client (client.py), with the same
admission and validation as over HTTP and with status.ApiError for errors. Other processes use http_client.HttpObjects.

A kubelet watches Pods with fields="spec.nodeName=<node>" and writes with `client.patch("Pod", name, {"status": ...},
namespace, subresource="status")`. Deletion: a pod that is on a node first gets metadata.deletionTimestamp. The kubelet
stops it and calls `client.delete("Pod", name, namespace, grace=0, uid=...)`, which removes the object. The API removes
a pod at once if it is on no node, is finished (Succeeded, Failed), or is deleted with grace 0. The kubelet then cleans
up on the DELETED event.
"""
