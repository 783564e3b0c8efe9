/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The policy stage: decides whether a packet may pass between a pod and its peer. Conntrack first, policy where needed,
 * then events. It runs once for each side of a packet and reads and writes that side's view only. The service stage ran
 * before, so it sees the addresses of pods, never those of Services. */
#ifndef NN_POLICE_H
#define NN_POLICE_H

#include "ct_create.h"
#include "lb.h"
#include "origin.h"
#include "pickup.h"
#include "quote.h"
#include "sock_service.h"

/* The packet opens a flow, or belongs to none that conntrack knows. */
#define NN_FLOW_NEW 1

/* Find the identity of the other end and the cookie of the pod's socket. Established flows that produce no event skip
 * these lookups: they are the most expensive ones. */
NN_INLINE void nn_identify(struct __sk_buff *ctx, struct nn_context *context, struct nn_view *view)
{
	if (view->direction == NN_EGRESS && !context->cookie)
		context->cookie = bpf_get_socket_cookie(ctx);
	if (!view->is_local)
		view->peer_identity = nn_identity_of(&view->flow.remote, context->state.generation);
}

/* Check both directions again for an entry whose opener is not known. The entry stays in this state until the sockets
 * show who opened the flow. */
NN_INLINE int nn_recheck_unsure(struct __sk_buff *ctx, struct nn_view *view, struct nn_ct_entry *entry)
{
	int result = nn_pickup(ctx, view->direction);

	view->ct_status = view->is_reply ? NN_CT_REPLY : NN_CT_ESTABLISHED;
	if (result < 0 || (view->ct_flags & NN_CT_UNSURE))
		return result;
	entry->direction = view->is_reply ? NN_INGRESS + NN_EGRESS - view->direction : view->direction;
	entry->flags &= ~NN_CT_UNSURE;
	return 0;
}

/* If a change since the flow was judged can have changed its verdict, check it again, in the direction in which it was
 * opened. Keep a denied entry fresh while either side still sends, so that packets of the other direction cannot open
 * the flow again. Returns 0 or a drop code. */
NN_INLINE int nn_recheck_policy(struct __sk_buff *ctx, struct nn_context *context, struct nn_view *view,
				struct nn_ct_entry *entry)
{
	int result;

	if (nn_ct_is_judged(entry, &context->state))
		return 0;
	nn_identify(ctx, context, view);
	nn_keep_origin(view, entry);
	if (entry->flags & NN_CT_UNSURE) {
		result = nn_recheck_unsure(ctx, view, entry);
	} else {
		view->ct_flags = 0;
		result = nn_policy_ask(view->direction, entry->direction);
	}
	if (result < 0) {
		if (entry->last_seen != context->now)
			entry->last_seen = context->now;
		return result;
	}
	entry->rule_id = view->rule_id;
	entry->revision = context->state.generation;
	return 0;
}

/* A packet of a known flow. Returns 0 or a drop code. */
NN_INLINE int nn_police_known(struct __sk_buff *ctx, struct nn_context *context, struct nn_view *view,
			      struct nn_ct_entry *entry)
{
	int result;

	if (view->direction == NN_EGRESS && view->flow.protocol != IPPROTO_TCP &&
	    ((entry->flags & NN_CT_TRANSLATED) || view->nat)) {
		/* A socket of the pod uses the port that the service stage gave to another socket's datagrams. */
		if ((entry->flags ^ view->nat) & NN_CT_PORT)
			return NN_DROP_CT_UNKNOWN_STATE;
		nn_ct_set_service(entry, view);
	}
	view->is_reply = entry->direction != view->direction;
	view->ct_status = view->is_reply ? NN_CT_REPLY : NN_CT_ESTABLISHED;
	view->rule_id = entry->rule_id;
	view->rev_nat_index = entry->rev_nat_index;
	result = nn_recheck_policy(ctx, context, view, entry);
	if (result < 0)
		return result;
	if (view->direction == NN_INGRESS)
		view->reverse = entry->flags & (NN_CT_TRANSLATED | NN_CT_PORT);
	/* Report a packet once, where it is delivered. Packets that leave the node are reported by the node that
	 * delivers them. */
	if (nn_ct_touch(entry, &context->packet, view->is_reply, context->now) && nn_config.trace_events &&
	    view->direction == NN_INGRESS) {
		nn_identify(ctx, context, view);
		nn_keep_origin(view, entry);
		nn_send_event(ctx, NN_EVENT_TRACE, NN_TO_ENDPOINT, 0, NN_INGRESS);
	}
	return 0;
}

