/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The deliver stage: a packet that passed the others goes to the node's network stack, directly into a pod of this node,
 * or back to its sender. A reply of a Service gets the Service's address before it enters the pod. */
#ifndef NN_DELIVER_H
#define NN_DELIVER_H

#include "police.h"
#include "refuse.h"
#include "service.h"

/* Deliver directly into the pod's namespace. The frame may have been addressed to the gateway. */
NN_INLINE int nn_deliver_local(struct __sk_buff *ctx, const struct nn_endpoint_entry *target)
{
	__u8 mac[ETH_ALEN];
	__u32 ifindex = target->ifindex;

	if (!nn_has_mac(ctx, offsetof(struct ethhdr, h_dest), target->mac)) {
		__builtin_memcpy(mac, target->mac, ETH_ALEN);
		bpf_skb_store_bytes(ctx, offsetof(struct ethhdr, h_dest), mac, ETH_ALEN, 0);
	}
	bpf_skb_change_type(ctx, PACKET_HOST);
	return bpf_redirect_peer(ifindex, 0);
}

/* Drop a packet that a pod of this node sent. If its connection cannot go on, or its Service refuses it, turn the packet
 * into a reset or an ICMP error and return it to its sender. */
NN_INLINE int nn_refuse(struct __sk_buff *ctx, struct nn_context *context, const struct nn_endpoint_entry *sender,
			__u32 side, int reason)
{
	int dropped = nn_drop(ctx, side, reason);

	if (!context->nat.refused && !nn_reset_is_due(&context->packet, nn_view_of(context, side), reason))
		return dropped;
	if (nn_refusal_of(ctx, &context->packet) < 0 || nn_answer_ethernet(ctx) < 0)
		return dropped;
	return nn_deliver_local(ctx, sender);
}

/* Return the packet to the pod that sent it. */
NN_INLINE int nn_deliver_back(struct __sk_buff *ctx, const struct nn_endpoint_entry *sender)
{
	nn_count(NN_METRIC_FORWARDED, NN_EGRESS, ctx->len);
	nn_count(NN_METRIC_FORWARDED, NN_INGRESS, ctx->len);
	return nn_deliver_local(ctx, sender);
}

/* The ingress side of a packet to a pod: policy, then the reply's translation. The ingress view names the pod. Returns 0
 * or a drop code. */
NN_INLINE int nn_enter_pod(struct __sk_buff *ctx, struct nn_context *context)
{
	const struct nn_view *view = nn_view_of(context, NN_INGRESS);
	int result = nn_police(ctx, context, NN_INGRESS);

	if (result < 0)
		return result;
	/* Fragments of a pod of this node were recorded when they left it. */
	if (!view->is_local)
		nn_remember_fragment(ctx, &context->packet, NN_INGRESS);
	if (view->reverse)
		result = nn_service_reverse(ctx);
	if (result == 0)
		nn_count(NN_METRIC_FORWARDED, NN_INGRESS, ctx->len);
	return result;
}

/* Deliver a packet that may leave its pod. If the receiver is a pod of this node, its side is checked here. */
NN_INLINE int nn_deliver(struct __sk_buff *ctx, struct nn_context *context, const struct nn_endpoint_entry *sender)
{
	const struct nn_view *sent = nn_view_of(context, NN_EGRESS);
	struct nn_endpoint_entry *target;
	struct nn_view *view;
	int result;

	nn_count(NN_METRIC_FORWARDED, NN_EGRESS, ctx->len);
	if (!nn_config.redirect_peer || (sent->subject_flags & NN_ENDPOINT_NO_REDIRECT))
		return TC_ACT_OK;
	target = nn_endpoint_lookup(&context->packet.tuple.daddr);
	if (!target)
		return TC_ACT_OK;
	view = nn_view_new(context, NN_INGRESS);
	nn_view_set_endpoint(context, view, target);
	if (view->subject_flags & NN_ENDPOINT_NO_REDIRECT)
		return TC_ACT_OK;
	view->peer_identity = sent->subject;
	view->sender_id = sent->endpoint_id;
	view->is_local = 1;
	/* The receiving side reports the Service that the sender called. */
	view->rev_nat_index = sent->rev_nat_index;
	result = nn_enter_pod(ctx, context);
	if (result < 0)
		return nn_refuse(ctx, context, sender, NN_INGRESS, result);
	return nn_deliver_local(ctx, target);
}

#endif
