/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Replaces the source port of datagrams to a Service if the pod already uses this port for the same backend, through
 * another Service or directly. Replies would have the same addresses and ports in both cases, so only a different port
 * separates them. */
#ifndef NN_LB_PORT_H
#define NN_LB_PORT_H

#include "conntrack.h"
#include "lb.h"
#include "rewrite.h"

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

/* True if the pod already uses these ends for another purpose. `key` names the backend. Without a separate port,
 * replies would get the wrong source address. */
NN_INLINE int nn_lb_port_is_needed(const struct nn_context *context, const struct nn_ct_key *key, __u32 now)
{
	struct nn_ct_entry *taken;

	/* The same socket already uses this backend for another Service. */
	if (nn_sock_revnat_index(context->cookie, &key->remote, key->remote_port, key->protocol))
		return 1;
	taken = nn_ct_lookup(key, context->endpoint_id, now);
	if (!taken)
		return 0;
	return (taken->flags & (NN_CT_TRANSLATED | NN_CT_PORT)) != NN_CT_TRANSLATED ||
	       taken->rev_nat_index != context->rev_nat_index;
}

/* True if the port is free, or this flow already has it. */
NN_INLINE int nn_lb_port_is_free(const struct nn_context *context, const struct nn_ct_key *key, __be16 own)
{
	struct nn_lb_port_entry *held = bpf_map_lookup_elem(&nn_lb_port, key);

	if (held && held->endpoint_id == context->endpoint_id)
		return held->port == own && held->rev_nat_index == context->rev_nat_index;
	return !nn_ct_lookup(key, context->endpoint_id, context->now);
}

/* Choose the port for a new flow to the backend in the context: the first free one of a few candidates. They depend on
 * the flow's number only, so that the same flow gets the same port again. Returns 0 or a drop code. */
NN_GLOBAL int nn_lb_port_choose(__u32 number)
{
	struct nn_context *context = nn_context_now();
	struct nn_ct_key key = {};
	__be16 own;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	own = context->packet.tuple.sport;
	key.pod = context->packet.tuple.saddr;
	key.remote = context->backend;
	key.remote_port = context->backend_port;
	key.protocol = context->packet.tuple.protocol;
	for (int i = 0; i < NN_PORT_TRIES; i++) {
		key.pod_port = bpf_htons(NN_PORT_FIRST + ((number + i * NN_PORT_STEP) & NN_PORT_MASK));
		if (key.pod_port != own && nn_lb_port_is_free(context, &key, own)) {
			context->source_port = key.pod_port;
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
	struct nn_ct_key key;
	struct nn_addr pod;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	nn_ct_key_of(&context->packet.tuple, NN_EGRESS, &key);
	entry.rev_nat_index = context->rev_nat_index;
	entry.port = key.pod_port;
	entry.endpoint_id = context->endpoint_id;
	key.pod_port = context->source_port;
	if (bpf_map_update_elem(&nn_lb_port, &key, &entry, BPF_ANY) < 0)
		return NN_DROP_CT_INSERT_FAILED;
	pod = key.pod;
	return nn_rewrite_source(ctx, &context->packet, &pod, context->source_port);
}

#endif
