/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Translates Services packet by packet, for traffic that was not translated at the socket: pods whose processes are not
 * in the node's cgroup (virtual machines, gVisor), and raw packets. The first packet of a flow chooses the backend, and
 * the flow keeps it. Policy and conntrack see the translated packet, so these flows look like socket-translated ones
 * there. Replies get the Service's address when they enter the pod. */
#ifndef NN_SERVICE_H
#define NN_SERVICE_H

#include "conntrack.h"
#include "lb_port.h"
#include "link.h"
#include "rewrite.h"

/* Seconds: datagrams keep their backend unless they pause for longer than this. */
#define NN_LB_FLOW_DATAGRAM NN_CT_STREAM
/* Seconds: a SYN that is retransmitted within this time goes to the same backend. */
#define NN_LB_FLOW_OPENING NN_CT_TCP_OPENING

/* nn_police returns one of these for a packet to a Service. */
enum nn_service_step {
	NN_SERVICE_KNOWN = 1, /* the backend is in the context */
	NN_SERVICE_NEW = 2, /* the backend must be chosen */
	NN_HAIRPIN = 3, /* the backend is the pod itself */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct nn_ct_key);
	__type(value, struct nn_lb_flow_entry);
} nn_lb_flow SEC(".maps");

NN_INLINE int nn_is_syn(const struct nn_packet *packet)
{
	return (packet->tcp_flags & (NN_TCP_SYN | NN_TCP_ACK)) == NN_TCP_SYN;
}

/* A backend's number may be reused for another one, so compare the address. */
NN_INLINE int nn_is_backend_of(const struct nn_backend_entry *backend, const struct nn_lb_flow_entry *flow)
{
	return backend && backend->port == flow->port && nn_addr_equal(&backend->addr, &flow->backend);
}

/* True if the backend is still in the slot of its Service. Also 0 if it moved to another slot: for a retransmitted SYN
 * another choice does no harm. */
NN_INLINE int nn_service_has_slot(const struct nn_tuple *tuple, const struct nn_lb_flow_entry *flow)
{
	struct nn_frontend_key key = { .addr = tuple->daddr,
				       .port = tuple->dport,
				       .protocol = tuple->protocol,
				       .slot = flow->slot };
	struct nn_frontend_entry *slot = flow->slot ? bpf_map_lookup_elem(&nn_frontend, &key) : 0;
	__u32 id = flow->backend_id;

	if (!slot || slot->backend_id != id)
		return 0;
	return nn_is_backend_of(bpf_map_lookup_elem(&nn_backend, &id), flow);
}

NN_INLINE void nn_service_use(struct nn_context *context, struct nn_lb_flow_entry *flow, __u32 now)
{
	context->backend = flow->backend;
	context->backend_port = flow->port;
	context->source_port = flow->source_port;
	context->rev_nat_index = flow->rev_nat_index;
	if (flow->last_seen != now)
		flow->last_seen = now;
}

/* Returns 1 if the packet belongs to a flow that already has its backend. An established connection keeps its backend
 * even if that is removed from the Service; datagrams keep it only while it is in the Service. nn_service_choose
 * handles SYNs, so that new connections without a Service do not pay for this lookup. */
NN_INLINE int nn_service_follow(struct nn_context *context, const struct nn_ct_key *key, __u32 now)
{
	struct nn_lb_flow_entry *flow;

	if (key->protocol == IPPROTO_TCP ? nn_is_syn(&context->packet) : key->protocol != IPPROTO_UDP)
		return 0;
	flow = bpf_map_lookup_elem(&nn_lb_flow, key);
	if (!flow || flow->endpoint_id != context->endpoint_id)
		return 0;
	if (key->protocol == IPPROTO_UDP &&
	    ((__s32)(now - flow->last_seen) > NN_LB_FLOW_DATAGRAM ||
	     !nn_is_backend_of(nn_lb_member(flow->rev_nat_index, flow->backend_id), flow)))
		return 0;
	if (flow->opening)
		flow->opening = 0;
	nn_service_use(context, flow, now);
	return 1;
}

/* If another flow already uses these ends, give a datagram another source port. Not needed for a pod that calls itself:
 * it sees the hairpin address instead (hairpin.h). Returns 0 or a drop code. */
NN_INLINE int nn_service_port(struct nn_context *context, const struct nn_ct_key *key, __u32 number, __u32 now)
{
	if (nn_addr_equal(&key->remote, &key->pod) || !nn_lb_port_is_needed(context, key, now))
		return 0;
	context->backend = key->remote;
	context->backend_port = key->remote_port;
	return nn_lb_port_choose(number);
}

