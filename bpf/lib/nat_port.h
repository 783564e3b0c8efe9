/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Replaces the source port of a flow to a Service if the pod already uses this port for the same backend, through another
 * Service or directly. Replies would have the same addresses and ports in both cases, so only a different port separates
 * them. */
#ifndef NN_NAT_PORT_H
#define NN_NAT_PORT_H

#include "lb.h"
#include "nat.h"
#include "sock_service.h"

#define NN_PORT_FIRST 32768
#define NN_PORT_MASK 0x7fff
#define NN_PORT_STEP 7919
#define NN_PORT_TRIES 4

/* True if the pod's datagrams already use these ends for another purpose. The view's flow names the backend. Without a separate
 * port, replies would get the wrong source address. */
NN_INLINE int nn_nat_port_is_needed(struct __sk_buff *ctx, struct nn_context *context, const struct nn_view *view)
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

/* True if the port in the view's flow is free, or this flow already has it. */
NN_INLINE int nn_nat_port_is_free(const struct nn_context *context, const struct nn_view *view)
{
	const struct nn_nat *nat = &context->nat;
	const struct nn_nat_entry *held = bpf_map_lookup_elem(&nn_nat, &nat->reply_key);
	const struct nn_ct_entry *taken;

	if (held && held->endpoint_id == view->endpoint_id)
		return held->dport == nat->key.sport && held->sport == nat->key.dport &&
		       nn_addr_equal(&held->saddr, &nat->key.daddr);
	taken = nn_ct_lookup(&view->flow, view->endpoint_id, context->now);
	/* This flow had the port until its entries were evicted. */
	return !taken || ((taken->flags & NN_CT_PORT) && taken->rev_nat_index == view->rev_nat_index);
}

/* Choose the port for a new flow to the backend in the context: the first free one of a few candidates. They depend on
 * the flow's number only, so that the same flow gets the same port again. Returns 0 or a drop code. */
NN_GLOBAL int nn_nat_port_choose(__u32 number)
{
	struct nn_context *context = nn_context_now();
	struct nn_view *view;
	struct nn_nat *nat;
	__be16 port;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	view = nn_view_of(context, NN_EGRESS);
	nat = &context->nat;
	nn_nat_other_of(&nat->key, &nat->entry, &nat->reply_key);
	for (int i = 0; i < NN_PORT_TRIES; i++) {
		port = bpf_htons(NN_PORT_FIRST + ((number + i * NN_PORT_STEP) & NN_PORT_MASK));
		view->flow.pod_port = nat->reply_key.dport = port;
		if (port != nat->key.sport && nn_nat_port_is_free(context, view)) {
			nat->entry.sport = port;
			return 0;
		}
	}
	return NN_DROP_CT_UNKNOWN_STATE;
}

#endif
