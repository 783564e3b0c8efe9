/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The service stage on interfaces that lead out of the node: Services that are called from outside. The flows belong to
 * the node and to no pod. A packet of the client gets the backend's address where it enters the node, and the node's
 * stack routes it. The answer gets the Service's address where it leaves the node. A backend on this node sees the
 * client's address; for others see source.h. */
#ifndef NN_TRANSIT_H
#define NN_TRANSIT_H

#include "affinity.h"
#include "frag_create.h"
#include "hairpin.h"
#include "keeps.h"
#include "quote.h"
#include "source.h"
#include "source_range.h"
#include "transit_port.h"

/* Of nn_transit_enter: the packet opened the flow. */
#define NN_TRANSIT_NEW 2

/* The flow's entry for this half, if it is one of the node's. */
NN_INLINE struct nn_nat_entry *nn_transit_lookup(struct nn_context *context, const struct nn_tuple *tuple, __u8 half)
{
	struct nn_nat_entry *entry;

	nn_nat_key_of(tuple, half, &context->nat.key);
	entry = bpf_map_lookup_elem(&nn_nat, &context->nat.key);
	return entry && entry->endpoint_id == NN_NAT_OF_NODE ? entry : 0;
}

/* A packet of a known flow: renew its entry, and make it the context's. */
NN_INLINE void nn_transit_use(struct nn_context *context, struct nn_nat_entry *entry)
{
	const struct nn_packet *packet = &context->packet;
	__u8 flags = nn_ct_flags_of(packet, 0), known = entry->flags;

	if (context->nat.key.reply & NN_NAT_REPLY) {
		nn_nat_touch_reply(context, &context->nat.key, entry);
		context->nat.entry = *entry;
		return;
	}
	if (!(known & NN_NAT_OPENED) && nn_nat_proves(context, entry))
		flags |= NN_NAT_OPENED;
	nn_nat_touch(entry, flags, context->now);
	context->nat.entry = *entry;
	if ((flags & ~known & NN_NAT_OPENED) && context->nat.key.reply == NN_NAT_CLIENT)
		nn_nat_prove();
}

/* Translate a packet of the context's flow. Later fragments need the ports of the first one, also where policy would drop
 * it: there is no policy here. Returns 0 or a drop code. */
NN_GLOBAL int nn_transit_apply(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();

	if (!context)
		return NN_DROP_INVALID_PACKET;
	if (context->packet.first_fragment) {
		/* The view of who sent it. */
		nn_view_new(context, NN_INGRESS);
		nn_frag_create(ctx, NN_INGRESS);
	}
	return nn_nat_apply(ctx, &context->packet, &context->nat.entry);
}

/* True if the packet keeps the backend of this flow. Anyone can send a SYN from a client's address, so a SYN does not end
 * an open connection: the backend answers it. A SYN chooses again if the connection is over, if the backend has reset it
 * or does not exist any more, and, while the connection opens, if the backend has left the Service. */
NN_INLINE int nn_transit_keeps(struct nn_context *context, const struct nn_nat_entry *flow)
{
	const struct nn_packet *packet = &context->packet;
	const struct nn_nat_entry *reply;
	__u32 id = flow->backend_id, now = context->now;

	if (packet->tuple.protocol == IPPROTO_UDP && !flow->rev_nat_index)
		return !nn_nat_has_expired(flow, IPPROTO_UDP, now);
	if (packet->tuple.protocol == IPPROTO_UDP || !nn_is_syn(packet))
		return nn_service_keeps(packet, flow, now);
	nn_nat_other_of(&context->nat.key, flow, &context->nat.other);
	reply = bpf_map_lookup_elem(&nn_nat, &context->nat.other);
	if (nn_transit_is_over(flow, reply, IPPROTO_TCP, now))
		return 0;
	if (!flow->rev_nat_index)
		return 1;
	if (nn_nat_is_open(flow->flags) && !(reply && (reply->flags & NN_NAT_RST)))
		return nn_is_backend_of(bpf_map_lookup_elem(&nn_backend, &id), flow);
	return nn_service_has_slot(&packet->tuple, flow);
}

