/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* New entries of nn_ct. The owner of a flow is who opened it. So a pod that opens flows without end evicts its own ones:
 * its own entries, and those of the pods that it calls. Packets of known flows do not use this file. */
#ifndef NN_CT_CREATE_H
#define NN_CT_CREATE_H

#include "conntrack.h"
#include "fair.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 6553);
	__type(key, __u32);
	__type(value, struct nn_fair_bucket);
} nn_ct_slot SEC(".maps");

/* Unanswered flows go first, then those idle longest. */
NN_INLINE __u64 nn_ct_look(const void *found, const struct nn_ct_key *key, const struct nn_context *context)
{
	const struct nn_ct_entry *entry = found;
	__s32 idle = context->now - entry->last_seen;

	if (idle > (__s32)nn_ct_lifetime(entry->flags, key->protocol))
		return NN_FAIR_EXPIRED;
	return (idle > 0 ? idle : 0) | (entry->flags & NN_CT_SEEN_REPLY ? 0 : NN_FAIR_FIRST);
}

NN_FAIR_TABLE(nn_ct, nn_config.ct_buckets, nn_ct_look, NN_TABLE_CT)

/* Who pays for the new flow: the pod that opened it, or the pod that an outsider calls. */
NN_INLINE __u32 nn_ct_owner_of(const struct nn_view *view, const void *key)
{
	if ((view->direction == NN_EGRESS) != (view->is_reply != 0))
		return nn_owner_endpoint(view->endpoint_id);
	if (view->is_local)
		return nn_owner_endpoint(view->sender_id);
	return nn_owner_remote(view, &((const struct nn_ct_key *)key)->remote, view->peer_identity);
}

NN_INLINE int nn_ct_create(const struct nn_context *context, const struct nn_view *view)
{
	/* A connection that is picked up midway may start with a reply: then the other side opened it. */
	struct nn_ct_entry entry = { .last_seen = context->now,
				     .revision = context->state.generation,
				     .rule_id = view->rule_id,
				     .rev_nat_index = view->rev_nat_index,
				     .direction = view->is_reply ? NN_INGRESS + NN_EGRESS - view->direction :
								   view->direction,
				     .flags = view->ct_flags | view->nat | (view->outside ? NN_CT_OUTSIDE : 0),
				     .endpoint_id = view->endpoint_id,
				     .created = context->now };

	return nn_fair_insert(&nn_ct, &view->flow, &entry, view, nn_ct_owner_of, nn_ct_claim);
}

#endif
