// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* tc programs on the node's side of every pod's veth pair. The hooks are reversed: what the pod sends (its egress)
 * arrives at tc ingress, what it receives (its ingress) leaves at tc egress. */
#include "lib/conntrack.h"
#include "lib/lb.h"
#include "lib/link.h"

/* The port that was called: the far one for what the pod opened, its own for what was opened to it. */
NN_INLINE void nn_ask(struct nn_policy_question *question, const struct nn_endpoint_entry *endpoint,
		      const struct nn_ct_key *key, __u32 peer_identity, __u8 direction)
{
	__builtin_memset(question, 0, sizeof(*question));
	question->endpoint = endpoint;
	question->peer = key->remote;
	question->peer_identity = peer_identity;
	question->protocol = key->protocol;
	question->direction = direction;
	if (key->protocol != IPPROTO_ICMP && key->protocol != IPPROTO_ICMPV6)
		question->port = direction == NN_EGRESS ? key->remote_port : key->pod_port;
}

NN_INLINE __u32 nn_policy_revision(void)
{
	__u32 zero = 0;
	struct nn_state *state = bpf_map_lookup_elem(&nn_state, &zero);

	return state ? state->policy_revision : 0;
}

/* Who is at both ends, and through which Service the pod's socket came. Established flows that nobody is told about
 * do without: these are the dearest lookups. */
NN_INLINE void nn_identify(struct __sk_buff *ctx, struct nn_context *context, const struct nn_endpoint_entry *endpoint)
{
	const struct nn_tuple *tuple = &context->packet.tuple;

	if (context->direction == NN_EGRESS) {
		context->src_identity = endpoint->identity;
		context->dst_identity = nn_identity_of(&tuple->daddr);
		context->cookie = bpf_get_socket_cookie(ctx);
	} else {
		context->src_identity = nn_identity_of(&tuple->saddr);
		context->dst_identity = endpoint->identity;
	}
}

NN_INLINE __u32 nn_peer_identity(const struct nn_context *context)
{
	return context->direction == NN_EGRESS ? context->dst_identity : context->src_identity;
}

/* The rules changed since the flow was allowed: judge it once more, as it was opened. A denied entry stays, so that
 * packets of the other direction cannot open it anew. Returns 0 or a drop code. */
NN_INLINE int nn_judge_again(struct __sk_buff *ctx, struct nn_context *context, struct nn_endpoint_entry *endpoint,
			     const struct nn_ct_key *key, struct nn_ct_entry *entry, __u32 revision)
{
	struct nn_policy_question question;
	__u32 rule_id = 0;
	int result;

	if (entry->revision == revision)
		return 0;
	nn_identify(ctx, context, endpoint);
	nn_ask(&question, endpoint, key, nn_peer_identity(context), entry->direction);
	result = nn_policy_verdict(&question, &rule_id);
	if (result < 0)
		return result;
	entry->rule_id = rule_id;
	entry->revision = revision;
	context->rule_id = rule_id;
	return 0;
}

/* A packet of a flow that is known. Returns 0 or a drop code. */
NN_INLINE int nn_police_known(struct __sk_buff *ctx, struct nn_context *context, struct nn_endpoint_entry *endpoint,
			      const struct nn_ct_key *key, struct nn_ct_entry *entry, __u32 revision, __u32 now)
{
	int result;

	context->is_reply = entry->direction != context->direction;
	context->ct_status = context->is_reply ? NN_CT_REPLY : NN_CT_ESTABLISHED;
	context->rule_id = entry->rule_id;
	context->rev_nat_index = entry->rev_nat_index;
	result = nn_judge_again(ctx, context, endpoint, key, entry, revision);
	if (result < 0)
		return result;
	/* One report per packet, where it is delivered; what leaves for elsewhere is reported by whoever delivers it. */
	if (nn_ct_touch(entry, &context->packet, context->is_reply, now) && nn_config.trace_events &&
	    context->direction == NN_INGRESS) {
		nn_identify(ctx, context, endpoint);
		nn_send_event(ctx, context, NN_EVENT_TRACE, NN_TO_ENDPOINT, 0);
	}
	return 0;
}

/* An ICMP error about one of this endpoint's own flows belongs to that flow (CT_RELATED) and shares its verdict. The
 * packet inside travelled the other way: it came from whom the error is sent to. Returns 0, a drop code, or 1 when the
 * error is about no such flow and is judged by itself. */
NN_SUBPROGRAM int nn_police_related(struct __sk_buff *ctx, struct nn_context *context,
				    struct nn_endpoint_entry *endpoint)
{
	struct nn_policy_question question;
	struct nn_packet inner = {};
	const struct nn_addr *own;
	struct nn_ct_entry *entry;
	struct nn_ct_key key;
	__u32 rule_id;

