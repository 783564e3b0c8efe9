/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Replaces the source port of datagrams to a Service if the pod already uses this port for the same backend, through
 * another Service or directly. Replies would have the same addresses and ports in both cases, so only a different port
 * separates them. */
#ifndef NN_LB_PORT_H
#define NN_LB_PORT_H

#include "conntrack.h"
#include "lb.h"
#include "rewrite.h"
#include "sock_service.h"

#define NN_PORT_FIRST 32768
#define NN_PORT_MASK 0x7fff
#define NN_PORT_STEP 7919
#define NN_PORT_TRIES 4

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct nn_ct_key);
	__type(value, struct nn_lb_port_entry);
} nn_lb_port SEC(".maps");

/* The pod's own port that the flow's port replaced; 0: not known any more. */
NN_INLINE __be16 nn_lb_port_of(const struct nn_ct_key *key, __u16 endpoint_id)
{
	struct nn_lb_port_entry *entry = bpf_map_lookup_elem(&nn_lb_port, key);

	return entry && entry->endpoint_id == endpoint_id ? entry->port : 0;
}

/* True if the pod already uses these ends for another purpose. The view names the backend. Without a separate port,
 * replies would get the wrong source address. */
NN_INLINE int nn_lb_port_is_needed(struct __sk_buff *ctx, struct nn_context *context, const struct nn_view *view)
{
	const struct nn_ct_key *flow = &view->flow;
	struct nn_ct_entry *taken;

	/* The same socket already uses this backend for another Service. */
	if (nn_packet_service(ctx, context, flow))
		return 1;
	taken = nn_ct_lookup(flow, view->endpoint_id, context->now);
	if (!taken)
		return 0;
	return (taken->flags & (NN_CT_TRANSLATED | NN_CT_PORT)) != NN_CT_TRANSLATED ||
	       taken->rev_nat_index != view->rev_nat_index;
}

/* True if the port is free, or this flow already has it. */
NN_INLINE int nn_lb_port_is_free(const struct nn_context *context, const struct nn_view *view, __be16 own)
{
	struct nn_lb_port_entry *held = bpf_map_lookup_elem(&nn_lb_port, &view->flow);

	if (held && held->endpoint_id == view->endpoint_id)
		return held->port == own && held->rev_nat_index == view->rev_nat_index;
	return !nn_ct_lookup(&view->flow, view->endpoint_id, context->now);
}

/* Choose the port for a new flow to the backend in the egress view: the first free one of a few candidates. They depend
 * on the flow's number only, so that the same flow gets the same port again. Returns 0 or a drop code. */
NN_GLOBAL int nn_lb_port_choose(__u32 number)
{
	struct nn_context *context = nn_context_now();
	struct nn_view *view;
	__be16 own, port;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	view = nn_view_of(context, NN_EGRESS);
	own = context->packet.tuple.sport;
	for (int i = 0; i < NN_PORT_TRIES; i++) {
		port = bpf_htons(NN_PORT_FIRST + ((number + i * NN_PORT_STEP) & NN_PORT_MASK));
		view->flow.pod_port = port;
		if (port != own && nn_lb_port_is_free(context, view, own)) {
			context->nat.source_port = port;
			return 0;
		}
	}
	return NN_DROP_CT_UNKNOWN_STATE;
}

/* Send a packet to a backend from the port in the context. The entry is written for each packet, so that the LRU does
 * not evict it while the flow is in use. Returns 0 or a drop code. */
NN_GLOBAL int nn_lb_port_apply(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct nn_lb_port_entry entry = {};
	const struct nn_view *view;
	struct nn_ct_key key;
	struct nn_addr pod;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	view = nn_view_of(context, NN_EGRESS);
	nn_ct_key_of(&context->packet.tuple, NN_EGRESS, &key);
	entry.rev_nat_index = view->rev_nat_index;
	entry.port = key.pod_port;
	entry.endpoint_id = view->endpoint_id;
	key.pod_port = context->nat.source_port;
	if (bpf_map_update_elem(&nn_lb_port, &key, &entry, BPF_ANY) < 0)
		return NN_DROP_CT_INSERT_FAILED;
	pod = key.pod;
	return nn_rewrite_source(ctx, &context->packet, &pod, context->nat.source_port);
}

#endif
