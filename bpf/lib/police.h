/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Decides whether a packet may pass between a pod and its peer: conntrack first, policy where needed, then events. */
#ifndef NN_POLICE_H
#define NN_POLICE_H

#include "ct_create.h"
#include "origin.h"
#include "pickup.h"
#include "service.h"

NN_INLINE __u32 nn_policy_revision(void)
{
	__u32 zero = 0;
	struct nn_state *state = bpf_map_lookup_elem(&nn_state, &zero);

	return state ? state->policy_revision : 0;
}

/* Find the identities of both ends and the cookie of the pod's socket. Established flows that produce no event skip
 * these lookups: they are the most expensive ones. */
NN_INLINE void nn_identify(struct __sk_buff *ctx, struct nn_context *context)
{
	const struct nn_tuple *tuple = &context->packet.tuple;

	if (context->direction == NN_EGRESS) {
		context->src_identity = context->subject;
		context->dst_identity = nn_identity_of(&tuple->daddr);
		context->cookie = bpf_get_socket_cookie(ctx);
	} else {
		if (!context->is_local)
			context->src_identity = nn_identity_of(&tuple->saddr);
		context->dst_identity = context->subject;
	}
}

/* Check both directions again for an entry whose opener is not known. The entry stays in this state until the sockets
 * show who opened the flow. */
NN_INLINE int nn_recheck_unsure(struct __sk_buff *ctx, struct nn_context *context, struct nn_ct_entry *entry)
{
	int result = nn_pickup(ctx);

	context->ct_status = context->is_reply ? NN_CT_REPLY : NN_CT_ESTABLISHED;
	if (result < 0 || (context->ct_flags & NN_CT_UNSURE))
		return result;
	entry->direction = context->is_reply ? NN_INGRESS + NN_EGRESS - context->direction : context->direction;
	entry->flags &= ~NN_CT_UNSURE;
	return 0;
}

/* If the rules changed since the flow was allowed, check it again, in the direction in which it was opened. Keep a
 * denied entry fresh while either side still sends, so that packets of the other direction cannot open the flow again.
 * Returns 0 or a drop code. */
NN_INLINE int nn_recheck_policy(struct __sk_buff *ctx, struct nn_context *context, const struct nn_ct_key *key,
			     struct nn_ct_entry *entry, __u32 revision)
{
	struct nn_policy_question question;
	int result;

	if (entry->revision == revision)
		return 0;
	nn_identify(ctx, context);
	nn_keep_origin(context, entry);
	if (entry->flags & NN_CT_UNSURE) {
		result = nn_recheck_unsure(ctx, context, entry);
	} else {
		context->ct_flags = 0;
		nn_policy_question_init(&question, context, key, entry->direction);
		result = nn_policy_verdict(&question, &context->rule_id);
	}
	if (result < 0) {
		if (entry->last_seen != context->now)
			entry->last_seen = context->now;
		return result;
	}
	entry->rule_id = context->rule_id;
	entry->revision = revision;
	return 0;
}

/* Prepare the translation of a backend's reply: it gets the Service's address, and the port of the pod's socket.
 * Returns 0 or a drop code. */
NN_INLINE int nn_prepare_reply(struct nn_context *context, const struct nn_ct_key *key, const struct nn_ct_entry *entry)
{
	context->untranslate = 1;
	if (!(entry->flags & NN_CT_PORT))
		return 0;
	context->source_port = nn_lb_port_of(key, context->endpoint_id);
	return context->source_port ? 0 : NN_DROP_CT_UNKNOWN_STATE;
}

/* A packet of a known flow. Returns 0 or a drop code. */
NN_INLINE int nn_police_known(struct __sk_buff *ctx, struct nn_context *context, const struct nn_ct_key *key,
			      struct nn_ct_entry *entry, __u32 revision, __u32 now)
{
	int result;

