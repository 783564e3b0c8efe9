/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The service stage: translates Services packet by packet, for traffic that was not translated at the socket: pods whose
 * processes are not in the node's cgroup (virtual machines, gVisor), and raw packets. It runs before policy, so policy
 * and conntrack see the addresses of pods only. The first packet of a flow chooses the backend, and the flow keeps it.
 * A reply gets the Service's address when it enters the pod, after policy. */
#ifndef NN_SERVICE_H
#define NN_SERVICE_H

#include "affinity.h"
#include "frag_create.h"
#include "hairpin.h"
#include "keeps.h"
#include "link.h"
#include "nat_port.h"
#include "quote.h"
#include "source_range.h"

/* Of nn_service: the packet goes back to the pod that sent it. */
#define NN_SERVICE_RETURN 1

/* Find the flow of a packet to a Service. Returns 1 if the packet keeps the flow's backend, which is then in the
 * context. */
NN_GLOBAL int nn_service_follow(void)
{
	struct nn_context *context = nn_context_now();
	struct nn_nat_entry *flow;
	struct nn_packet *packet;
	__u8 flags;

	if (!context)
		return 0;
	packet = &context->packet;
	nn_nat_key_of(&packet->tuple, 0, &context->nat.key);
	flow = bpf_map_lookup_elem(&nn_nat, &context->nat.key);
	if (!flow || flow->endpoint_id != nn_view_of(context, NN_EGRESS)->endpoint_id ||
	    !nn_service_keeps(packet, flow, context->now))
		return 0;
	flags = nn_ct_flags_of(packet, 0) | (nn_is_syn(packet) ? 0 : NN_NAT_OPENED);
	nn_nat_touch(flow, flags, context->now);
	context->nat.entry = *flow;
	return 1;
}

/* The same backend for all new flows of this client, if the Service wants that. */
NN_INLINE void nn_service_affinity(const struct nn_context *context, struct nn_lb_choice *choice)
{
	struct nn_affinity_key key = { .client = context->packet.tuple.saddr, .affinity_id = choice->affinity_id };

	nn_affinity_keep(&nn_affinity, &key, choice, context->now);
}

/* True if another connection or flow of the pod uses these ends: then the flow gets another source port. */
NN_INLINE int nn_service_clashes(struct __sk_buff *ctx, struct nn_context *context, const struct nn_view *view)
{
	const struct nn_ct_entry *taken;

	if (view->flow.protocol == IPPROTO_UDP)
		return nn_nat_port_is_needed(ctx, context, view);
	taken = nn_ct_lookup(&view->flow, view->endpoint_id, context->now);
	return taken && nn_ct_conflicts(taken, view, IPPROTO_TCP);
}

/* Choose the flow's backend, and its source port. Returns 1, 0 if no Service serves the packet, or a drop code. */
NN_INLINE int nn_service_pick(struct __sk_buff *ctx, struct nn_context *context, struct nn_view *view,
			      struct nn_lb_choice *choice)
{
	const struct nn_tuple *tuple = &context->packet.tuple;
	struct nn_nat_entry *to = &context->nat.entry;
	/* A hash, so that a flow whose entry was lost gets the same backend again as long as the Service has not
	 * changed. So do first datagrams that two CPUs handle at the same time. */
	__u32 number = nn_flow_number(&view->flow);
	int result = nn_lb_choose(&tuple->daddr, tuple->dport, tuple->protocol, NN_SCOPE_INTERNAL, number, choice);

	view->rev_nat_index = choice->rev_nat_index;
	if (!nn_source_allowed(choice, &tuple->saddr))
		return NN_DROP_NOT_IN_SOURCE_RANGE;
	context->nat.refused = nn_lb_refuses(result, choice);
	if (result <= 0)
		return result;
	if (choice->affinity_seconds)
		nn_service_affinity(context, choice);
	to->daddr = view->flow.remote = choice->backend.addr;
	to->dport = view->flow.remote_port = choice->backend.port;
	/* A pod that calls itself sees the hairpin address instead of its own one. */
	if (nn_addr_equal(&to->daddr, &tuple->saddr)) {
		nn_hairpin_addr(&to->saddr, context->packet.ip_version);
		return 1;
	}
	if (!nn_service_clashes(ctx, context, view))
		return 1;
	result = nn_nat_port_choose(number);
	return result < 0 ? result : 1;
}

/* Choose a backend for a new flow. Returns 1 with the flow in the context, 0 if no Service serves the packet, or a drop
 * code. */
