/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services packet by packet, for what was not translated at the socket: pods whose processes are not in the node's cgroup
 * (a virtual machine's, gVisor's), raw packets. The flow is given a backend by its first packet and keeps it; policy and
 * conntrack see the translated packet, so a socket's flow and this one's look alike there. What comes back is given the
 * Service's address where it enters the pod. */
#ifndef NN_SERVICE_H
#define NN_SERVICE_H

#include "conntrack.h"
#include "lb_port.h"
#include "link.h"
#include "rewrite.h"

/* Datagrams without a pause as long as this stay with their backend. */
#define NN_LB_FLOW_DATAGRAM NN_CT_STREAM
/* A SYN that is sent again within this time goes to the same backend. */
#define NN_LB_FLOW_OPENING NN_CT_TCP_OPENING
#define NN_GOLDEN_RATIO 0x9e3779b97f4a7c15ULL /* of 2^64 */

/* What nn_police found to be a packet to a Service. */
enum nn_service_step {
	NN_SERVICE_KNOWN = 1, /* the backend is in the context */
	NN_SERVICE_NEW = 2, /* it is to be chosen */
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

/* A number may stand for another backend later, so compare the address. */
NN_INLINE int nn_is_backend_of(const struct nn_backend_entry *backend, const struct nn_lb_flow_entry *flow)
{
	return backend && backend->port == flow->port && nn_addr_equal(&backend->addr, &flow->backend);
}

/* Is the backend still in the slot of its Service? If it moved to another slot, this says no: for a SYN that is sent
 * again, another choice does no harm. */
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

/* A packet of a flow that has its backend already? An established connection keeps it whatever becomes of the backend;
 * datagrams only while the backend is in this Service. A SYN is nn_service_choose's: connections without a Service pay nothing here. */
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

/* The same number for every packet of a flow, spread evenly over flows: multiplication by the golden ratio, word by word. A
 * flow that nn_lb_flow has lost (it is an LRU, which a flood of another pod may fill) gets its backend again, as long as
 * the Service has not changed; so do first datagrams that two CPUs see at once. */
NN_INLINE __u32 nn_service_number(const struct nn_ct_key *flow)
{
	__u64 number = (__u64)flow->pod_port << 32 | (__u32)flow->remote_port << 16 | flow->protocol;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		number = (number ^ flow->pod.word[i]) * NN_GOLDEN_RATIO;
		number = (number ^ number >> 32 ^ flow->remote.word[i]) * NN_GOLDEN_RATIO;
		number ^= number >> 32;
	}
	return number;
}

/* Where another flow has these ends already, a datagram leaves from another port. A pod that calls itself does not meet its
 * own address (hairpin.h). Returns 0 or a drop code. */
NN_INLINE int nn_service_port(struct nn_context *context, const struct nn_ct_key *key, __u32 number, __u32 now)
{
	if (nn_addr_equal(&key->remote, &key->pod) || !nn_lb_port_is_needed(context, key, now))
		return 0;
	context->backend = key->remote;
	context->backend_port = key->remote_port;
	return nn_lb_port_choose(number);
}

/* The flow's backend. A connection gets the next one, where another connection has these ends (nn_ct_clashes). */
NN_INLINE int nn_service_pick(struct nn_context *context, struct nn_ct_key *key, struct nn_lb_choice *choice, __u32 now)
{
	const struct nn_tuple *tuple = &context->packet.tuple;
	__u32 number = nn_service_number(key);
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
		if (!taken || !nn_ct_clashes(taken, context))
			return 0;
	}
	return NN_DROP_CT_UNKNOWN_STATE;
}

/* A backend for a new flow. Returns 0 or a drop code. */
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

/* What is about to enter the pod comes from whom the pod asked. Returns 0 or a drop code: the Service may be gone. */
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
		/* nn_police_related has read it: only an error about a flow has an answer's address. */
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