/* Choose the flow's backend. If another connection uses these ends (nn_ct_conflicts), try the next backend. */
NN_INLINE int nn_service_pick(struct nn_context *context, struct nn_ct_key *key, struct nn_lb_choice *choice, __u32 now)
{
	const struct nn_tuple *tuple = &context->packet.tuple;
	/* A hash, so that a flow whose entry nn_lb_flow has lost gets the same backend again as long as the Service has
	 * not changed. So do first datagrams that two CPUs handle at the same time. */
	__u32 number = nn_flow_number(key);
	struct nn_ct_entry *taken;
	int result;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		result = nn_lb_choose(&tuple->daddr, tuple->dport, tuple->protocol, number + i, choice);
		context->rev_nat_index = choice->rev_nat_index;
		if (result <= 0)
			return result < 0 ? result : NN_DROP_IS_A_CLUSTERIP;
		key->remote = choice->backend.addr;
		key->remote_port = choice->backend.port;
		if (key->protocol == IPPROTO_UDP)
			return nn_service_port(context, key, number, now);
		taken = nn_ct_lookup(key, context->endpoint_id, now);
		if (!taken || !nn_ct_conflicts(taken, context))
			return 0;
	}
	return NN_DROP_CT_UNKNOWN_STATE;
}

/* Choose a backend for a new flow. Returns 0 or a drop code. */
NN_GLOBAL int nn_service_choose(void)
{
	struct nn_context *context = nn_context_now();
	struct nn_lb_flow_entry *flow, first = {};
	struct nn_lb_choice choice;
	struct nn_ct_key key;
	int result;
	__u32 now;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	now = context->now;
	nn_ct_key_of(&context->packet.tuple, NN_EGRESS, &key);
	if (key.protocol != IPPROTO_TCP && key.protocol != IPPROTO_UDP)
		return NN_DROP_IS_A_CLUSTERIP;
	context->translated = 1;
	flow = bpf_map_lookup_elem(&nn_lb_flow, &key);
	if (flow && flow->opening && flow->endpoint_id == context->endpoint_id && nn_is_syn(&context->packet) &&
	    (__s32)(now - flow->last_seen) <= NN_LB_FLOW_OPENING &&
	    nn_service_has_slot(&context->packet.tuple, flow)) {
		nn_service_use(context, flow, now);
		return 0;
	}
	result = nn_service_pick(context, &key, &choice, now);
	if (result < 0)
		return result;
	first.backend = context->backend = choice.backend.addr;
	first.port = context->backend_port = choice.backend.port;
	first.endpoint_id = context->endpoint_id;
	first.backend_id = choice.backend_id;
	first.rev_nat_index = choice.rev_nat_index;
	first.slot = choice.slot;
	first.source_port = context->source_port;
	first.last_seen = now;
	first.opening = nn_is_syn(&context->packet);
	nn_ct_key_of(&context->packet.tuple, NN_EGRESS, &key);
	return bpf_map_update_elem(&nn_lb_flow, &key, &first, BPF_ANY) < 0 ? NN_DROP_CT_INSERT_FAILED : 0;
}

/* Rewrite a reply that is about to enter the pod: its source becomes the Service that the pod called. Returns 0 or a
 * drop code: the Service may have been deleted. */
NN_GLOBAL int nn_service_answer(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct nn_revnat_entry *frontend;
	struct nn_revnat_entry service;
	struct nn_addr pod;
	__u32 index;
	int result;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	index = context->rev_nat_index;
	frontend = bpf_map_lookup_elem(&nn_revnat, &index);
	if (!frontend)
		return NN_DROP_BACKEND_NOT_FOUND;
	service = *frontend;
	if (nn_is_icmp_error(&context->packet))
		/* Only an error about a known flow needs this, and nn_police_related has parsed its quote. */
		return context->has_quote ? nn_rewrite_quoted(ctx, &context->packet, &context->quote, &service.addr,
							      service.port, context->source_port)
					  : NN_DROP_INVALID_PACKET;
	if (context->source_port) {
		pod = context->packet.tuple.daddr;
		result = nn_rewrite_destination(ctx, &context->packet, &pod, context->source_port);
		if (result < 0)
			return result;
	}
	return nn_rewrite_source(ctx, &context->packet, &service.addr, service.port);
}

#endif
