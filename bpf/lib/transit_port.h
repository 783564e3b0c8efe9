/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The client's port of flows from outside. Behind the translation to a backend whose source is kept, two connections of a
 * client may have the same ends: through two Services, or through a Service and directly. Then the later one gets another
 * port. */
#ifndef NN_TRANSIT_PORT_H
#define NN_TRANSIT_PORT_H

#include "nat_port.h"

/* nn_nat_entry.endpoint_id of flows that the node translates for others. */
#define NN_NAT_OF_NODE 0

/* True if the flow's connection is over: both sides have closed it, or it has expired. `flow`: the client's half. `reply`:
 * the other one. A reset counts only if the backend sent it. In the client's name anyone can send one, and the backend
 * ignores it if its sequence number is wrong. */
NN_INLINE int nn_transit_is_over(const struct nn_nat_entry *flow, const struct nn_nat_entry *reply, __u8 protocol,
				 __u32 now)
{
	__u8 flags = flow->flags;

	if (nn_nat_is_closed(flags))
		return 1;
	if (!reply || !(reply->flags & NN_NAT_RST))
		flags &= ~NN_NAT_RST;
	if (!nn_nat_is_open(flags))
		flags &= ~NN_NAT_SEEN_REPLY;
	return (__s32)(now - flow->last_seen) > (__s32)nn_ct_lifetime(flags, protocol);
}

/* True if a socket of the node has the local end `saddr` and the remote end `daddr` of the context's reply_key: a connection
 * of the node's own. A listener has no remote end, and an old connection in TIME_WAIT makes way for a new one. */
NN_GLOBAL int nn_transit_has_socket(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct bpf_sock_tuple ends = {};
	const struct nn_nat_key *key;
	struct bpf_sock *sock;
	int found, v4;
	__u32 size;

	if (!context)
		return 0;
	key = &context->nat.reply_key;
	v4 = nn_addr_is_v4(&key->saddr);
	size = v4 ? sizeof(ends.ipv4) : sizeof(ends.ipv6);
	if (v4) {
		ends.ipv4.saddr = key->daddr.word[3];
		ends.ipv4.daddr = key->saddr.word[3];
		ends.ipv4.sport = key->dport;
		ends.ipv4.dport = key->sport;
	} else {
		__builtin_memcpy(ends.ipv6.saddr, &key->daddr, sizeof(ends.ipv6.saddr));
		__builtin_memcpy(ends.ipv6.daddr, &key->saddr, sizeof(ends.ipv6.daddr));
		ends.ipv6.sport = key->dport;
		ends.ipv6.dport = key->sport;
	}
	if (key->protocol == IPPROTO_UDP) {
		sock = bpf_sk_lookup_udp(ctx, &ends, size, BPF_F_CURRENT_NETNS, 0);
		if (!sock)
			return 0;
		found = sock->dst_port != 0;
	} else {
		sock = bpf_skc_lookup_tcp(ctx, &ends, size, BPF_F_CURRENT_NETNS, 0);
		if (!sock)
			return 0;
		found = sock->state != BPF_TCP_LISTEN && sock->state != BPF_TCP_TIME_WAIT;
	}
	bpf_sk_release(sock);
	return found;
}

/* True if the backend on this node has a flow with the client's ends that no Service translates, or one whose entries
 * were lost. Only for packets that open a flow: others belong to the lost one. A pod's flows are in its conntrack, those
 * of a hostNetwork backend at the node's sockets. */
NN_INLINE int nn_transit_is_direct(struct __sk_buff *ctx, struct nn_context *context, const struct nn_nat_key *reply)
{
	const struct nn_endpoint_entry *backend = nn_endpoint_lookup(&reply->saddr);
	struct nn_ct_key *flow = &context->key;
	const struct nn_ct_entry *taken;

	if (reply->protocol == IPPROTO_TCP && !nn_is_syn(&context->packet))
		return 0;
	if (!backend)
		return nn_identity_of(&reply->saddr, context->state.generation) == NN_IDENTITY_HOST &&
		       nn_transit_has_socket(ctx);
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->pod = reply->saddr;
	flow->remote = reply->daddr;
	flow->pod_port = reply->sport;
	flow->remote_port = reply->dport;
	flow->protocol = reply->protocol;
	taken = nn_ct_lookup(flow, backend->endpoint_id, context->now);
	return taken && !(taken->flags & (NN_CT_FIN_FORWARD | NN_CT_RST));
}

