"""The lab's control plane beside the API endpoint: workloads, scheduler, EndpointSlices, namespaces, garbage.

    async with asyncio.TaskGroup() as group:
        group.create_task(run(api, Endpoint(["10.0.0.1"], 6443)))       # from controllers.run and kubernetes_service

Watch events in the API endpoint's own process drive everything. A controller may be called for any key at any time; it
does only what is missing. Pods become Running and Ready when a kubelet writes that into their status.
"""
