/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The service stage: translates Services packet by packet, for traffic that was not translated at the socket: pods whose
 * processes are not in the node's cgroup (virtual machines, gVisor), and raw packets. It runs before policy, so policy
 * and conntrack see the addresses of pods only. The first packet of a flow chooses the backend, and the flow keeps it.
 * A reply gets the Service's address when it enters the pod, after policy. */
#ifndef NN_SERVICE_H
#define NN_SERVICE_H

#include "conntrack.h"
#include "frag_create.h"
#include "lb_port.h"
#include "link.h"
#include "rewrite.h"

/* Seconds: datagrams keep their backend unless they pause for longer than this. */
#define NN_LB_FLOW_DATAGRAM NN_CT_STREAM
/* Seconds: a SYN that is retransmitted within this time goes to the same backend. */
#define NN_LB_FLOW_OPENING NN_CT_TCP_OPENING

/* Of nn_service: the packet goes back to the pod that sent it. */
#define NN_SERVICE_RETURN 1

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct nn_ct_key);
	__type(value, struct nn_lb_flow_entry);
} nn_lb_flow SEC(".maps");

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
				       .backend_slot = flow->slot };
	struct nn_frontend_entry *slot = flow->slot ? bpf_map_lookup_elem(&nn_frontend, &key) : 0;
	__u32 id = flow->backend_id;

	if (!slot || slot->backend_id != id)
		return 0;
	return nn_is_backend_of(bpf_map_lookup_elem(&nn_backend, &id), flow);
}

/* True if the packet keeps the backend of this flow. An established connection keeps it even if it is removed from the
 * Service; datagrams keep it only while it is in the Service. A SYN keeps it while the connection opens. */
NN_INLINE int nn_service_keeps(const struct nn_packet *packet, const struct nn_lb_flow_entry *flow, __u32 now)
{
	__s32 idle = now - flow->last_seen;

	if (packet->tuple.protocol == IPPROTO_UDP)
		return idle <= NN_LB_FLOW_DATAGRAM &&
		       nn_is_backend_of(nn_lb_member(flow->rev_nat_index, flow->backend_id), flow);
	if (!nn_is_syn(packet))
		return 1;
	return flow->opening && idle <= NN_LB_FLOW_OPENING && nn_service_has_slot(&packet->tuple, flow);
}

/* Returns 1 if the packet belongs to a flow that has its backend already. */
NN_INLINE int nn_service_follow(struct nn_context *context, struct nn_view *view)
{
	struct nn_lb_flow_entry *flow = bpf_map_lookup_elem(&nn_lb_flow, &view->flow);

	if (!flow || flow->endpoint_id != view->endpoint_id ||
	    !nn_service_keeps(&context->packet, flow, context->now))
		return 0;
	if (flow->opening && !nn_is_syn(&context->packet))
		flow->opening = 0;
	context->nat.backend = flow->backend;
	context->nat.backend_port = flow->port;
	context->nat.source_port = flow->source_port;
	view->rev_nat_index = flow->rev_nat_index;
	if (flow->last_seen != context->now)
		flow->last_seen = context->now;
	return 1;
}

/* Choose the flow's backend. If another connection uses these ends (nn_ct_conflicts), try the next backend. Leaves the
 * backend in the view's flow. Returns 1, 0 if no Service serves the packet, or a drop code. */
NN_INLINE int nn_service_pick(struct __sk_buff *ctx, struct nn_context *context, struct nn_view *view,
			      struct nn_lb_choice *choice)
{
	const struct nn_tuple *tuple = &context->packet.tuple;
	/* A hash, so that a flow whose entry nn_lb_flow has lost gets the same backend again as long as the Service has
	 * not changed. So do first datagrams that two CPUs handle at the same time. */
	__u32 number = nn_flow_number(&view->flow);
	struct nn_ct_entry *taken;
	int result;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		result = nn_lb_choose(&tuple->daddr, tuple->dport, tuple->protocol, number + i, choice);
		view->rev_nat_index = choice->rev_nat_index;
		if (result <= 0)
			return result;
		view->flow.remote = choice->backend.addr;
		view->flow.remote_port = choice->backend.port;
		if (tuple->protocol == IPPROTO_UDP) {
			/* If another flow already uses these ends, give a datagram another source port. Not needed for
			 * a pod that calls itself: it sees the hairpin address instead (hairpin.h). */
			if (nn_addr_equal(&view->flow.remote, &view->flow.pod) || !nn_lb_port_is_needed(ctx, context, view))
				return 1;
			result = nn_lb_port_choose(number);
			return result < 0 ? result : 1;
		}
		taken = nn_ct_lookup(&view->flow, view->endpoint_id, context->now);
		if (!taken || !nn_ct_conflicts(taken, view, tuple->protocol))
			return 1;
	}
	return NN_DROP_CT_UNKNOWN_STATE;
}

