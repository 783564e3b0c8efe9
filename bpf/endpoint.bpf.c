// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* tc programs on the node's side of every pod's veth pair. The hooks are reversed: packets that the pod sends (its
 * egress) arrive at tc ingress, packets that it receives (its ingress) leave at tc egress. */
#include "lib/hairpin.h"
#include "lib/neighbour.h"
#include "lib/offload.h"
#include "lib/police.h"

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

/* Drop a packet. If its connection cannot go on, turn the packet into a reset and return it to its sender. */
NN_INLINE int nn_refuse(struct __sk_buff *ctx, struct nn_context *context, const struct nn_endpoint_entry *sender,
			int reason)
{
	int dropped = nn_drop(ctx, context, reason);

	if (!nn_reset_is_due(context, reason) || nn_reset_of(ctx) < 0)
		return dropped;
	return nn_deliver_local(ctx, sender);
}

/* Return the packet to the pod that sent it. */
NN_INLINE int nn_return_to_pod(struct __sk_buff *ctx, struct nn_context *context,
			       const struct nn_endpoint_entry *endpoint, int result)
{
	if (result < 0)
		return nn_drop(ctx, context, result);
	nn_count(NN_METRIC_FORWARDED, NN_EGRESS, ctx->len);
	nn_count(NN_METRIC_FORWARDED, NN_INGRESS, ctx->len);
	return nn_deliver_local(ctx, endpoint);
}

/* Replace the Service's address by the backend's, and check policy on the result. Returns 0, a drop code, or
 * NN_HAIRPIN. */
NN_INLINE int nn_to_service(struct __sk_buff *ctx, struct nn_context *context, int step)
{
	int result = step == NN_SERVICE_NEW ? nn_service_choose() : 0;

	if (result < 0)
		return result;
	/* Later fragments carry the Service address too. Record this one so that policy can be applied to them, even if
	 * this packet is dropped. */
	nn_remember_fragment(ctx, &context->packet);
	if (nn_addr_equal(&context->backend, &context->packet.tuple.saddr))
		return NN_HAIRPIN;
	context->translated = 1;
	result = nn_rewrite_destination(ctx, &context->packet, &context->backend, context->backend_port);
	if (result == 0 && context->source_port)
		result = nn_lb_port_apply(ctx);
	return result < 0 ? result : nn_police_flow(ctx);
}

/* The kernel sends neighbour discovery as soon as a link is up, before we know the pod's address. Count these packets,
 * but emit no event. */
NN_INLINE int nn_link_control_from_pod(struct __sk_buff *ctx, struct nn_context *context)
{
	int result = nn_check_link_control(ctx);

	if (result == NN_DROP_ENDPOINT_NOT_READY) {
		nn_count(-result, NN_EGRESS, ctx->len);
		return TC_ACT_SHOT;
	}
	return result < 0 ? nn_drop(ctx, context, result) : TC_ACT_OK;
}

NN_INLINE int nn_from_pod(struct __sk_buff *ctx, struct nn_context *context)
{
	struct nn_endpoint_entry *source, *target;
	int result;

	if (nn_is_link_control(&context->packet))
		return nn_link_control_from_pod(ctx, context);
	source = nn_owner(ctx, &context->packet.tuple.saddr);
	if (!source)
		return nn_drop(ctx, context, NN_DROP_INVALID_SOURCE_IP);
	if (nn_is_igmp_query(ctx, &context->packet))
		return nn_drop(ctx, context, NN_DROP_MULTICAST);
	if (nn_is_hairpin_addr(&context->packet.tuple.daddr)) {
		if (context->packet.early_fragment)
			return nn_drop(ctx, context, NN_DROP_FRAGMENT_NOT_FOUND);
		context->endpoint_id = source->endpoint_id;
		nn_remember_fragment(ctx, &context->packet);
		result = nn_hairpin_answer(ctx);
		if (result == 0)
			result = nn_service_answer(ctx);
		return nn_return_to_pod(ctx, context, source, result);
	}
	result = nn_police(ctx, context, source);
	if (result > 0) {
		result = nn_to_service(ctx, context, result);
		if (result == NN_HAIRPIN)
			return nn_return_to_pod(ctx, context, source, nn_hairpin_call(ctx));
	} else if (result == 0) {
		nn_remember_fragment(ctx, &context->packet);
	}
	if (result < 0)
		return nn_refuse(ctx, context, source, result);
	nn_count(NN_METRIC_FORWARDED, NN_EGRESS, ctx->len);
	if (!nn_config.redirect_peer || (source->flags & NN_ENDPOINT_NO_REDIRECT))
		return TC_ACT_OK;
	target = nn_endpoint_lookup(&context->packet.tuple.daddr);
	if (!target || (target->flags & NN_ENDPOINT_NO_REDIRECT))
		return TC_ACT_OK;
	context->direction = NN_INGRESS;
	context->translated = 0;
	context->source_port = 0;
	context->src_identity = source->identity;
	context->sender_id = source->endpoint_id;
	context->is_local = 1;
	result = nn_police(ctx, context, target);
	if (result == 0 && context->untranslate)
		result = nn_service_answer(ctx);
	if (result < 0)
		return nn_refuse(ctx, context, source, result);
	nn_count(NN_METRIC_FORWARDED, NN_INGRESS, ctx->len);
	return nn_deliver_local(ctx, target);
}