/* True if the sender of an ICMP error may report about the quoted packet. Routers and nodes forward packets, so they
 * may. A pod forwards nothing, so it may report only packets that were sent to itself: otherwise it could end
 * connections of other pods or reduce their MTU. */
NN_INLINE int nn_may_report_error(const struct nn_context *context, const struct nn_view *view,
				  const struct nn_tuple *quoted)
{
	const struct nn_addr *sender = &context->packet.tuple.saddr;

	if (nn_addr_equal(sender, &quoted->daddr))
		return 1;
	if (view->is_local || nn_endpoint_lookup(sender))
		return 0;
	return nn_is_reserved(nn_identity_of(sender, context->state.generation));
}

/* An ICMP error about a flow of this endpoint belongs to that flow (CT_RELATED) and gets its verdict. The quoted packet
 * travelled in the opposite direction: the receiver of the error sent it. Returns 0, a drop code, or NN_FLOW_NEW if no
 * such flow is known and the error is checked as a flow of its own. */
NN_GLOBAL int nn_police_related(struct __sk_buff *ctx, __u32 side)
{
	struct nn_context *context = nn_context_now();
	const struct nn_tuple *outer, *quoted;
	struct nn_ct_entry *entry;
	struct nn_view *view;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	view = nn_view_of(context, side);
	outer = &context->packet.tuple;
	quoted = &context->quote.tuple;
	if (nn_parse_quote(ctx, context) < 0)
		return NN_FLOW_NEW;
	nn_ct_key_of(quoted, NN_INGRESS + NN_EGRESS - view->direction, &view->flow);
	/* Drop it even if a policy allows the sender: rules say who may connect to the pod, not who may report errors
	 * about its other flows. */
	if (view->direction == NN_INGRESS && !nn_may_report_error(context, view, quoted))
		return NN_DROP_INVALID_PACKET;
	if (!nn_addr_equal(&view->flow.pod, view->direction == NN_EGRESS ? &outer->saddr : &outer->daddr) ||
	    !nn_addr_equal(&quoted->saddr, &outer->daddr))
		return NN_FLOW_NEW;
	entry = nn_ct_lookup(&view->flow, view->endpoint_id, context->now);
	if (!entry)
		return NN_FLOW_NEW;
	view->ct_status = NN_CT_RELATED;
	if (view->direction == NN_INGRESS && (entry->flags & NN_CT_TRANSLATED)) {
		view->rev_nat_index = entry->rev_nat_index;
		view->reverse = entry->flags & (NN_CT_TRANSLATED | NN_CT_PORT);
	}
	if (nn_ct_is_judged(entry, &context->state))
		return 0;
	nn_identify(ctx, context, view);
	/* The sender of an error may be a router on the path, so the verdict uses the flow's own peer. */
	view->peer_identity = nn_identity_of(&view->flow.remote, context->state.generation);
	nn_keep_origin(view, entry);
	return nn_policy_ask(side, entry->direction);
}

/* The first packet of a flow, or the first one after its entry was lost. Returns 0 or a drop code. */
NN_GLOBAL int nn_police_new(struct __sk_buff *ctx, __u32 side)
{
	struct nn_context *context = nn_context_now();
	struct nn_view *view;
	int result, midstream;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	view = nn_view_of(context, side);
	midstream = nn_is_midstream(&context->packet, view);
	view->ct_status = NN_CT_NEW;
	view->is_reply = 0;
	view->ct_flags = 0;
	nn_identify(ctx, context, view);
	if (view->direction == NN_INGRESS && !view->is_local) {
		result = nn_check_origin(ctx);
		if (result < 0)
			return result;
	}
	/* Most sockets are translated before they send packets. */
	if (view->direction == NN_EGRESS && !view->nat)
		view->rev_nat_index = nn_packet_service(ctx, context, &view->flow);
	if (midstream) {
		result = nn_pickup(ctx, view->direction);
		view->ct_status = view->is_reply ? NN_CT_REPLY : NN_CT_ESTABLISHED;
	} else {
		result = nn_policy_ask(view->direction, view->direction);
	}
	if (result < 0)
		return result;
	/* Masqueraded peers have the node's address too. Let a reply to it pass, but create no entry: an entry would
	 * also admit packets of those peers. Their packets are checked by the interface on which they enter
	 * (origin.h). */
	if (midstream && view->direction == NN_EGRESS && view->peer_identity == NN_IDENTITY_HOST &&
	    (view->is_reply || (view->ct_flags & NN_CT_UNSURE)))
		return 0;
	result = nn_ct_create(context, view);
	if (result == 0 && nn_config.trace_events)
		nn_send_event(ctx, NN_EVENT_POLICY_VERDICT, 0, 0, view->direction);
	return result;
}