	if (context->direction == NN_EGRESS && key->protocol != IPPROTO_TCP &&
	    ((entry->flags & NN_CT_TRANSLATED) || context->translated)) {
		/* A socket of the pod uses the port that nn_lb_port_choose assigned to another socket's datagrams. */
		if (((entry->flags & NN_CT_PORT) != 0) != (context->source_port != 0))
			return NN_DROP_CT_UNKNOWN_STATE;
		nn_ct_set_service(entry, context);
	}
	context->is_reply = entry->direction != context->direction;
	context->ct_status = context->is_reply ? NN_CT_REPLY : NN_CT_ESTABLISHED;
	context->rule_id = entry->rule_id;
	context->rev_nat_index = entry->rev_nat_index;
	result = nn_recheck_policy(ctx, context, key, entry, revision);
	if (result < 0)
		return result;
	if (context->direction == NN_INGRESS && (entry->flags & NN_CT_TRANSLATED)) {
		result = nn_prepare_reply(context, key, entry);
		if (result < 0)
			return result;
	}
	/* Report a packet once, where it is delivered. Packets that leave the node are reported by the node that
	 * delivers them. */
	if (nn_ct_touch(entry, &context->packet, context->is_reply, now) && nn_config.trace_events &&
	    context->direction == NN_INGRESS) {
		nn_identify(ctx, context);
		nn_keep_origin(context, entry);
		nn_send_event(ctx, NN_EVENT_TRACE, NN_TO_ENDPOINT, 0);
	}
	return 0;
}

/* True if the sender of an ICMP error may report about the quoted packet. Routers and nodes forward packets, so they
 * may. A pod forwards nothing, so it may report only packets that were sent to itself: otherwise it could end
 * connections of other pods or reduce their MTU. */
NN_INLINE int nn_may_report_error(const struct nn_context *context, const struct nn_tuple *quoted)
{
	const struct nn_addr *sender = &context->packet.tuple.saddr;

	if (nn_addr_equal(sender, &quoted->daddr))
		return 1;
	if (context->is_local || nn_endpoint_lookup(sender))
		return 0;
	return nn_is_reserved(nn_identity_of(sender));
}

/* An ICMP error about a flow of this endpoint belongs to that flow (CT_RELATED) and gets its verdict. The quoted packet
 * travelled in the opposite direction: the receiver of the error sent it. Returns 0, a drop code, or 1 if no such flow
 * is known and the error is checked as a flow of its own. */
NN_GLOBAL int nn_police_related(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct nn_policy_question question;
	struct nn_packet *inner;
	const struct nn_addr *own;
	struct nn_ct_entry *entry;
	struct nn_ct_key key;
	__u32 rule_id;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	/* Not on the stack: the call chain would exceed 512 bytes. */
	inner = &context->quote;
	__builtin_memset(inner, 0, sizeof(*inner));
	inner->quoted = 1;
	inner->offset = context->packet.offset + NN_ICMP_HEADER;
	inner->end = context->packet.end;
	if (nn_parse_ip(ctx, inner, context->packet.ip_version) < 0)
		return 1;
	context->has_quote = 1;
	own = context->direction == NN_EGRESS ? &context->packet.tuple.saddr : &context->packet.tuple.daddr;
	nn_ct_key_of(&inner->tuple, context->direction == NN_EGRESS ? NN_INGRESS : NN_EGRESS, &key);
	/* Drop it even if a policy allows the sender: rules say who may connect to the pod, not who may report errors
	 * about its other flows. */
	if (context->direction == NN_INGRESS && !nn_may_report_error(context, &inner->tuple))
		return NN_DROP_INVALID_PACKET;
	if (!nn_addr_equal(&key.pod, own) || !nn_addr_equal(&inner->tuple.saddr, &context->packet.tuple.daddr))
		return 1;
	entry = nn_ct_lookup(&key, context->endpoint_id, context->now);
	if (!entry)
		return 1;
	context->ct_status = NN_CT_RELATED;
	if (context->direction == NN_INGRESS && (entry->flags & NN_CT_TRANSLATED)) {
		context->rev_nat_index = entry->rev_nat_index;
		if (nn_prepare_reply(context, &key, entry) < 0)
			return NN_DROP_CT_UNKNOWN_STATE;
	}
	if (entry->revision == nn_policy_revision())
		return 0;
	nn_identify(ctx, context);
	/* The sender of an error may be a router on the path, so the verdict uses the flow's own peer. */
	if (context->direction == NN_INGRESS)
		context->src_identity = nn_identity_of(&key.remote);
	nn_keep_origin(context, entry);
	nn_policy_question_init(&question, context, &key, entry->direction);
	return nn_policy_verdict(&question, &rule_id);
}

