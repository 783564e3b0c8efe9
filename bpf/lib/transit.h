/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The service stage on interfaces that lead out of the node. It follows the flows of nn_nat that belong to the node and
 * to no pod. Nothing opens such a flow yet. */
#ifndef NN_TRANSIT_H
#define NN_TRANSIT_H

#include "nat.h"

/* nn_nat_entry.endpoint_id of flows that the node translates for others. */
#define NN_NAT_OF_NODE 0

/* Find the half of a flow that this packet belongs to. Returns 1 with the entry in the context. */
NN_INLINE int nn_transit_find(struct nn_context *context, __u8 reply)
{
	struct nn_nat_entry *entry;

	nn_nat_key_of(&context->packet.tuple, reply, &context->nat.key);
	entry = bpf_map_lookup_elem(&nn_nat, &context->nat.key);
	if (!entry || entry->endpoint_id != NN_NAT_OF_NODE)
		return 0;
	if (reply)
		nn_nat_touch_reply(context, &context->nat.key, entry);
	else
		nn_nat_touch(entry, nn_ct_flags_of(&context->packet, 0) | NN_NAT_OPENED, context->now);
	context->nat.entry = *entry;
	return 1;
}

/* Translate a packet of a known flow, in either direction. Returns 0: the packet goes on. */
NN_GLOBAL int nn_service_transit(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	__u8 protocol;

	if (!context)
		return 0;
	protocol = context->packet.tuple.protocol;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return 0;
	if (nn_transit_find(context, 0) || nn_transit_find(context, 1))
		nn_nat_apply(ctx, &context->packet, &context->nat.entry);
	return 0;
}

#endif
