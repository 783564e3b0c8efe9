"""The lab's control plane beside the API endpoint: workloads, scheduler, EndpointSlices, namespaces, garbage.

    async with asyncio.TaskGroup() as group:
        group.create_task(run(api, Endpoint(["10.0.0.1"], 6443)))       # from controllers.run and kubernetes_service

Everything is driven by watch events in the API endpoint's own process; a controller may be asked about anything at
any time and does only what is missing. Pods become Running and Ready by what a kubelet writes into their status.
"""