/* True if the flow may be one to a Service that had no frontend yet: the pod opened it, and no answer came. A TCP
 * connection opens again with a SYN, but datagrams from a fixed port would keep such an entry fresh without end. */
NN_INLINE int nn_ct_may_be_lost(const struct nn_ct_entry *entry, __u8 protocol)
{
	return protocol != IPPROTO_TCP && entry->direction == NN_EGRESS && !(entry->flags & NN_CT_SEEN_REPLY);
}

/* Conntrack: the verdict on a packet of a known flow. `before`: the service stage follows, if the flow is not known.
 * Returns 0, a drop code, or NN_FLOW_NEW. */
NN_GLOBAL int nn_track(struct __sk_buff *ctx, __u32 side, __u32 before)
{
	struct nn_context *context = nn_context_now();
	struct nn_ct_entry *entry;
	struct nn_view *view;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	view = nn_view_of(context, side);
	nn_ct_key_of(&context->packet.tuple, view->direction, &view->flow);
	entry = nn_ct_lookup(&view->flow, view->endpoint_id, context->now);
	if (before && entry && nn_ct_may_be_lost(entry, view->flow.protocol))
		return NN_FLOW_NEW;
	if (entry && !nn_ct_opens(&context->packet, entry, view->direction))
		return nn_police_known(ctx, context, view, entry);
	if (entry && nn_ct_conflicts(entry, view, view->flow.protocol))
		return NN_DROP_CT_UNKNOWN_STATE;
	view->is_new = 1;
	return NN_FLOW_NEW;
}

/* A later fragment that arrives before the first one has no ports, so policy cannot be checked. Let it pass where no
 * policy applies: the first fragment is checked when it arrives, and without that the receiver discards the others. */
NN_INLINE int nn_police_early_fragment(const struct nn_view *view)
{
	__u8 judged = view->direction == NN_INGRESS ? NN_ENDPOINT_ISOLATED_INGRESS | NN_ENDPOINT_TIERED_INGRESS :
						      NN_ENDPOINT_ISOLATED_EGRESS | NN_ENDPOINT_TIERED_EGRESS;

	return nn_config.enforce_policy && (view->subject_flags & judged) ? NN_DROP_FRAGMENT_NOT_FOUND : 0;
}

/* The verdict on a packet that a pod sends if conntrack knows its flow with the addresses that the packet has: then no
 * Service translates it. This lookup comes before the service stage, because most packets end here: a lookup of the
 * address in each of them would cost 1 to 2 % (docs/decisions/0041). Datagrams without an answer go through both
 * (nn_ct_may_be_lost). Returns 0, a drop code, or NN_FLOW_NEW. */
NN_INLINE int nn_police_direct(struct __sk_buff *ctx, struct nn_context *context)
{
	if (context->packet.early_fragment || nn_is_icmp_error(&context->packet))
		return NN_FLOW_NEW;
	return nn_track(ctx, NN_EGRESS, 1);
}

/* The stage for one side of the packet, whose view names the endpoint. Returns 0 or a drop code. */
NN_INLINE int nn_police(struct __sk_buff *ctx, struct nn_context *context, __u32 side)
{
	const struct nn_view *view = nn_view_of(context, side);
	int result = NN_FLOW_NEW;

	if (context->packet.early_fragment)
		return nn_police_early_fragment(view);
	if (nn_is_icmp_error(&context->packet))
		result = nn_police_related(ctx, side);
	/* nn_police_direct may have looked already. */
	if (result == NN_FLOW_NEW && !(view->is_new && !view->nat))
		result = nn_track(ctx, side, 0);
	return result == NN_FLOW_NEW ? nn_police_new(ctx, side) : result;
}

#endif
