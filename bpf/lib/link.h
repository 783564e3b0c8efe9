/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The link layer of a pod's veth: the kind of frame, whether the pod may send it from this address and MAC, and the
 * control traffic that a link needs. */
#ifndef NN_LINK_H
#define NN_LINK_H

#include "events.h"
#include "policy.h"

#define NN_ARP_SENDER_MAC_OFFSET (ETH_HLEN + 8) /* RFC 826 */
#define NN_ARP_ETHERNET_IPV4 0x00010800
#define NN_ARP_SIZES 0x0604 /* lengths of a MAC and of an IPv4 address */
#define NN_ARP_REQUEST 1
#define NN_ARP_REPLY 2

enum nn_link_layer {
	NN_LINK_ARP = 1,
	NN_LINK_IPV4 = 4,
	NN_LINK_IPV6 = 6,
};

/* Interface index -> the MAC of its pod: for frames that carry no address of the pod. Learned from the endpoint when
 * the pod first uses its address in ARP or neighbour discovery, which precede all other traffic. */
struct nn_port_entry {
	__u8 mac[ETH_ALEN];
	__u8 pad[2];
	struct nn_addr addr; /* the pod's address from which the MAC was learned */
	struct nn_addr link_local; /* see nn_check_claim; all 0: none */
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

/* Returns the endpoint of this veth if it owns both `addr` and the frame's source MAC, else 0. With a foreign MAC the
 * bridge would learn a wrong port, and another pod would lose its traffic. */
NN_INLINE struct nn_endpoint_entry *nn_owner(struct __sk_buff *ctx, const struct nn_addr *addr)
{
	struct nn_endpoint_entry *endpoint = nn_endpoint_lookup(addr);

	if (!endpoint || endpoint->ifindex != ctx->ifindex)
		return 0;
	return nn_has_mac(ctx, offsetof(struct ethhdr, h_source), endpoint->mac) ? endpoint : 0;
}

/* nn_owner for ARP and neighbour discovery: it also stores the pod's MAC in nn_port. */
NN_INLINE struct nn_endpoint_entry *nn_learn_owner(struct __sk_buff *ctx, const struct nn_addr *addr)
{
	struct nn_endpoint_entry *endpoint = nn_owner(ctx, addr);
	struct nn_port_entry *known, port = {};
	__u32 ifindex = ctx->ifindex;

	if (!endpoint)
		return 0;
	known = bpf_map_lookup_elem(&nn_port, &ifindex);
	/* Do not write an entry that has not changed. An update of an LRU map allocates a new element, so repeated
	 * updates by one pod would evict the entries of others. */
	if (known && nn_has_mac(ctx, offsetof(struct ethhdr, h_source), known->mac))
		return endpoint;
	__builtin_memcpy(port.mac, endpoint->mac, ETH_ALEN);
	port.addr = *addr;
	bpf_map_update_elem(&nn_port, &ifindex, &port, BPF_ANY);
	return endpoint;
}

/* Check that the frame's source MAC is that of the pod on this veth. It is known only after the pod has used its
 * address. Returns 0 or a drop code. */
NN_INLINE int nn_check_port(struct __sk_buff *ctx)
{
	__u32 ifindex = ctx->ifindex;
	struct nn_port_entry *port = bpf_map_lookup_elem(&nn_port, &ifindex);

	if (!port)
		return NN_DROP_ENDPOINT_NOT_READY;
	return nn_has_mac(ctx, offsetof(struct ethhdr, h_source), port->mac) ? 0 : NN_DROP_INVALID_SOURCE_IP;
}

/* A pod may send ARP only for its own address and MAC. RFC 5227 probes have the sender 0.0.0.0 and claim nothing: check
 * the target address of these instead. Policy is not checked for ARP, so the frame must not carry other data: its
 * length is at most that of a padded frame. */
NN_INLINE int nn_check_arp(struct __sk_buff *ctx)
{
	struct nn_endpoint_entry *owner;
	struct {
		__be32 kind; /* Ethernet and IPv4 */
		__be16 sizes;
		__be16 operation;
		__u8 sender_mac[ETH_ALEN];
		__be32 sender;
		__u8 target_mac[ETH_ALEN];
		__be32 target;
	} __attribute__((packed)) arp;
	struct nn_addr claimed;

	if (ctx->len > ETH_ZLEN || bpf_skb_load_bytes(ctx, ETH_HLEN, &arp, sizeof(arp)) < 0)
		return NN_DROP_INVALID_PACKET;
	if (arp.kind != bpf_htonl(NN_ARP_ETHERNET_IPV4) || arp.sizes != bpf_htons(NN_ARP_SIZES) ||
	    (arp.operation != bpf_htons(NN_ARP_REQUEST) && arp.operation != bpf_htons(NN_ARP_REPLY)))
		return NN_DROP_INVALID_PACKET;
	nn_addr_from_v4(&claimed, arp.sender ? arp.sender : arp.target);
	owner = nn_learn_owner(ctx, &claimed);
	return owner && nn_has_mac(ctx, NN_ARP_SENDER_MAC_OFFSET, owner->mac) ? 0 : NN_DROP_INVALID_SOURCE_IP;
}

#endif