/* True if the address is a pod's of this node, or the node's own. */
NN_INLINE int nn_is_local(const struct nn_context *context, const struct nn_addr *addr)
{
	return nn_endpoint_lookup(addr) || nn_identity_of(addr, context->state.generation) == NN_IDENTITY_HOST;
}

/* The same backend for all new flows of this client, if the Service wants that. */
NN_INLINE void nn_transit_affinity(const struct nn_context *context, struct nn_lb_choice *choice)
{
	struct nn_affinity_key key = { .client = context->packet.tuple.saddr, .affinity_id = choice->affinity_id };

	nn_affinity_keep(&nn_affinity_out, &key, choice, context->now);
}

/* False for addresses that no other machine has, and that an answer must not be sent to: multicast and broadcast, the
 * loopback, no address, those of one link, which include the hairpin address, and ClusterIPs. */
NN_INLINE int nn_transit_is_client(const struct nn_addr *addr)
{
	__u32 v4 = bpf_ntohl(addr->word[3]);

	if (nn_is_hairpin_addr(addr) || nn_unserved(addr) < 0)
		return 0;
	if (nn_addr_is_v4(addr))
		return v4 >> 24 != 0 && v4 >> 24 != 127 && v4 >> 16 != 0xa9fe && v4 < 0xe0000000;
	/* ::/96 has the loopback and the address that is none. */
	return (addr->word[0] | addr->word[1] | addr->word[2]) != 0 && !nn_addr_is_link_local(addr) &&
	       bpf_ntohl(addr->word[0]) >> 24 != 0xff;
}

/* True if the packet may open a flow. Not a reset; nor a packet of the node's own connection from a port that a Service
 * or a hostPort has too: a SYN-ACK, or a later packet, which could also belong to a flow whose entries were lost. */
NN_INLINE int nn_transit_may_open(struct __sk_buff *ctx, struct nn_context *context)
{
	const struct nn_packet *packet = &context->packet;
	struct nn_nat_key *own = &context->nat.reply_key;

	if (packet->tcp_flags & NN_TCP_RST)
		return 0;
	if (nn_is_syn(packet))
		return 1;
	if (packet->tcp_flags & NN_TCP_SYN)
		return 0;
	nn_nat_key_of(&packet->tuple, NN_NAT_REPLY, own);
	own->saddr = packet->tuple.daddr;
	own->daddr = packet->tuple.saddr;
	own->sport = packet->tuple.dport;
	own->dport = packet->tuple.sport;
	return !nn_transit_has_socket(ctx);
}

/* Choose a backend for a new flow from outside. The client must not be the node or a pod of it: their calls are translated
 * before, and from outside such a source is forged. Returns 1 with the client's half in the context, 0 if the packet is
 * not served, or a drop code. */
NN_GLOBAL int nn_transit_choose(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct nn_lb_choice choice = {};
	const struct nn_packet *packet;
	struct nn_nat_entry *to;
	struct nn_view *view;
	int result;

	if (!context)
		return 0;
	packet = &context->packet;
	/* Of no pod: nn_nat_owner_of. */
	view = nn_view_new(context, NN_EGRESS);
	view->peer_identity = nn_identity_of(&packet->tuple.saddr, context->state.generation);
	if (view->peer_identity == NN_IDENTITY_HOST || nn_endpoint_lookup(&packet->tuple.saddr) ||
	    !nn_transit_is_client(&packet->tuple.saddr) || !nn_transit_may_open(ctx, context))
		return 0;
	nn_ct_key_of(&packet->tuple, NN_EGRESS, &view->flow);
	result = nn_lb_choose(&packet->tuple.daddr, packet->tuple.dport, packet->tuple.protocol, NN_SCOPE_EXTERNAL,
			      nn_flow_number(&view->flow), &choice);
	/* Named in the event of a drop. */
	nn_view_of(context, NN_INGRESS)->rev_nat_index = choice.rev_nat_index;
	if (!nn_source_allowed(&choice, &packet->tuple.saddr))
		return NN_DROP_NOT_IN_SOURCE_RANGE;
	context->nat.refused = nn_lb_refuses(result, &choice);
	if (result <= 0)
		return result;
	if (choice.affinity_seconds)
		nn_transit_affinity(context, &choice);
	nn_nat_key_of(&packet->tuple, NN_NAT_CLIENT, &context->nat.key);
	to = &context->nat.entry;
	__builtin_memset(to, 0, sizeof(*to));
	to->saddr = packet->tuple.saddr;
	to->sport = packet->tuple.sport;
	to->daddr = choice.backend.addr;
	to->dport = choice.backend.port;
	to->last_seen = context->now;
	to->rev_nat_index = choice.rev_nat_index;
	to->backend_id = choice.backend_id;
	to->slot = choice.slot;
	to->flags = nn_ct_flags_of(packet, 0);
	if (!(choice.flags & NN_FRONTEND_KEEP_SOURCE) && !nn_is_local(context, &to->daddr))
		to->flags |= NN_NAT_HAS_SOURCE;
	return 1;
}