/* Choose a backend for a new flow, and remember it. Returns 1, 0 if no Service serves the packet, or a drop code. */
NN_GLOBAL int nn_service_choose(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct nn_lb_flow_entry first = {};
	struct nn_lb_choice choice;
	struct nn_view *view;
	int result;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	view = nn_view_of(context, NN_EGRESS);
	view->nat = NN_CT_TRANSLATED;
	result = nn_service_pick(ctx, context, view, &choice);
	if (result <= 0) {
		view->nat = 0;
		return result;
	}
	first.backend = context->nat.backend = choice.backend.addr;
	first.port = context->nat.backend_port = choice.backend.port;
	first.endpoint_id = view->endpoint_id;
	first.backend_id = choice.backend_id;
	first.rev_nat_index = choice.rev_nat_index;
	first.slot = choice.slot;
	first.source_port = context->nat.source_port;
	first.last_seen = context->now;
	first.opening = nn_is_syn(&context->packet);
	nn_ct_key_of(&context->packet.tuple, NN_EGRESS, &view->flow);
	return bpf_map_update_elem(&nn_lb_flow, &view->flow, &first, BPF_ANY) < 0 ? NN_DROP_CT_INSERT_FAILED : 1;
}

/* A packet from the pod to a Service's address: find its backend, and write the backend's address into the packet.
 * Returns 0, NN_SERVICE_RETURN if the backend is the pod itself, or a drop code. */
NN_GLOBAL int nn_service_translate(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct nn_view *view;
	int result, has_flow;
	__u8 protocol;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	view = nn_view_of(context, NN_EGRESS);
	protocol = context->packet.tuple.protocol;
	has_flow = protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
	nn_ct_key_of(&context->packet.tuple, NN_EGRESS, &view->flow);
	if (!has_flow || !nn_service_follow(context, view)) {
		result = has_flow ? nn_service_choose(ctx) : nn_unserved(&context->packet.tuple.daddr);
		if (result < 0)
			view->peer_identity = nn_identity_of(&context->packet.tuple.daddr, context->state.generation);
		if (result <= 0)
			return result;
	}
	/* Later fragments carry the Service address too. Record this one so that policy can be applied to them, even if
	 * this packet is dropped. */
	nn_remember_fragment(ctx, &context->packet, NN_EGRESS);
	if (nn_addr_equal(&context->nat.backend, &context->packet.tuple.saddr))
		return NN_SERVICE_RETURN;
	context->nat.translated = 1;
	view->nat = NN_CT_TRANSLATED | (context->nat.source_port ? NN_CT_PORT : 0);
	result = nn_rewrite_destination(ctx, &context->packet, &context->nat.backend, context->nat.backend_port);
	return result == 0 && context->nat.source_port ? nn_lb_port_apply(ctx) : result;
}

/* Translate a reply back, as the view says: its source becomes the Service that the pod called, and its destination
 * port that of the pod's socket. Returns 0 or a drop code: the Service may have been deleted. */
NN_GLOBAL int nn_service_reverse(struct __sk_buff *ctx, __u32 side)
{
	struct nn_context *context = nn_context_now();
	struct nn_revnat_entry *frontend;
	struct nn_revnat_entry service;
	struct nn_view *view;
	struct nn_addr pod;
	__be16 port = 0;
	__u32 index;
	int result;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	view = nn_view_of(context, side);
	if (view->reverse & NN_CT_PORT) {
		port = nn_lb_port_of(&view->flow, view->endpoint_id);
		if (!port)
			return NN_DROP_CT_UNKNOWN_STATE;
	}
	index = view->rev_nat_index;
	frontend = bpf_map_lookup_elem(&nn_revnat, &index);
	if (!frontend)
		return NN_DROP_BACKEND_NOT_FOUND;
	service = *frontend;
	if (nn_is_icmp_error(&context->packet))
		/* Only an error about a known flow needs this, and nn_police_related has parsed its quote. */
		return context->has_quote ? nn_rewrite_quoted(ctx, &context->packet, &context->quote, &service.addr,
							      service.port, port)
					  : NN_DROP_INVALID_PACKET;
	if (port) {
		pod = context->packet.tuple.daddr;
		result = nn_rewrite_destination(ctx, &context->packet, &pod, port);
		if (result < 0)
			return result;
	}
	return nn_rewrite_source(ctx, &context->packet, &service.addr, service.port);
}

#endif
