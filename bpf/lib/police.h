/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* May a packet pass between a pod and its peer? Conntrack first, the policy where that is due, and what is told of it. */
#ifndef NN_POLICE_H
#define NN_POLICE_H

#include "origin.h"
#include "pickup.h"
#include "service.h"

NN_INLINE __u32 nn_policy_revision(void)
{
	__u32 zero = 0;
	struct nn_state *state = bpf_map_lookup_elem(&nn_state, &zero);

	return state ? state->policy_revision : 0;
}

/* Who is at both ends, and through which Service the pod's socket came. Established flows that nobody is told about
 * do without: these are the dearest lookups. */
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

/* Both readings of an entry that is not sure are judged again. It stays so until the sockets say who opened the flow. */
NN_INLINE int nn_judge_unsure(struct __sk_buff *ctx, struct nn_context *context, struct nn_ct_entry *entry)
{
	int result = nn_pickup(ctx);

	context->ct_status = context->is_reply ? NN_CT_REPLY : NN_CT_ESTABLISHED;
	if (result < 0 || (context->ct_flags & NN_CT_UNSURE))
		return result;
	entry->direction = context->is_reply ? NN_INGRESS + NN_EGRESS - context->direction : context->direction;
	entry->flags &= ~NN_CT_UNSURE;
	return 0;
}

/* The rules changed since the flow was allowed: judge it once more, as it was opened. A denied entry stays for as long as
 * either side goes on sending, so that packets of the other direction cannot open the flow again. Returns 0 or a drop
 * code. */
NN_INLINE int nn_judge_again(struct __sk_buff *ctx, struct nn_context *context, const struct nn_ct_key *key,
			     struct nn_ct_entry *entry, __u32 revision)
{
	struct nn_policy_question question;
	int result;

