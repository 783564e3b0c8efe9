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

/* The MAC of the pod behind an interface, by the interface's index: for frames that name no address of the pod's. Taken from
 * the endpoint when the pod first speaks with its address: by ARP or neighbour discovery, before anything else. */
struct nn_port_entry {
	__u8 mac[ETH_ALEN];
	__u8 pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct nn_port_entry);
} nn_port SEC(".maps");

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

NN_INLINE int nn_has_mac(struct __sk_buff *ctx, __u32 offset, const __u8 *wanted)
{
	__u8 mac[ETH_ALEN], difference = 0;

	if (nn_load(ctx, offset, mac, ETH_ALEN) < 0)
		return 0;
	for (int i = 0; i < ETH_ALEN; i++)
		difference |= mac[i] ^ wanted[i];
	return difference == 0;
}

/* The endpoint behind this veth that owns `addr` and the frame's source MAC, or none. A foreign MAC would teach the
 * bridge a wrong port, and cut another pod off. */
NN_INLINE struct nn_endpoint_entry *nn_owner(struct __sk_buff *ctx, const struct nn_addr *addr)
{
	struct nn_endpoint_entry *endpoint = nn_endpoint_lookup(addr);

	if (!endpoint || endpoint->ifindex != ctx->ifindex)
		return 0;
	return nn_has_mac(ctx, offsetof(struct ethhdr, h_source), endpoint->mac) ? endpoint : 0;
}

/* nn_owner, of what a pod says about itself on the link. */
NN_INLINE struct nn_endpoint_entry *nn_speaker(struct __sk_buff *ctx, const struct nn_addr *addr)
{
	struct nn_endpoint_entry *endpoint = nn_owner(ctx, addr);
	struct nn_port_entry *known, port = {};
	__u32 ifindex = ctx->ifindex;

	if (!endpoint)
		return 0;
	known = bpf_map_lookup_elem(&nn_port, &ifindex);
	/* An update of an LRU takes a new record: a pod that repeats itself must not push out the others. */
	if (known && nn_has_mac(ctx, offsetof(struct ethhdr, h_source), known->mac))
		return endpoint;
	__builtin_memcpy(port.mac, endpoint->mac, ETH_ALEN);
	bpf_map_update_elem(&nn_port, &ifindex, &port, BPF_ANY);
	return endpoint;
}

/* Does the frame come from the MAC of the pod behind this veth? That is known once the pod has spoken with its address.
 * Returns 0 or a drop code. */
NN_INLINE int nn_check_port(struct __sk_buff *ctx)
{
	__u32 ifindex = ctx->ifindex;
	struct nn_port_entry *port = bpf_map_lookup_elem(&nn_port, &ifindex);

	if (!port)
		return NN_DROP_ENDPOINT_NOT_READY;
	return nn_has_mac(ctx, offsetof(struct ethhdr, h_source), port->mac) ? 0 : NN_DROP_INVALID_SOURCE_IP;
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
	owner = nn_speaker(ctx, &claimed);
	return owner && nn_has_mac(ctx, NN_ARP_SENDER_MAC_OFFSET, owner->mac) ? 0 : NN_DROP_INVALID_SOURCE_IP;
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
 * nothing else may have: then the frame's MAC is the pod's all the same, or the bridge would learn another pod's port from
 * it. What is asked or told about the pod's own address (RFC 4862's detection of duplicates) proves the MAC by itself. */
NN_INLINE int nn_check_link_control(struct __sk_buff *ctx, const struct nn_packet *packet)
{
	const struct nn_addr *saddr = &packet->tuple.saddr;
	struct nn_addr target;
	int is_speaker;

	if (packet->icmp_type == NN_ND_ROUTER_ADVERTISEMENT || packet->icmp_type == NN_ND_REDIRECT)
		return NN_DROP_FORBIDDEN_ICMPV6;
	is_speaker = !nn_addr_is_zero(saddr) && !nn_addr_is_link_local(saddr);
	if (is_speaker && !nn_speaker(ctx, saddr))
		return NN_DROP_INVALID_SOURCE_IP;
	if (packet->icmp_type == NN_ND_NEIGHBOUR_ADVERTISEMENT || packet->icmp_type == NN_ND_NEIGHBOUR_SOLICITATION) {
		if (packet->offset + NN_ND_TARGET_OFFSET + sizeof(target) > packet->end ||
		    bpf_skb_load_bytes(ctx, packet->offset + NN_ND_TARGET_OFFSET, &target, sizeof(target)) < 0)
			return NN_DROP_INVALID_PACKET;
		if (nn_speaker(ctx, &target))
			return 0;
		if (packet->icmp_type == NN_ND_NEIGHBOUR_ADVERTISEMENT && !nn_addr_is_link_local(&target))
			return NN_DROP_INVALID_SOURCE_IP;
	}
	return is_speaker ? 0 : nn_check_port(ctx);
}

#endif