NN_GLOBAL int nn_service_choose(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	/* Set, because Linux 5.10 does not see that it is only read if nn_lb_choose has set it. */
	struct nn_lb_choice choice = {};
	const struct nn_packet *packet;
	struct nn_nat_entry *to;
	struct nn_view *view;
	int result;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	view = nn_view_of(context, NN_EGRESS);
	packet = &context->packet;
	nn_ct_key_of(&packet->tuple, NN_EGRESS, &view->flow);
	to = &context->nat.entry;
	__builtin_memset(to, 0, sizeof(*to));
	to->saddr = packet->tuple.saddr;
	to->sport = packet->tuple.sport;
	view->nat = NN_CT_TRANSLATED;
	result = nn_service_pick(ctx, context, view, &choice);
	view->nat = 0;
	/* The frontend was deleted after a first choice, so policy judges the packet as it is. */
	if (result == 0)
		nn_ct_key_of(&packet->tuple, NN_EGRESS, &view->flow);
	if (result < 0)
		view->peer_identity = nn_identity_of(&packet->tuple.daddr, context->state.generation);
	if (result <= 0)
		return result;
	to->last_seen = context->now;
	to->rev_nat_index = choice.rev_nat_index;
	to->backend_id = choice.backend_id;
	to->slot = choice.slot;
	to->endpoint_id = view->endpoint_id;
	to->flags = nn_ct_flags_of(packet, 0) | (nn_is_syn(packet) ? 0 : NN_NAT_OPENED);
	return 1;
}

/* Translate a packet to a Service as the context says. Returns 0, NN_SERVICE_RETURN if the backend is the pod itself, or
 * a drop code. */
NN_GLOBAL int nn_service_apply(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct nn_view *view;
	struct nn_nat *nat;
	int result;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	nat = &context->nat;
	view = nn_view_of(context, NN_EGRESS);
	view->rev_nat_index = nat->entry.rev_nat_index;
	view->nat = NN_CT_TRANSLATED | (nat->entry.sport != nat->key.sport ? NN_CT_PORT : 0);
	nat->translated = 1;
	result = nn_nat_apply(ctx, &context->packet, &nat->entry);
	if (result < 0)
		return result;
	return nn_addr_equal(&nat->entry.daddr, &nat->key.saddr) ? NN_SERVICE_RETURN : 0;
}

/* What a reply becomes if its flow's entries were evicted: conntrack still knows the Service. Returns 0 or a drop
 * code. */
NN_INLINE int nn_service_recall(struct nn_nat *nat, const struct nn_view *view)
{
	const struct nn_revnat_entry *frontend;
	__u32 index = view->rev_nat_index;

	if (view->reverse & NN_CT_PORT)
		return NN_DROP_CT_UNKNOWN_STATE;
	frontend = bpf_map_lookup_elem(&nn_revnat, &index);
	if (!frontend)
		return NN_DROP_BACKEND_NOT_FOUND;
	nat->reply.saddr = frontend->addr;
	nat->reply.sport = frontend->port;
	nat->reply.daddr = nat->reply_key.daddr;
	nat->reply.dport = nat->reply_key.dport;
	return 0;
}

/* True if the entry of replies belongs to the flow that the view names. Flows from before an upgrade may share a reply's
 * ends; then the Service decides. With a source port that was replaced, no other flow has these ends. */
NN_INLINE int nn_service_is_reply_of(const struct nn_nat_entry *entry, const struct nn_view *view)
{
	return entry->endpoint_id == view->endpoint_id &&
	       ((view->reverse & NN_CT_PORT) || entry->rev_nat_index == view->rev_nat_index);
}

/* Translate a reply back, as the ingress view says: its source becomes the Service that the pod called, and its
 * destination that of the pod's socket. In an ICMP error the quoted packet is translated. Returns 0 or a drop code. */