	if (entry->revision == revision)
		return 0;
	nn_identify(ctx, context);
	nn_keep_origin(context, entry);
	if (entry->flags & NN_CT_UNSURE) {
		result = nn_judge_unsure(ctx, context, entry);
	} else {
		context->ct_flags = 0;
		nn_ask(&question, context, key, entry->direction);
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

/* The answer of a backend gets the Service's address, and the port that the pod's socket has. Returns 0 or a drop code. */
NN_INLINE int nn_answers(struct nn_context *context, const struct nn_ct_key *key, const struct nn_ct_entry *entry)
{
	context->answers = 1;
	if (!(entry->flags & NN_CT_PORT))
		return 0;
	context->source_port = nn_lb_port_of(key, context->endpoint_id);
	return context->source_port ? 0 : NN_DROP_CT_UNKNOWN_STATE;
}

/* A packet of a flow that is known. Returns 0 or a drop code. */
NN_INLINE int nn_police_known(struct __sk_buff *ctx, struct nn_context *context, const struct nn_ct_key *key,
			      struct nn_ct_entry *entry, __u32 revision, __u32 now)
{
	int result;

	if (context->direction == NN_EGRESS && key->protocol != IPPROTO_TCP &&
	    ((entry->flags & NN_CT_TRANSLATED) || context->translated)) {
		/* The pod's own socket has the port that another one's datagrams were given (nn_lb_port_choose). */
		if (((entry->flags & NN_CT_PORT) != 0) != (context->source_port != 0))
			return NN_DROP_CT_UNKNOWN_STATE;
		nn_ct_answer_to(entry, context);
	}
	context->is_reply = entry->direction != context->direction;
	context->ct_status = context->is_reply ? NN_CT_REPLY : NN_CT_ESTABLISHED;
	context->rule_id = entry->rule_id;
	context->rev_nat_index = entry->rev_nat_index;
	result = nn_judge_again(ctx, context, key, entry, revision);
	if (result < 0)
		return result;
	if (context->direction == NN_INGRESS && (entry->flags & NN_CT_TRANSLATED)) {
		result = nn_answers(context, key, entry);
		if (result < 0)
			return result;
	}
	/* One report per packet, where it is delivered; what leaves for elsewhere is reported by whoever delivers it. */
	if (nn_ct_touch(entry, &context->packet, context->is_reply, now) && nn_config.trace_events &&
	    context->direction == NN_INGRESS) {
		nn_identify(ctx, context);
		nn_keep_origin(context, entry);
		nn_send_event(ctx, NN_EVENT_TRACE, NN_TO_ENDPOINT, 0);
	}
	return 0;
}

/* Whoever forwards a packet may report about it: routers and nodes. A pod forwards nothing, so it is believed about what was
 * sent to itself alone: an error by a third pod would end other pods' connections, or cut their packets small. */
NN_INLINE int nn_is_believed(const struct nn_context *context, const struct nn_tuple *quoted)
{
	const struct nn_addr *sender = &context->packet.tuple.saddr;

	if (nn_addr_equal(sender, &quoted->daddr))
		return 1;
	if (context->is_local || nn_endpoint_lookup(sender))
		return 0;
	return nn_is_reserved(nn_identity_of(sender));
}

/* An ICMP error about one of this endpoint's own flows belongs to that flow (CT_RELATED) and shares its verdict. The
 * quoted packet travelled the other way: the receiver of the error sent it, to the sender of the error or through it.
 * Returns 0, a drop code, or 1 when the error is about no such flow and is judged by itself. */
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
	/* Not on the stack: with all that calls and is called, 512 bytes would not do. */
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
	/* No policy allows it either: the rules say who may call the pod, not who may speak about its other flows. */
	if (context->direction == NN_INGRESS && !nn_is_believed(context, &inner->tuple))
		return NN_DROP_INVALID_PACKET;
	if (!nn_addr_equal(&key.pod, own) || !nn_addr_equal(&inner->tuple.saddr, &context->packet.tuple.daddr))
		return 1;
	entry = nn_ct_lookup(&key, context->endpoint_id, context->now);
	if (!entry)
		return 1;
	context->ct_status = NN_CT_RELATED;
	if (context->direction == NN_INGRESS && (entry->flags & NN_CT_TRANSLATED)) {
		context->rev_nat_index = entry->rev_nat_index;
		if (nn_answers(context, &key, entry) < 0)
			return NN_DROP_CT_UNKNOWN_STATE;
	}
	if (entry->revision == nn_policy_revision())
		return 0;
	nn_identify(ctx, context);
	/* The sender of an error may be a router on the way: the verdict is on the flow's own peer. */
	if (context->direction == NN_INGRESS)
		context->src_identity = nn_identity_of(&key.remote);
	nn_keep_origin(context, entry);
	nn_ask(&question, context, &key, entry->direction);
	return nn_policy_verdict(&question, &rule_id);
}

/* The first packet of a flow, or the first one since its entry was lost. Returns 0, a drop code, or NN_SERVICE_NEW. */
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
		/* Most sockets are translated before there is a packet. The others' packets must not leave as they are. */
		if (context->dst_identity == NN_IDENTITY_WORLD && nn_is_service_address(&key->remote))
			return NN_SERVICE_NEW;
		/* On the same node the receiving pod's half learns the Service from the sending pod's half. */
		context->rev_nat_index =
			nn_sock_revnat_index(context->cookie, &key->remote, key->remote_port, key->protocol);
	}
	if (nn_is_midstream(context)) {
		result = nn_pickup(ctx);
		context->ct_status = context->is_reply ? NN_CT_REPLY : NN_CT_ESTABLISHED;
	} else {
		nn_ask(&question, context, key, context->direction);
		result = nn_policy_verdict(&question, &context->rule_id);
	}
	if (result < 0)
		return result;
	/* Masqueraded peers have the node's address too. Let an answer to it pass, but make no entry: it would let packets of
	 * those peers in. They are judged by the interface that they came in by. */
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
	if (entry && nn_ct_clashes(entry, context))
		return NN_DROP_CT_UNKNOWN_STATE;
	if (!entry && context->direction == NN_EGRESS && !context->translated && nn_service_follow(context, &key, now))
		return NN_SERVICE_KNOWN;
	return nn_police_new(ctx, context, &key, nn_policy_revision(), now);
}

/* A later fragment before its first one has no ports, so no policy can be asked. It passes where none is to be asked: the first
 * one is judged when it comes, and without that the receiver throws the others away. To a Service it would need a backend. */
NN_INLINE int nn_police_lone_fragment(const struct nn_context *context)
{
	__u8 isolated = context->direction == NN_INGRESS ? NN_ENDPOINT_ISOLATED_INGRESS : NN_ENDPOINT_ISOLATED_EGRESS;

	if (nn_config.enforce_policy && (context->subject_flags & isolated))
		return NN_DROP_FRAGMENT_NOT_FOUND;
	if (context->direction == NN_EGRESS && nn_is_service_address(&context->packet.tuple.daddr))
		return NN_DROP_FRAGMENT_NOT_FOUND;
	return 0;
}

/* May this packet pass between the pod and its peer? Tracks the flow, asks the policy where that is due, and reports.
 * Returns 0, a drop code, or an nn_service_step for what a pod sends to a Service. */
NN_INLINE int nn_police(struct __sk_buff *ctx, struct nn_context *context, const struct nn_endpoint_entry *endpoint)
{
	int result = 1;

	context->endpoint_id = endpoint->endpoint_id;
	context->subject = endpoint->identity;
	context->subject_flags = endpoint->flags;
	if (context->packet.lone_fragment)
		return nn_police_lone_fragment(context);
	if (nn_is_icmp_error(&context->packet))
		result = nn_police_related(ctx);
	return result <= 0 ? result : nn_police_flow(ctx);
}

#endif
