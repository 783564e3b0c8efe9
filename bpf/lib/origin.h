/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Checks on which interface a packet to a pod entered this node, because anyone on the network can forge the addresses
 * of the node and of its pods. Packets of the node itself have no ingress interface. Packets of its pods come from
 * their veths, or from the bridge that routes them. */
#ifndef NN_ORIGIN_H
#define NN_ORIGIN_H

#include "conntrack.h"
#include "lb.h"
#include "policy.h"

#define NN_LOOPBACK_IFINDEX 1
#define NN_AF_INET 2
#define NN_AF_INET6 10

/* The interface on which the node routes a packet to `addr` that enters on `ifindex`; 0: no route, or `ifindex` does
 * not forward. */
NN_INLINE __u32 nn_route_of(struct __sk_buff *ctx, const struct nn_addr *addr, __u32 ifindex)
{
	struct bpf_fib_lookup route = { .ifindex = ifindex };
	long result;

	if (nn_addr_is_v4(addr)) {
		route.family = NN_AF_INET;
		route.ipv4_dst = addr->word[3];
	} else {
		route.family = NN_AF_INET6;
		__builtin_memcpy(route.ipv6_dst, addr, sizeof(route.ipv6_dst));
	}
	result = bpf_fib_lookup(ctx, &route, sizeof(route), 0);
	/* These results contain the route too: nothing is sent, so an unknown neighbour or a small MTU does not
	 * matter. */
	if (result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH ||
	    result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return route.ifindex;
	return 0;
}

/* Check the source address of the first packet of a flow to a pod. The ingress view holds the identity of the source. A
 * packet from outside with one of the node's own addresses gets the identity world: it is forged, or the node
 * masqueraded it, so policy is checked. The address of a local pod is valid from that pod's veth and from the interface
 * that leads back to the pod. Returns 0 or a drop code. */
NN_GLOBAL int nn_check_origin(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	const struct nn_endpoint_entry *source;
	struct nn_view *view;
	__u32 ifindex = ctx->ingress_ifindex;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	if (ifindex == 0 || ifindex == NN_LOOPBACK_IFINDEX)
		return 0;
	view = nn_view_of(context, NN_INGRESS);
	if (view->peer_identity == NN_IDENTITY_HOST) {
		view->peer_identity = NN_IDENTITY_WORLD;
		view->outside = 1;
		return 0;
	}
	/* No packet comes from a ClusterIP. Its entry would let the pod's own packets to the Service pass as replies. */
	if (nn_unserved(&context->packet.tuple.saddr) < 0)
		return NN_DROP_INVALID_SOURCE_IP;
	source = nn_endpoint_lookup(&context->packet.tuple.saddr);
	if (!source || source->ifindex == ifindex)
		return 0;
	return nn_route_of(ctx, &context->packet.tuple.saddr, ifindex) == ifindex ? 0 : NN_DROP_INVALID_SOURCE_IP;
}

/* The peer of a known flow keeps the identity that it had when the flow was opened. */
NN_INLINE void nn_keep_origin(struct nn_view *view, const struct nn_ct_entry *entry)
{
	if (entry->flags & NN_CT_OUTSIDE)
		view->peer_identity = NN_IDENTITY_WORLD;
}

#endif