NN_GLOBAL int nn_service_reverse(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	const struct nn_tuple *quoted;
	struct nn_nat_entry *entry;
	struct nn_view *view;
	struct nn_nat *nat;
	int is_error, result;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	nat = &context->nat;
	view = nn_view_of(context, NN_INGRESS);
	quoted = &context->quote.tuple;
	is_error = nn_is_icmp_error(&context->packet);
	/* Only an error about a known flow needs this, and nn_police_related has parsed its quote. */
	if (is_error && !context->has_quote)
		return NN_DROP_INVALID_PACKET;
	nn_nat_key_of(is_error ? quoted : &context->packet.tuple, 1, &nat->reply_key);
	if (is_error) {
		/* The pod sent the quoted packet. */
		nat->reply_key.saddr = quoted->daddr;
		nat->reply_key.daddr = quoted->saddr;
		nat->reply_key.sport = quoted->dport;
		nat->reply_key.dport = quoted->sport;
	}
	entry = bpf_map_lookup_elem(&nn_nat, &nat->reply_key);
	if (entry && nn_service_is_reply_of(entry, view)) {
		if (!is_error)
			nn_nat_touch_reply(context, &nat->reply_key, entry);
		nat->reply = *entry;
	} else {
		result = nn_service_recall(nat, view);
		if (result < 0)
			return result;
	}
	if (is_error)
		return nn_rewrite_quoted(ctx, &context->packet, &context->quote, &nat->reply);
	return nn_nat_apply(ctx, &context->packet, &nat->reply);
}

/* The ingress side of a packet that goes back to its sender. */
NN_INLINE struct nn_view *nn_service_own_view(struct nn_context *context)
{
	const struct nn_view *from = nn_view_of(context, NN_EGRESS);
	struct nn_view *view = nn_view_new(context, NN_INGRESS);

	view->endpoint_id = from->endpoint_id;
	view->subject = view->peer_identity = from->subject;
	view->rev_nat_index = from->rev_nat_index;
	return view;
}

/* The pod answers itself: a packet to the hairpin address. Returns NN_SERVICE_RETURN or a drop code. */
NN_INLINE int nn_service_answer_itself(struct __sk_buff *ctx, struct nn_context *context)
{
	__u8 protocol = context->packet.tuple.protocol;
	int result;

	if (context->packet.early_fragment)
		return NN_DROP_FRAGMENT_NOT_FOUND;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return NN_DROP_CT_UNKNOWN_STATE;
	nn_remember_fragment(ctx, &context->packet, NN_EGRESS);
	/* Without the flow's entry nothing names the client. */
	nn_service_own_view(context)->reverse = NN_CT_TRANSLATED | NN_CT_PORT;
	result = nn_service_reverse(ctx);
	return result < 0 ? result : NN_SERVICE_RETURN;
}

/* True if the packet may belong to a connection to a Service that was deleted. Only the flow still knows its backend. */
NN_INLINE int nn_service_may_be_gone(const struct nn_packet *packet)
{
	return packet->tuple.protocol == IPPROTO_TCP && !packet->early_fragment && !nn_is_syn(packet);
}

/* The stage for a packet that a pod sends; the egress view names the pod. Returns 0: the packet goes on,
 * NN_SERVICE_RETURN: it goes back to the pod, or a drop code. */
NN_INLINE int nn_service(struct __sk_buff *ctx, struct nn_context *context)
{
	const struct nn_tuple *tuple = &context->packet.tuple;
	int result, is_known, is_served;

	if (nn_is_hairpin_addr(&tuple->daddr))
		return nn_service_answer_itself(ctx, context);
	is_served = nn_service_addr_of(&tuple->daddr) != 0;
	if (!is_served && !nn_service_may_be_gone(&context->packet))
		return 0;
	/* It has no ports, so its backend is not known. Where it may be none of a Service's packets, it goes on. */
	if (context->packet.early_fragment)
		return nn_unserved(&tuple->daddr) < 0 ? NN_DROP_FRAGMENT_NOT_FOUND : 0;
	if (tuple->protocol != IPPROTO_TCP && tuple->protocol != IPPROTO_UDP) {
		result = nn_unserved(&tuple->daddr);
		context->nat.refused = result < 0;
		return result;
	}
	is_known = nn_service_follow();
	if (!is_known && !is_served)
		return 0;
	if (!is_known) {
		result = nn_service_choose(ctx);
		if (result <= 0)
			return result;
		result = nn_nat_create();
		if (result < 0)
			return result;
	}
	/* Later fragments carry the Service address too. Record this one so that policy can be applied to them, even if
	 * policy drops this packet. */
	nn_remember_fragment(ctx, &context->packet, NN_EGRESS);
	result = nn_service_apply(ctx);
	if (result == NN_SERVICE_RETURN && !is_known && nn_config.trace_events) {
		nn_service_own_view(context);
		nn_send_event(ctx, NN_EVENT_TRACE, NN_TO_ENDPOINT, 0, NN_INGRESS);
	}
	return result;
}

#endif
