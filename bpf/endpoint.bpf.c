// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* tc programs on the node's side of every pod's veth pair. The hooks are reversed: packets that the pod sends (its
 * egress) arrive at tc ingress, packets that it receives (its ingress) leave at tc egress. */
#include "lib/deliver.h"
#include "lib/neighbour.h"
#include "lib/offload.h"

/* The kernel sends neighbour discovery as soon as a link is up, before we know the pod's address. Count these packets,
 * but emit no event. */
NN_INLINE int nn_link_control_from_pod(struct __sk_buff *ctx)
{
	int result = nn_check_link_control(ctx);

	if (result == NN_DROP_ENDPOINT_NOT_READY) {
		nn_count(-result, NN_EGRESS, ctx->len);
		return TC_ACT_SHOT;
	}
	return result < 0 ? nn_drop(ctx, NN_EGRESS, result) : TC_ACT_OK;
}

NN_INLINE int nn_from_pod(struct __sk_buff *ctx, struct nn_context *context)
{
	struct nn_endpoint_entry *sender;
	int result;

	if (nn_is_link_control(&context->packet))
		return nn_link_control_from_pod(ctx);
	sender = nn_owner(ctx, &context->packet.tuple.saddr);
	if (!sender)
		return nn_drop(ctx, NN_EGRESS, NN_DROP_INVALID_SOURCE_IP);
	if (nn_is_igmp_query(ctx, &context->packet))
		return nn_drop(ctx, NN_EGRESS, NN_DROP_MULTICAST);
	nn_view_set_endpoint(context, nn_view_of(context, NN_EGRESS), sender);
	result = nn_is_hairpin_addr(&context->packet.tuple.daddr) ? NN_FLOW_NEW : nn_police_direct(ctx, context);
	if (result == NN_FLOW_NEW) {
		result = nn_service(ctx, context);
		if (result == NN_SERVICE_RETURN)
			return nn_deliver_back(ctx, sender);
		if (result == 0)
			result = nn_police(ctx, context, NN_EGRESS);
	}
	if (result < 0)
		return nn_refuse(ctx, context, sender, NN_EGRESS, result);
	if (!context->nat.translated)
		nn_remember_fragment(ctx, &context->packet, NN_EGRESS);
	return nn_deliver(ctx, context, sender);
}

NN_INLINE int nn_egress(struct __sk_buff *ctx, struct nn_context *context)
{
	int layer, result;

	layer = nn_parse_ethernet(ctx, &context->packet);
	if (layer < 0)
		return nn_drop(ctx, NN_EGRESS, layer);
	if (layer == NN_LINK_ARP) {
		result = nn_config.kernel_structs ? nn_check_offload(ctx, &context->packet) : 0;
		if (result == 0)
			result = nn_check_arp(ctx);
		return result < 0 ? nn_drop(ctx, NN_EGRESS, result) : TC_ACT_OK;
	}
	result = nn_parse_ip(ctx, &context->packet, layer);
	if (result == 0 && nn_config.kernel_structs)
		result = nn_check_offload(ctx, &context->packet);
	if (result < 0)
		return nn_drop(ctx, NN_EGRESS, result);
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
NN_INLINE int nn_not_for_pod(struct __sk_buff *ctx, int is_other_pods)
{
	__u8 first = 0;

	bpf_skb_load_bytes(ctx, offsetof(struct ethhdr, h_dest), &first, sizeof(first));
	if (!is_other_pods && !(first & 1))
		return nn_drop(ctx, NN_INGRESS, NN_DROP_ENDPOINT_NOT_READY);
	nn_count(is_other_pods ? -NN_DROP_ENDPOINT_NOT_READY : -NN_DROP_MULTICAST, NN_INGRESS, ctx->len);
	return TC_ACT_SHOT;
}

/* Router advertisements are not delivered to pods: the plugin sets their routes. Messages from hosts to routers are not
 * delivered either: they would be a path from one pod to all others without a policy check. */
NN_INLINE int nn_link_control_to_pod(struct __sk_buff *ctx, const struct nn_packet *packet)
{
	if (nn_is_forbidden_control(packet))
		return nn_drop(ctx, NN_INGRESS, NN_DROP_FORBIDDEN_ICMPV6);
	if (packet->icmp_type == NN_ND_NEIGHBOUR_SOLICITATION || packet->icmp_type == NN_ND_NEIGHBOUR_ADVERTISEMENT ||
	    packet->icmp_type == NN_ICMPV6_MLD_QUERY)
		return TC_ACT_OK;
	return nn_not_for_pod(ctx, 0);
}

NN_INLINE int nn_ingress(struct __sk_buff *ctx, struct nn_context *context)
{
	struct nn_endpoint_entry *target;
	int layer, result;

	layer = nn_parse_ethernet(ctx, &context->packet);
	if (layer < 0)
		return nn_drop(ctx, NN_INGRESS, layer);
	if (layer == NN_LINK_ARP)
		return TC_ACT_OK;
	result = nn_parse_ip(ctx, &context->packet, layer);
	if (result < 0)
		return nn_drop(ctx, NN_INGRESS, result);
	if (nn_is_link_control(&context->packet))
		return nn_link_control_to_pod(ctx, &context->packet);
	target = nn_endpoint_lookup(&context->packet.tuple.daddr);
	if (!target || target->ifindex != ctx->ifindex)
		return nn_not_for_pod(ctx, target != 0);
	if (nn_is_hairpin_addr(&context->packet.tuple.saddr))
		return nn_drop(ctx, NN_INGRESS, NN_DROP_INVALID_SOURCE_IP);
	nn_view_set_endpoint(context, nn_view_of(context, NN_INGRESS), target);
	result = nn_enter_pod(ctx, context);
	return result < 0 ? nn_drop(ctx, NN_INGRESS, result) : TC_ACT_OK;
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