	if (!context || !endpoint)
		return NN_DROP_INVALID_PACKET;
	inner.offset = context->packet.offset + NN_ICMP_HEADER;
	if (nn_parse_ip(ctx, &inner, context->packet.ip_version) < 0)
		return 1;
	own = context->direction == NN_EGRESS ? &context->packet.tuple.saddr : &context->packet.tuple.daddr;
	nn_ct_key_of(&inner.tuple, context->direction == NN_EGRESS ? NN_INGRESS : NN_EGRESS, &key);
	if (!nn_addr_equal(&key.pod, own) || !nn_addr_equal(&inner.tuple.saddr, &context->packet.tuple.daddr))
		return 1;
	entry = nn_ct_lookup(&key, endpoint->endpoint_id, nn_now_seconds());
	if (!entry)
		return 1;
	/* The sender of an error may be a router on the way: the verdict is on the flow's own peer. */
	context->ct_status = NN_CT_RELATED;
	if (entry->revision == nn_policy_revision())
		return 0;
	nn_identify(ctx, context, endpoint);
	if (context->direction == NN_INGRESS)
		context->src_identity = nn_identity_of(&key.remote);
	nn_ask(&question, endpoint, &key, nn_peer_identity(context), entry->direction);
	return nn_policy_verdict(&question, &rule_id);
}

/* The first packet of a flow. Returns 0 or a drop code. */
NN_INLINE int nn_police_new(struct __sk_buff *ctx, struct nn_context *context, struct nn_endpoint_entry *endpoint,
			    const struct nn_ct_key *key, __u32 revision, __u32 now)
{
	struct nn_policy_question question;
	int result;

	context->ct_status = NN_CT_NEW;
	context->is_reply = 0;
	nn_identify(ctx, context, endpoint);
	if (context->direction == NN_EGRESS) {
		/* On the same node the receiving pod's half learns the Service from the sending pod's half. */
		context->rev_nat_index =
			nn_sock_revnat_index(context->cookie, &key->remote, key->remote_port, key->protocol);
		/* Sockets are translated before there is a packet: this one has no backend, or was made by hand. It
		 * must not leave by the default route. */
		if (context->dst_identity == NN_IDENTITY_WORLD && nn_is_service_address(&key->remote))
			return NN_DROP_IS_A_CLUSTERIP;
	}
	nn_ask(&question, endpoint, key, nn_peer_identity(context), context->direction);
	result = nn_policy_verdict(&question, &context->rule_id);
	if (result < 0)
		return result;
	result = nn_ct_create(key, context, revision, now);
	if (result == 0 && nn_config.trace_events)
		nn_send_event(ctx, context, NN_EVENT_POLICY_VERDICT, 0, 0);
	return result;
}

NN_SUBPROGRAM int nn_police_flow(struct __sk_buff *ctx, struct nn_context *context, struct nn_endpoint_entry *endpoint)
{
	__u32 now = nn_now_seconds();
	struct nn_ct_entry *entry;
	struct nn_ct_key key;

	if (!context || !endpoint)
		return NN_DROP_INVALID_PACKET;
	nn_ct_key_of(&context->packet.tuple, context->direction, &key);
	entry = nn_ct_lookup(&key, endpoint->endpoint_id, now);
	if (entry && !nn_ct_opens(&context->packet, entry, context->direction))
		return nn_police_known(ctx, context, endpoint, &key, entry, nn_policy_revision(), now);
	return nn_police_new(ctx, context, endpoint, &key, nn_policy_revision(), now);
}

/* May this packet pass between the pod and its peer? Tracks the flow, asks the policy where that is due, and reports.
 * Returns 0 or a drop code. Inline: the frames of the two below must not stand on each other (512 bytes in all). */
NN_INLINE int nn_police(struct __sk_buff *ctx, struct nn_context *context, struct nn_endpoint_entry *endpoint)
{
	int result = 1;

	context->endpoint_id = endpoint->endpoint_id;
	if (nn_is_icmp_error(&context->packet))
		result = nn_police_related(ctx, context, endpoint);
	return result <= 0 ? result : nn_police_flow(ctx, context, endpoint);
}