/* Open a flow for a packet that enters the node. Returns NN_TRANSIT_NEW, 1 if the flow is no Service's, 0 if the packet
 * needs none, or a drop code. */
NN_INLINE int nn_transit_open(struct __sk_buff *ctx, struct nn_context *context)
{
	const struct nn_packet *packet = &context->packet;
	int result = nn_service_addr_of(&packet->tuple.daddr) ? nn_transit_choose(ctx) : 0;
	int opened = NN_TRANSIT_NEW;
	__u32 number;

	if (result == 0 && (packet->tuple.protocol == IPPROTO_UDP || nn_is_syn(packet)))
		opened = result = nn_transit_direct();
	if (result <= 0)
		return result;
	number = nn_flow_number(&nn_view_of(context, NN_EGRESS)->flow);
	result = nn_transit_port(ctx, number);
	if (result == 0)
		result = nn_nat_create();
	if (result < 0)
		return result;
	if (!(context->nat.entry.flags & NN_NAT_HAS_SOURCE))
		return opened;
	result = nn_source_create(number);
	if (result == 0)
		return opened;
	context->nat.gone = context->nat.key;
	nn_nat_delete();
	return result;
}

/* Find the flow of a packet that enters the node, or open one. Returns 1 or NN_TRANSIT_NEW with the flow in the context,
 * 0 if the packet is not for a Service, or a drop code. */
NN_INLINE int nn_transit_enter(struct __sk_buff *ctx, struct nn_context *context)
{
	const struct nn_tuple *tuple = &context->packet.tuple;
	struct nn_nat_entry *flow;

	flow = nn_transit_lookup(context, tuple, NN_NAT_CLIENT);
	if (flow && nn_transit_keeps(context, flow)) {
		nn_transit_use(context, flow);
		return 1;
	}
	/* A direct flow that has ended. Without it the next one may have its own port. */
	if (flow && !flow->rev_nat_index) {
		context->nat.gone = context->nat.key;
		nn_nat_delete();
	}
	/* A SYN is no reply. */
	if (nn_is_source_port(tuple->dport) && !nn_is_syn(&context->packet)) {
		flow = nn_transit_lookup(context, tuple, NN_NAT_SOURCE_REPLY);
		if (flow) {
			nn_transit_use(context, flow);
			return 1;
		}
	}
	return nn_transit_open(ctx, context);
}

/* Find the flow of a packet that leaves the node. Returns 1 with the flow in the context, 0, or a drop code. */
NN_INLINE int nn_transit_leave(struct __sk_buff *ctx, struct nn_context *context)
{
	struct nn_nat_entry *flow = 0;

	if (!nn_is_syn(&context->packet))
		flow = nn_transit_lookup(context, &context->packet.tuple, NN_NAT_REPLY);
	/* The node's own packets have no client outside. */
	if (!flow && ctx->ingress_ifindex) {
		flow = nn_transit_lookup(context, &context->packet.tuple, NN_NAT_SOURCE_CLIENT);
		if (!flow)
			return nn_source_lost();
	}
	if (!flow)
		return 0;
	nn_transit_use(context, flow);
	return 1;
}

