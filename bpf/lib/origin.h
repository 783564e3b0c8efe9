/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where a packet to a pod came into this node: an address belongs to an interface. What the node itself sends has come in
 * nowhere; what its pods send came from their veths, or from the bridge that routed it. Anyone on the network can write
 * those addresses into a packet. */
#ifndef NN_ORIGIN_H
#define NN_ORIGIN_H

#include "conntrack.h"
#include "policy.h"

#define NN_LOOPBACK_IFINDEX 1
#define NN_AF_INET 2
#define NN_AF_INET6 10

/* The interface that leads to `addr`, for a packet that comes in by `ifindex`; 0: none, or `ifindex` does not forward. */
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
	/* The neighbour need not be known, nor the packet fit: the way is asked for, and nothing is sent. */
	if (result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH ||
	    result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return route.ifindex;
	return 0;
}

/* The first packet of a flow to a pod, with its source's identity in the context. The node's own addresses from
 * elsewhere are the world: a forgery, or what the node has masqueraded; policy is asked. A local pod's address counts from
 * that pod's veth and from the interface that leads back to it. Returns 0 or a drop code. */
NN_GLOBAL int nn_check_origin(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	const struct nn_endpoint_entry *source;
	__u32 ifindex = ctx->ingress_ifindex;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	if (ifindex == 0 || ifindex == NN_LOOPBACK_IFINDEX)
		return 0;
	if (context->src_identity == NN_IDENTITY_HOST) {
		context->src_identity = NN_IDENTITY_WORLD;
		context->outside = 1;
		return 0;
	}
	source = nn_endpoint_lookup(&context->packet.tuple.saddr);
	if (!source || source->ifindex == ifindex)
		return 0;
	return nn_route_of(ctx, &context->packet.tuple.saddr, ifindex) == ifindex ? 0 : NN_DROP_INVALID_SOURCE_IP;
}

/* A known flow's peer stays what it was when the flow was opened. */
NN_INLINE void nn_keep_origin(struct nn_context *context, const struct nn_ct_entry *entry)
{
	if (!(entry->flags & NN_CT_OUTSIDE))
		return;
	if (context->direction == NN_EGRESS)
		context->dst_identity = NN_IDENTITY_WORLD;
	else
		context->src_identity = NN_IDENTITY_WORLD;
}

#endif