/* The first packet of a flow, or the first one after its entry was lost. Returns 0, a drop code, or NN_SERVICE_NEW. */
NN_INLINE int nn_police_new(struct __sk_buff *ctx, struct nn_context *context, const struct nn_ct_key *key,
			    __u32 revision, __u32 now)
{
	struct nn_policy_question question;
	int result;

	context->ct_status = NN_CT_NEW;
	context->is_reply = 0;
	context->ct_flags = 0;
	nn_identify(ctx, context);
	if (context->direction == NN_INGRESS && !context->is_local) {
		result = nn_check_origin(ctx);
		if (result < 0)
			return result;
	}
	if (context->direction == NN_EGRESS && !context->translated) {
		/* Most sockets are translated before they send packets. Translate the packets of the others here. */
		if (context->dst_identity == NN_IDENTITY_WORLD && nn_is_service_address(&key->remote))
			return NN_SERVICE_NEW;
		/* If both pods are on this node, the check of the receiving pod reads the Service that the check of the
		 * sending pod stored here. */
		context->rev_nat_index =
			nn_sock_revnat_index(context->cookie, &key->remote, key->remote_port, key->protocol);
	}
	if (nn_is_midstream(context)) {
		result = nn_pickup(ctx);
		context->ct_status = context->is_reply ? NN_CT_REPLY : NN_CT_ESTABLISHED;
	} else {
		nn_policy_question_init(&question, context, key, context->direction);
		result = nn_policy_verdict(&question, &context->rule_id);
	}
	if (result < 0)
		return result;
	/* Masqueraded peers have the node's address too. Let a reply to it pass, but create no entry: an entry would
	 * also admit packets of those peers. Their packets are checked by the interface on which they enter
	 * (origin.h). */
	if (nn_is_midstream(context) && context->direction == NN_EGRESS && context->dst_identity == NN_IDENTITY_HOST &&
	    (context->is_reply || (context->ct_flags & NN_CT_UNSURE)))
		return 0;
	result = nn_ct_create(key, context, revision, now);
	if (result == 0 && nn_config.trace_events)
		nn_send_event(ctx, NN_EVENT_POLICY_VERDICT, 0, 0);
	return result;
}

/* Returns 0, a drop code, or an nn_service_step. */
NN_GLOBAL int nn_police_flow(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct nn_ct_entry *entry;
	struct nn_ct_key key;
	__u32 now;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	now = context->now;
	nn_ct_key_of(&context->packet.tuple, context->direction, &key);
	entry = nn_ct_lookup(&key, context->endpoint_id, now);
	if (entry && !nn_ct_opens(&context->packet, entry, context->direction))
		return nn_police_known(ctx, context, &key, entry, nn_policy_revision(), now);
	if (entry && nn_ct_conflicts(entry, context))
		return NN_DROP_CT_UNKNOWN_STATE;
	if (!entry && context->direction == NN_EGRESS && !context->translated && nn_service_follow(context, &key, now))
		return NN_SERVICE_KNOWN;
	return nn_police_new(ctx, context, &key, nn_policy_revision(), now);
}

/* A later fragment that arrives before the first one has no ports, so policy cannot be checked. Let it pass where no
 * policy applies: the first fragment is checked when it arrives, and without that the receiver discards the others. A
 * fragment to a Service is dropped, because its backend is not known yet. */
NN_INLINE int nn_police_early_fragment(const struct nn_context *context)
{
	__u8 isolated = context->direction == NN_INGRESS ? NN_ENDPOINT_ISOLATED_INGRESS : NN_ENDPOINT_ISOLATED_EGRESS;

	if (nn_config.enforce_policy && (context->subject_flags & isolated))
		return NN_DROP_FRAGMENT_NOT_FOUND;
	if (context->direction == NN_EGRESS && nn_is_service_address(&context->packet.tuple.daddr))
		return NN_DROP_FRAGMENT_NOT_FOUND;
	return 0;
}

/* Decide whether this packet may pass between the pod and its peer: track the flow, check policy where needed, and
 * report. Returns 0, a drop code, or an nn_service_step for a packet to a Service. */
NN_INLINE int nn_police(struct __sk_buff *ctx, struct nn_context *context, const struct nn_endpoint_entry *endpoint)
{
	int result = 1;

	context->endpoint_id = endpoint->endpoint_id;
	context->subject = endpoint->identity;
	context->subject_flags = endpoint->flags;
	if (context->packet.early_fragment)
		return nn_police_early_fragment(context);
	if (nn_is_icmp_error(&context->packet))
		result = nn_police_related(ctx);
	return result <= 0 ? result : nn_police_flow(ctx);
}

#endif