/* True if another flow has the ends that this one would have behind the translation (the context's reply_key). */
NN_INLINE int nn_transit_is_taken(struct __sk_buff *ctx, struct nn_context *context)
{
	struct nn_nat *nat = &context->nat;
	const struct nn_nat_entry *held = bpf_map_lookup_elem(&nn_nat, &nat->reply_key);

	if (!held)
		return nn_transit_is_direct(ctx, context, &nat->reply_key);
	nn_nat_other_of(&nat->reply_key, held, &nat->other);
	if (held->sport == nat->key.dport && held->dport == nat->key.sport &&
	    nn_addr_equal(&held->saddr, &nat->key.daddr) && nn_addr_equal(&held->daddr, &nat->key.saddr))
		return 0;
	held = bpf_map_lookup_elem(&nn_nat, &nat->other);
	return held && !nn_nat_has_expired(held, nat->key.protocol, context->now);
}

/* Choose the client's port behind the translation: its own one, or another one if another flow of the client to this
 * backend has it. Returns 0 or a drop code. */
NN_GLOBAL int nn_transit_port(struct __sk_buff *ctx, __u32 number)
{
	struct nn_context *context = nn_context_now();
	struct nn_nat *nat;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	nat = &context->nat;
	nn_nat_other_of(&nat->key, &nat->entry, &nat->reply_key);
	for (int i = 0; i < NN_PORT_TRIES; i++) {
		if (!nn_transit_is_taken(ctx, context)) {
			nat->entry.sport = nat->reply_key.dport;
			return 0;
		}
		nat->reply_key.dport = bpf_htons(NN_PORT_FIRST + ((number + i * NN_PORT_STEP) & NN_PORT_MASK));
	}
	return NN_DROP_NAT_NO_MAPPING;
}

/* A SYN, or a datagram without a flow, that no Service serves. If a flow from outside has its ends behind the translation,
 * the answers would get the Service's address. A flow that is over is deleted. Beside any other one, the packet opens a
 * flow of its own, of no Service, which only gets another port. Returns 1 with the client's half in the context, or 0: the
 * packet goes on as it is. */
NN_GLOBAL int nn_transit_direct(void)
{
	struct nn_context *context = nn_context_now();
	const struct nn_nat_entry *held, *client;
	const struct nn_tuple *tuple;
	struct nn_nat_entry *to;
	struct nn_view *view;
	struct nn_nat *nat;

	if (!context)
		return 0;
	nat = &context->nat;
	to = &nat->entry;
	tuple = &context->packet.tuple;
	__builtin_memset(to, 0, sizeof(*to));
	to->saddr = tuple->saddr;
	to->sport = tuple->sport;
	to->daddr = tuple->daddr;
	to->dport = tuple->dport;
	nn_nat_key_of(tuple, NN_NAT_CLIENT, &nat->key);
	nn_nat_other_of(&nat->key, to, &nat->reply_key);
	held = bpf_map_lookup_elem(&nn_nat, &nat->reply_key);
	if (!held || held->endpoint_id != NN_NAT_OF_NODE)
		return 0;
	nn_nat_other_of(&nat->reply_key, held, &nat->other);
	client = bpf_map_lookup_elem(&nn_nat, &nat->other);
	if (!client || nn_transit_is_over(client, held, tuple->protocol, context->now)) {
		nat->gone = nat->reply_key;
		nn_nat_delete();
		return 0;
	}
	to->last_seen = context->now;
	to->flags = nn_ct_flags_of(&context->packet, 0) | (held->flags & NN_NAT_HAS_SOURCE);
	view = nn_view_new(context, NN_EGRESS);
	nn_ct_key_of(tuple, NN_EGRESS, &view->flow);
	return 1;
}

#endif