NN_INLINE int nn_egress(struct __sk_buff *ctx, struct nn_context *context)
{
	int layer, result;

	layer = nn_parse_ethernet(ctx, &context->packet);
	if (layer < 0)
		return nn_drop(ctx, context, layer);
	if (layer == NN_LINK_ARP) {
		result = nn_config.kernel_structs ? nn_check_offload(ctx, &context->packet) : 0;
		if (result == 0)
			result = nn_check_arp(ctx);
		return result < 0 ? nn_drop(ctx, context, result) : TC_ACT_OK;
	}
	result = nn_parse_ip(ctx, &context->packet, layer);
	if (result == 0 && nn_config.kernel_structs)
		result = nn_check_offload(ctx, &context->packet);
	if (result < 0)
		return nn_drop(ctx, context, result);
	return nn_from_pod(ctx, context);
}

/* Packets that pass continue to the programs and filters after ours. TC_ACT_OK from a tcx program would end the list,
 * and the queueing discipline of the bandwidth plugin would not see the packet. */
NN_INLINE int nn_verdict(int result)
{
	return result == TC_ACT_OK ? TC_ACT_UNSPEC : result;
}

SEC("tc")
int endpoint_egress(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_new(ctx, NN_EGRESS);
	int result;

	if (!context)
		return TC_ACT_SHOT;
	result = nn_egress(ctx, context);
	nn_context_release(context);
	return nn_verdict(result);
}

/* A packet that is not for this pod: a bridge floods multicast and frames with an unknown destination. Count multicast
 * and packets of other pods, but emit no event for them. */
NN_INLINE int nn_not_for_pod(struct __sk_buff *ctx, struct nn_context *context, int is_other_pods)
{
	__u8 first = 0;

	bpf_skb_load_bytes(ctx, offsetof(struct ethhdr, h_dest), &first, sizeof(first));
	if (!is_other_pods && !(first & 1))
		return nn_drop(ctx, context, NN_DROP_ENDPOINT_NOT_READY);
	nn_count(is_other_pods ? -NN_DROP_ENDPOINT_NOT_READY : -NN_DROP_MULTICAST, NN_INGRESS, ctx->len);
	return TC_ACT_SHOT;
}

/* Router advertisements are not delivered to pods: the plugin sets their routes. Messages from hosts to routers are not
 * delivered either: they would be a path from one pod to all others without a policy check. */
NN_INLINE int nn_link_control_to_pod(struct __sk_buff *ctx, struct nn_context *context)
{
	const struct nn_packet *packet = &context->packet;

	if (nn_is_forbidden_control(packet))
		return nn_drop(ctx, context, NN_DROP_FORBIDDEN_ICMPV6);
	if (packet->icmp_type == NN_ND_NEIGHBOUR_SOLICITATION || packet->icmp_type == NN_ND_NEIGHBOUR_ADVERTISEMENT ||
	    packet->icmp_type == NN_ICMPV6_MLD_QUERY)
		return TC_ACT_OK;
	return nn_not_for_pod(ctx, context, 0);
}

NN_INLINE int nn_ingress(struct __sk_buff *ctx, struct nn_context *context)
{
	struct nn_endpoint_entry *target;
	int layer, result;

	layer = nn_parse_ethernet(ctx, &context->packet);
	if (layer < 0)
		return nn_drop(ctx, context, layer);
	if (layer == NN_LINK_ARP)
		return TC_ACT_OK;
	result = nn_parse_ip(ctx, &context->packet, layer);
	if (result < 0)
		return nn_drop(ctx, context, result);
	if (nn_is_link_control(&context->packet))
		return nn_link_control_to_pod(ctx, context);
	target = nn_endpoint_lookup(&context->packet.tuple.daddr);
	if (!target || target->ifindex != ctx->ifindex)
		return nn_not_for_pod(ctx, context, target != 0);
	if (nn_is_hairpin_addr(&context->packet.tuple.saddr))
		return nn_drop(ctx, context, NN_DROP_INVALID_SOURCE_IP);
	result = nn_police(ctx, context, target);
	if (result < 0)
		return nn_drop(ctx, context, result);
	nn_remember_fragment(ctx, &context->packet);
	if (context->untranslate) {
		result = nn_service_answer(ctx);
		if (result < 0)
			return nn_drop(ctx, context, result);
	}
	nn_count(NN_METRIC_FORWARDED, NN_INGRESS, ctx->len);
	return TC_ACT_OK;
}

SEC("tc")
int endpoint_ingress(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_new(ctx, NN_INGRESS);
	int result;

	if (!context)
		return TC_ACT_SHOT;
	result = nn_ingress(ctx, context);
	nn_context_release(context);
	return nn_verdict(result);
}

char nn_license[] SEC("license") = "Dual BSD/GPL";
