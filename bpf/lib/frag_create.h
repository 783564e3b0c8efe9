/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* New entries of nn_frag: a first fragment that passed. The owner is who sent it. So a pod that sends first fragments
 * without end evicts its own datagrams. */
#ifndef NN_FRAG_CREATE_H
#define NN_FRAG_CREATE_H

#include "fair.h"
#include "fragment.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 409);
	__type(key, __u32);
	__type(value, struct nn_fair_bucket);
} nn_frag_slot SEC(".maps");

NN_INLINE __u64 nn_frag_look(const void *entry, const struct nn_ct_key *key, const struct nn_context *context)
{
	__u32 age = nn_frag_age(entry, context->time);

	(void)key;
	return age > NN_FRAG_LIFETIME ? NN_FAIR_EXPIRED : age;
}

NN_FAIR_TABLE(nn_frag, nn_config.frag_buckets, nn_frag_look, NN_TABLE_FRAG)

/* Who sent the datagram. */
NN_INLINE __u32 nn_frag_owner_of(const struct nn_view *view, const void *key)
{
	const struct nn_addr *sender = &((const struct nn_frag_key *)key)->saddr;

	if (view->direction == NN_EGRESS)
		return nn_owner_endpoint(view->endpoint_id);
	/* The view of a known flow has no identity of the peer. */
	return nn_owner_remote(view, sender, nn_identity_of(sender, nn_generation()));
}

/* If there is no room, later fragments count as early ones. */
NN_GLOBAL int nn_frag_create(struct __sk_buff *ctx, __u32 side)
{
	struct nn_context *context = nn_context_now();
	struct nn_frag_entry first = {};
	struct nn_frag_key *key;

	if (!context)
		return 0;
	first.sport = context->packet.tuple.sport;
	first.dport = context->packet.tuple.dport;
	first.protocol = context->packet.tuple.protocol;
	first.headers = context->packet.offset - context->packet.fragment_start + nn_transport_header(&context->packet);
	first.created = context->time >> NN_FRAG_TIME_SHIFT;
	/* Not on the stack: the call chain would exceed 512 bytes. */
	key = (struct nn_frag_key *)&context->key;
	nn_frag_key_of(&context->packet, ctx->ifindex, key);
	return nn_fair_insert(&nn_frag, key, &first, nn_view_of(context, side), nn_frag_owner_of, nn_frag_claim);
}

/* Later fragments get the ports from this entry and are judged by policy with them. So it may also be of a first fragment
 * that policy drops. Without the service stage it is made only after the first fragment passed. */
NN_INLINE void nn_remember_fragment(struct __sk_buff *ctx, const struct nn_packet *packet, __u32 side)
{
	if (packet->first_fragment)
		nn_frag_create(ctx, side);
}

#endif
