/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A pod that calls its own Service and is itself the chosen backend. Its kernel would reject packets from its own
 * address, so the pod sees a reserved source address, the hairpin address. Policy is not checked: a pod may always
 * reach itself. The packets return directly to the pod and never cross the bridge. */
#ifndef NN_HAIRPIN_H
#define NN_HAIRPIN_H

#include "ct_create.h"
#include "service.h"

/* 169.254.42.1: link-local (RFC 3927), not forwarded by routers. 100::1: the discard prefix (RFC 6666). */
#define NN_HAIRPIN_V4 0xa9fe2a01
#define NN_HAIRPIN_V6_FIRST 0x01000000
#define NN_HAIRPIN_V6_LAST 1

NN_INLINE void nn_hairpin_addr(struct nn_addr *addr, int ip_version)
{
	if (ip_version == 4) {
		nn_addr_from_v4(addr, bpf_htonl(NN_HAIRPIN_V4));
		return;
	}
	addr->word[0] = bpf_htonl(NN_HAIRPIN_V6_FIRST);
	addr->word[1] = 0;
	addr->word[2] = 0;
	addr->word[3] = bpf_htonl(NN_HAIRPIN_V6_LAST);
}

NN_INLINE int nn_is_hairpin_addr(const struct nn_addr *addr)
{
	if (addr->word[3] == bpf_htonl(NN_HAIRPIN_V4))
		return nn_addr_is_v4(addr);
	return addr->word[3] == bpf_htonl(NN_HAIRPIN_V6_LAST) && addr->word[0] == bpf_htonl(NN_HAIRPIN_V6_FIRST) &&
	       (addr->word[1] | addr->word[2]) == 0;
}

/* The flow as the pod sees it as a server: the client has the hairpin address. */
NN_INLINE void nn_hairpin_key_of(const struct nn_tuple *tuple, const struct nn_addr *hairpin_addr, __be16 server,
				 __be16 client, struct nn_ct_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->pod = tuple->saddr;
	key->remote = *hairpin_addr;
	key->pod_port = server;
	key->remote_port = client;
	key->protocol = tuple->protocol;
}

/* The ingress side of the packet: the pod itself. */
NN_INLINE struct nn_view *nn_hairpin_view(struct nn_context *context)
{
	const struct nn_view *from = nn_view_of(context, NN_EGRESS);
	struct nn_view *view = nn_view_new(context, NN_INGRESS);

	view->endpoint_id = view->sender_id = from->endpoint_id;
	view->subject = view->peer_identity = from->subject;
	view->is_local = 1;
	return view;
}

/* A packet from the pod to its own Service; the backend is in the context. Returns 0 or a drop code. */
NN_GLOBAL int nn_hairpin_call(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct nn_addr hairpin_addr, pod;
	struct nn_ct_entry *entry;
	struct nn_view *view;
	__u32 index;
	int result;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	index = nn_view_of(context, NN_EGRESS)->rev_nat_index;
	view = nn_hairpin_view(context);
	view->rev_nat_index = index;
	view->nat = NN_CT_TRANSLATED;
	pod = context->packet.tuple.saddr;
	nn_hairpin_addr(&hairpin_addr, context->packet.ip_version);
	nn_hairpin_key_of(&context->packet.tuple, &hairpin_addr, context->nat.backend_port, context->packet.tuple.sport,
			  &view->flow);
	entry = nn_ct_lookup(&view->flow, view->endpoint_id, context->now);
	if (entry && !nn_is_syn(&context->packet) && entry->rev_nat_index == index) {
		nn_ct_touch(entry, &context->packet, 0, context->now);
	} else {
		if (nn_ct_create(context, view) < 0)
			return NN_DROP_CT_INSERT_FAILED;
		if (nn_config.trace_events)
			nn_send_event(ctx, NN_EVENT_TRACE, NN_TO_ENDPOINT, 0, NN_INGRESS);
	}
	result = nn_rewrite_destination(ctx, &context->packet, &pod, context->nat.backend_port);
	if (result < 0)
		return result;
	return nn_rewrite_source(ctx, &context->packet, &hairpin_addr, context->packet.tuple.sport);
}

/* The pod's reply to the hairpin address: return it to the pod, which is the client too. The caller then calls
 * nn_service_reverse to restore the Service's address; calling it from here would need one more stack frame. Returns 0
 * or a drop code. */
NN_GLOBAL int nn_hairpin_answer(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	const struct nn_tuple *tuple;
	struct nn_ct_entry *entry;
	struct nn_view *view;
	struct nn_addr pod;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	if (context->packet.early_fragment)
		return NN_DROP_FRAGMENT_NOT_FOUND;
	nn_remember_fragment(ctx, &context->packet, NN_EGRESS);
	view = nn_hairpin_view(context);
	tuple = &context->packet.tuple;
	pod = tuple->saddr;
	nn_hairpin_key_of(tuple, &tuple->daddr, tuple->sport, tuple->dport, &view->flow);
	entry = nn_ct_lookup(&view->flow, view->endpoint_id, context->now);
	if (!entry || !(entry->flags & NN_CT_TRANSLATED))
		return NN_DROP_CT_UNKNOWN_STATE;
	nn_ct_touch(entry, &context->packet, 1, context->now);
	view->rev_nat_index = entry->rev_nat_index;
	view->reverse = NN_CT_TRANSLATED;
	return nn_rewrite_destination(ctx, &context->packet, &pod, tuple->dport);
}

/* The service stage for a packet that a pod sends; the egress view names the pod. Returns 0: the packet goes on,
 * NN_SERVICE_RETURN: it goes back to the pod, or a drop code. */
NN_INLINE int nn_service(struct __sk_buff *ctx, struct nn_context *context)
{
	const struct nn_addr *daddr = &context->packet.tuple.daddr;
	int result;

	if (nn_is_hairpin_addr(daddr)) {
		result = nn_hairpin_answer(ctx);
		if (result == 0)
			result = nn_service_reverse(ctx, NN_INGRESS);
		return result < 0 ? result : NN_SERVICE_RETURN;
	}
	if (!nn_service_addr_of(daddr))
		return 0;
	/* It has no ports, so its backend is not known. Where it may be none of a Service's packets, it goes on. */
	if (context->packet.early_fragment)
		return nn_unserved(daddr) < 0 ? NN_DROP_FRAGMENT_NOT_FOUND : 0;
	result = nn_service_translate(ctx);
	if (result != NN_SERVICE_RETURN)
		return result;
	result = nn_hairpin_call(ctx);
	return result < 0 ? result : NN_SERVICE_RETURN;
}

#endif