/* The flow's entry for packets that travel like an ICMP error: in the other direction than the quoted one. */
NN_INLINE struct nn_nat_entry *nn_transit_quoted(struct nn_context *context, __u8 half)
{
	const struct nn_tuple *quoted = &context->quote.tuple;
	struct nn_nat_key *key = &context->nat.key;
	struct nn_nat_entry *entry;

	key->saddr = quoted->daddr;
	key->daddr = quoted->saddr;
	key->sport = quoted->dport;
	key->dport = quoted->sport;
	key->protocol = quoted->protocol;
	key->reply = half;
	key->pad[0] = key->pad[1] = 0;
	entry = bpf_map_lookup_elem(&nn_nat, key);
	return entry && entry->endpoint_id == NN_NAT_OF_NODE ? entry : 0;
}

/* An ICMP error about a packet that this node translated. Returns 0 or a drop code. */
NN_GLOBAL int nn_transit_error(struct __sk_buff *ctx, __u32 side)
{
	struct nn_context *context = nn_context_now();
	struct nn_nat_entry *to;
	struct nn_packet *packet;

	if (!context)
		return 0;
	if (nn_parse_quote(ctx, context) < 0)
		return 0;
	packet = &context->packet;
	if (!nn_addr_equal(&packet->tuple.daddr, &context->quote.tuple.saddr))
		return 0;
	to = nn_transit_quoted(context, side == NN_INGRESS ? NN_NAT_CLIENT : NN_NAT_REPLY);
	if (!to)
		to = nn_transit_quoted(context, side == NN_INGRESS ? NN_NAT_SOURCE_REPLY : NN_NAT_SOURCE_CLIENT);
	if (!to)
		return 0;
	context->nat.entry = *to;
	if (nn_rewrite_quoted(ctx, packet, &context->quote, &context->nat.entry) < 0)
		return NN_DROP_INVALID_PACKET;
	/* The sender of the error is the receiver of the quoted packet, or a router. */
	if (nn_addr_equal(&packet->tuple.saddr, &context->nat.key.saddr) &&
	    nn_rewrite_outer_source(ctx, packet, &context->nat.entry.saddr) < 0)
		return NN_DROP_INVALID_PACKET;
	return nn_rewrite_outer_destination(ctx, packet, &context->nat.entry.daddr);
}

/* Report the first packet of a flow. What sees it later, the pod's interface or another node, does not know the Service,
 * and another node not the client either. */
NN_GLOBAL int nn_transit_report(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct nn_view *view;

	if (!context)
		return 0;
	view = nn_view_new(context, NN_INGRESS);
	view->peer_identity = nn_view_of(context, NN_EGRESS)->peer_identity;
	view->subject = nn_identity_of(&context->packet.tuple.daddr, context->state.generation);
	view->rev_nat_index = context->nat.entry.rev_nat_index;
	nn_send_event(ctx, NN_EVENT_TRACE, NN_FROM_NETWORK, 0, NN_INGRESS);
	return 0;
}

/* A packet that is neither TCP nor UDP: a ClusterIP refuses it. Returns 0 or a drop code. */
NN_INLINE int nn_transit_other(struct nn_context *context)
{
	int result = nn_unserved(&context->packet.tuple.daddr);

	context->nat.refused = result < 0 && nn_transit_is_client(&context->packet.tuple.saddr);
	return result;
}

/* The stage. `side`: NN_INGRESS where packets enter the node, NN_EGRESS where they leave it. Returns 0: the packet goes on,
 * or a drop code. */
NN_INLINE int nn_transit(struct __sk_buff *ctx, struct nn_context *context, __u32 side)
{
	__u8 protocol = context->packet.tuple.protocol;
	int found, result;

	if (nn_is_icmp_error(&context->packet))
		return nn_transit_error(ctx, side);
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return side == NN_INGRESS ? nn_transit_other(context) : 0;
	found = side == NN_INGRESS ? nn_transit_enter(ctx, context) : nn_transit_leave(ctx, context);
	if (found <= 0)
		return found;
	result = nn_transit_apply(ctx);
	if (result == 0 && found == NN_TRANSIT_NEW && nn_config.trace_events)
		nn_transit_report(ctx);
	return result;
}

#endif