/* Straight into the other pod's namespace. The frame may have been addressed to the gateway. */
NN_INLINE int nn_deliver_local(struct __sk_buff *ctx, const struct nn_endpoint_entry *target)
{
	__u8 mac[ETH_ALEN];
	__u32 ifindex = target->ifindex;

	__builtin_memcpy(mac, target->mac, ETH_ALEN);
	bpf_skb_store_bytes(ctx, offsetof(struct ethhdr, h_dest), mac, ETH_ALEN, 0);
	bpf_skb_change_type(ctx, PACKET_HOST);
	return bpf_redirect_peer(ifindex, 0);
}

NN_INLINE int nn_from_pod(struct __sk_buff *ctx, struct nn_context *context)
{
	struct nn_endpoint_entry *source, *target;
	int result;

	if (nn_is_link_control(&context->packet)) {
		result = nn_check_link_control(ctx, &context->packet);
		return result < 0 ? nn_drop(ctx, context, result) : TC_ACT_OK;
	}
	source = nn_owner(ctx, &context->packet.tuple.saddr);
	if (!source)
		return nn_drop(ctx, context, NN_DROP_INVALID_SOURCE_IP);
	result = nn_police(ctx, context, source);
	if (result < 0)
		return nn_drop(ctx, context, result);
	nn_remember_fragment(ctx, &context->packet);
	nn_count(NN_METRIC_FORWARDED, NN_EGRESS, ctx->len);
	if (!nn_config.redirect_peer)
		return TC_ACT_OK;
	target = nn_endpoint_lookup(&context->packet.tuple.daddr);
	if (!target)
		return TC_ACT_OK;
	context->direction = NN_INGRESS;
	result = nn_police(ctx, context, target);
	if (result < 0)
		return nn_drop(ctx, context, result);
	nn_count(NN_METRIC_FORWARDED, NN_INGRESS, ctx->len);
	return nn_deliver_local(ctx, target);
}

SEC("tc")
int endpoint_egress(struct __sk_buff *ctx)
{
	struct nn_context context = { .direction = NN_EGRESS };
	int layer = nn_parse_ethernet(ctx, &context.packet);
	int result;

	if (layer < 0)
		return nn_drop(ctx, &context, layer);
	if (layer == NN_LINK_ARP) {
		result = nn_check_arp(ctx);
		return result < 0 ? nn_drop(ctx, &context, result) : TC_ACT_OK;
	}
	result = nn_parse_ip(ctx, &context.packet, layer);
	if (result < 0)
		return nn_drop(ctx, &context, result);
	return nn_from_pod(ctx, &context);
}

/* A bridge floods multicast, and what it has not learned: not this pod's packets, and nothing to tell a person. */
NN_INLINE int nn_not_for_pod(struct __sk_buff *ctx, struct nn_context *context, int is_other_pods)
{
	__u8 first = 0;

	bpf_skb_load_bytes(ctx, offsetof(struct ethhdr, h_dest), &first, sizeof(first));
	if (!is_other_pods && !(first & 1))
		return nn_drop(ctx, context, NN_DROP_ENDPOINT_NOT_READY);
	nn_count(is_other_pods ? -NN_DROP_ENDPOINT_NOT_READY : -NN_DROP_MULTICAST, NN_INGRESS, ctx->len);
	return TC_ACT_SHOT;
}

SEC("tc")
int endpoint_ingress(struct __sk_buff *ctx)
{
	struct nn_context context = { .direction = NN_INGRESS };
	int layer = nn_parse_ethernet(ctx, &context.packet);
	struct nn_endpoint_entry *target;
	int result;

	if (layer < 0)
		return nn_drop(ctx, &context, layer);
	if (layer == NN_LINK_ARP)
		return TC_ACT_OK;
	result = nn_parse_ip(ctx, &context.packet, layer);
	if (result < 0)
		return nn_drop(ctx, &context, result);
	if (nn_is_link_control(&context.packet)) {
		/* Routers do not advertise themselves to pods: their routes are the plugin's. */
		result = context.packet.icmp_type == NN_ND_ROUTER_ADVERTISEMENT ||
			 context.packet.icmp_type == NN_ND_REDIRECT;
		return result ? nn_drop(ctx, &context, NN_DROP_FORBIDDEN_ICMPV6) : TC_ACT_OK;
	}
	target = nn_endpoint_lookup(&context.packet.tuple.daddr);
	if (!target || target->ifindex != ctx->ifindex)
		return nn_not_for_pod(ctx, &context, target != 0);
	result = nn_police(ctx, &context, target);
	if (result < 0)
		return nn_drop(ctx, &context, result);
	nn_remember_fragment(ctx, &context.packet);
	nn_count(NN_METRIC_FORWARDED, NN_INGRESS, ctx->len);
	return TC_ACT_OK;
}

char nn_license[] SEC("license") = "Dual BSD/GPL";
