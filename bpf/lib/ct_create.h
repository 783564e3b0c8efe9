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

	if (idle > (__s32)nn_ct_lifetime(entry, key->protocol))
		return NN_FAIR_EXPIRED;
	return (idle > 0 ? idle : 0) | (entry->flags & NN_CT_SEEN_REPLY ? 0 : NN_FAIR_FIRST);
}

NN_FAIR_TABLE(nn_ct, nn_config.ct_buckets, nn_ct_look, NN_TABLE_CT)

/* Who pays for the new flow: the pod that opened it, or the pod that an outsider calls. */
NN_INLINE __u32 nn_ct_owner_of(const struct nn_context *context, const void *key)
{
	__u32 peer = context->direction == NN_EGRESS ? context->dst_identity : context->src_identity;
	int by_pod = (context->direction == NN_EGRESS) != (context->is_reply != 0);

	/* A pod that calls itself through a Service (hairpin.h) is translated where it is called. */
	if (by_pod || (context->translated && context->direction == NN_INGRESS))
		return nn_owner_endpoint(context->endpoint_id);
	if (context->is_local)
		return nn_owner_endpoint(context->sender_id);
	return nn_owner_remote(context, &((const struct nn_ct_key *)key)->remote, peer);
}

NN_INLINE int nn_ct_create(const struct nn_ct_key *key, struct nn_context *context, __u32 revision, __u32 now)
{
	/* A connection that is picked up midway may start with a reply: then the other side opened it. */
	struct nn_ct_entry entry = { .last_seen = now,
				     .revision = revision,
				     .rule_id = context->rule_id,
				     .rev_nat_index = context->rev_nat_index,
				     .direction = context->is_reply ? NN_INGRESS + NN_EGRESS - context->direction :
								   context->direction,
				     .flags = context->ct_flags |
					      (context->translated ? NN_CT_TRANSLATED : 0) |
					      (context->translated && context->source_port ? NN_CT_PORT : 0) |
					      (context->outside ? NN_CT_OUTSIDE : 0),
				     .endpoint_id = context->endpoint_id,
				     .created = now };

	return nn_fair_insert(&nn_ct, key, &entry, context, nn_ct_owner_of, nn_ct_claim);
}

#endif
