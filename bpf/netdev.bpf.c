// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* tc programs on the interfaces that lead out of the node: what comes in (ingress), and what the node itself and its pods
 * send out (egress). The stages are those of endpoint.bpf.c. There is no policy stage, because no pod is on either side
 * of such an interface: a pod's veth has its policy. No packet is dropped here: the node's own traffic must go on
 * whatever these programs find. */
#include "lib/link.h"
#include "lib/transit.h"

/* Parse and translate. A packet that cannot be parsed is left to the node's stack. */
NN_INLINE void nn_netdev(struct __sk_buff *ctx, struct nn_context *context)
{
	int layer = nn_parse_ethernet(ctx, &context->packet);

	if (layer != NN_LINK_IPV4 && layer != NN_LINK_IPV6)
		return;
	if (nn_parse_ip(ctx, &context->packet, layer) < 0 || context->packet.early_fragment)
		return;
	nn_service_transit(ctx);
}

NN_INLINE int nn_netdev_stages(struct __sk_buff *ctx, __u32 side)
{
	struct nn_context *context;

	/* A constant: without Services at the node's interfaces nothing of this is in the program. */
	if (!nn_config.serve_uplinks)
		return TC_ACT_UNSPEC;
	context = nn_context_now();
	if (!context || !nn_context_take(context))
		return TC_ACT_UNSPEC;
	nn_context_init(context, side);
	nn_netdev(ctx, context);
	nn_context_release(context);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int netdev_ingress(struct __sk_buff *ctx)
{
	return nn_netdev_stages(ctx, NN_INGRESS);
}

SEC("tc")
int netdev_egress(struct __sk_buff *ctx)
{
	return nn_netdev_stages(ctx, NN_EGRESS);
}

char nn_license[] SEC("license") = "Dual BSD/GPL";
