// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* tc programs on the interfaces that lead out of the node: what comes in (ingress), and what the node itself and its pods
 * send out (egress). The stages are those of endpoint.bpf.c. There is no policy stage, because no pod is on either side
 * of such an interface: a pod's veth has its policy. Only packets to Services, and those that have the ends of their
 * flows, are changed or dropped. All others are the node's own traffic, which must go on whatever these programs find. */
#include "lib/link.h"
#include "lib/refuse.h"
#include "lib/transit.h"

/* True if the frame is not for this interface: one that a bridge or a device in promiscuous mode shows too, or one of a
 * VLAN, which has an interface of its own. */
NN_INLINE int nn_netdev_is_other(const struct __sk_buff *ctx, __u32 side)
{
	return ctx->vlan_present || (side == NN_INGRESS && ctx->pkt_type != PACKET_HOST);
}

/* Parse and translate. A packet that cannot be parsed is left to the node's stack. Returns 0 or a drop code. */
NN_INLINE int nn_netdev(struct __sk_buff *ctx, struct nn_context *context, __u32 side)
{
	int layer = nn_parse_ethernet(ctx, &context->packet);

	if (layer != NN_LINK_IPV4 && layer != NN_LINK_IPV6)
		return 0;
	if (nn_parse_ip(ctx, &context->packet, layer) < 0 || context->packet.early_fragment)
		return 0;
	return nn_transit(ctx, context, side);
}

/* Drop a packet to a Service, or return the answer that refuses it, by the interface on which it came. */
NN_INLINE int nn_netdev_drop(struct __sk_buff *ctx, struct nn_context *context, __u32 side, int reason)
{
	__u32 service = side == NN_INGRESS ? nn_view_of(context, NN_INGRESS)->rev_nat_index : 0;
	struct nn_view *view = nn_view_new(context, NN_INGRESS);
	__u32 ifindex = ctx->ifindex;

	view->rev_nat_index = service;
	view->peer_identity = nn_identity_of(&context->packet.tuple.saddr, context->state.generation);
	nn_drop(ctx, NN_INGRESS, reason);
	if (!context->nat.refused || nn_refusal_of(ctx, &context->packet) < 0 || nn_answer_ethernet(ctx) < 0)
		return TC_ACT_SHOT;
	return bpf_redirect(ifindex, 0);
}

NN_INLINE int nn_netdev_stages(struct __sk_buff *ctx, __u32 side)
{
	struct nn_context *context;
	int result;

	/* A constant: without Services at the node's interfaces nothing of this is in the program. */
	if (!nn_config.serve_uplinks || nn_netdev_is_other(ctx, side))
		return TC_ACT_UNSPEC;
	context = nn_context_now();
	if (!context || !nn_context_take(context))
		return TC_ACT_UNSPEC;
	nn_context_init(context, side);
	result = nn_netdev(ctx, context, side);
	result = result < 0 ? nn_netdev_drop(ctx, context, side, result) : TC_ACT_UNSPEC;
	nn_context_release(context);
	return result;
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
