/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The link layer of a pod's veth: what kind of frame it is, whether the pod may send it from this address and MAC, and
 * the control traffic without which no link works. */
#ifndef NN_LINK_H
#define NN_LINK_H

#include "events.h"
#include "policy.h"

#define NN_ARP_SENDER_MAC_OFFSET (ETH_HLEN + 8) /* RFC 826 */
#define NN_ARP_SENDER_OFFSET (ETH_HLEN + 14)
#define NN_ICMPV6_MLD_FIRST 130
#define NN_ICMPV6_MLD_LAST 132
#define NN_ICMPV6_MLD2_REPORT 143
#define NN_ND_ROUTER_SOLICITATION 133
#define NN_ND_ROUTER_ADVERTISEMENT 134
#define NN_ND_NEIGHBOUR_SOLICITATION 135
#define NN_ND_NEIGHBOUR_ADVERTISEMENT 136
#define NN_ND_REDIRECT 137
#define NN_ND_TARGET_OFFSET 8
#define NN_ND_HOP_LIMIT 255
#define NN_MLD_HOP_LIMIT 1

enum nn_link_layer {
	NN_LINK_ARP = 1,
	NN_LINK_IPV4 = 4,
	NN_LINK_IPV6 = 6,
};

NN_INLINE int nn_parse_ethernet(struct __sk_buff *ctx, struct nn_packet *packet)
{
	packet->offset = ETH_HLEN;
	switch (ctx->protocol) {
	case bpf_htons(ETH_P_IP):
		return NN_LINK_IPV4;
	case bpf_htons(ETH_P_IPV6):
		return NN_LINK_IPV6;
	case bpf_htons(ETH_P_ARP):
		return NN_LINK_ARP;
	}
	return NN_DROP_UNSUPPORTED_L2;
}

NN_INLINE int nn_has_mac(struct __sk_buff *ctx, __u32 offset, const struct nn_endpoint_entry *endpoint)
{
	__u8 mac[ETH_ALEN], difference = 0;

	if (nn_load(ctx, offset, mac, ETH_ALEN) < 0)
		return 0;
	for (int i = 0; i < ETH_ALEN; i++)
		difference |= mac[i] ^ endpoint->mac[i];
	return difference == 0;
}

/* The endpoint behind this veth that owns `addr` and the frame's source MAC, or none. A foreign MAC would teach the
 * bridge a wrong port, and cut another pod off. */
NN_INLINE struct nn_endpoint_entry *nn_owner(struct __sk_buff *ctx, const struct nn_addr *addr)
{
	struct nn_endpoint_entry *endpoint = nn_endpoint_lookup(addr);

	if (!endpoint || endpoint->ifindex != ctx->ifindex)
		return 0;
	return nn_has_mac(ctx, offsetof(struct ethhdr, h_source), endpoint) ? endpoint : 0;
}

/* A pod may speak ARP for its own address and MAC alone. RFC 5227 probes come from 0.0.0.0: they claim nothing, and are
 * asked about the address that they probe for. */
NN_INLINE int nn_check_arp(struct __sk_buff *ctx)
{
	struct nn_endpoint_entry *owner;
	struct {
		__be32 sender;
		__u8 target_mac[ETH_ALEN];
		__be32 target;
	} __attribute__((packed)) arp;
	struct nn_addr claimed;

	if (bpf_skb_load_bytes(ctx, NN_ARP_SENDER_OFFSET, &arp, sizeof(arp)) < 0)
		return NN_DROP_INVALID_PACKET;
	nn_addr_from_v4(&claimed, arp.sender ? arp.sender : arp.target);
	owner = nn_owner(ctx, &claimed);
	return owner && nn_has_mac(ctx, NN_ARP_SENDER_MAC_OFFSET, owner) ? 0 : NN_DROP_INVALID_SOURCE_IP;
}

/* ff00::/8 */
NN_INLINE int nn_addr_is_multicast(const struct nn_addr *addr)
{
	return addr->byte[0] == 0xff;
}

/* Neighbour discovery that cannot have crossed a router (RFC 4861, 6980), to somebody on the link. */
NN_INLINE int nn_is_neighbour_discovery(const struct nn_packet *packet)
{
	const struct nn_addr *daddr = &packet->tuple.daddr;

	if (packet->icmp_type < NN_ND_ROUTER_SOLICITATION || packet->icmp_type > NN_ND_REDIRECT)
		return 0;
	if (packet->hop_limit != NN_ND_HOP_LIMIT || packet->icmp_code != 0)
		return 0;
	return nn_addr_is_multicast(daddr) || nn_addr_is_link_local(daddr) || nn_endpoint_lookup(daddr) ||
	       nn_identity_of(daddr) == NN_IDENTITY_HOST;
}

/* Multicast membership (RFC 2710, 3810): one hop, from a link-local or no address, to a group. */
NN_INLINE int nn_is_multicast_membership(const struct nn_packet *packet)
{
	const struct nn_tuple *tuple = &packet->tuple;
	__u8 type = packet->icmp_type;

	if ((type < NN_ICMPV6_MLD_FIRST || type > NN_ICMPV6_MLD_LAST) && type != NN_ICMPV6_MLD2_REPORT)
		return 0;
	return packet->hop_limit == NN_MLD_HOP_LIMIT && nn_addr_is_multicast(&tuple->daddr) &&
	       (nn_addr_is_link_local(&tuple->saddr) || nn_addr_is_zero(&tuple->saddr));
}

/* What a link needs to work, and no policy can speak of. Everything else that looks like it is judged as any packet. */
NN_INLINE int nn_is_link_control(const struct nn_packet *packet)
{
	if (packet->ip_version != 6 || packet->tuple.protocol != IPPROTO_ICMPV6 || nn_is_fragment(packet))
		return 0;
	return nn_is_neighbour_discovery(packet) || nn_is_multicast_membership(packet);
}

/* Link control from a pod: for itself alone, and never as a router. It may have link-local or unspecified sources, which
 * nothing else may have. */
NN_INLINE int nn_check_link_control(struct __sk_buff *ctx, const struct nn_packet *packet)
{
	const struct nn_addr *saddr = &packet->tuple.saddr;
	struct nn_addr target;

	if (packet->icmp_type == NN_ND_ROUTER_ADVERTISEMENT || packet->icmp_type == NN_ND_REDIRECT)
		return NN_DROP_FORBIDDEN_ICMPV6;
	if (!nn_addr_is_zero(saddr) && !nn_addr_is_link_local(saddr) && !nn_owner(ctx, saddr))
		return NN_DROP_INVALID_SOURCE_IP;
	if (packet->icmp_type != NN_ND_NEIGHBOUR_ADVERTISEMENT)
		return 0;
	if (bpf_skb_load_bytes(ctx, packet->offset + NN_ND_TARGET_OFFSET, &target, sizeof(target)) < 0)
		return NN_DROP_INVALID_PACKET;
	return nn_addr_is_link_local(&target) || nn_owner(ctx, &target) ? 0 : NN_DROP_INVALID_SOURCE_IP;
}

#endif
