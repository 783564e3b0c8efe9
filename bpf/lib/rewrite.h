/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Replaces address and port in a packet and updates all checksums that cover them. The helpers know which checksums a
 * device still completes (CHECKSUM_PARTIAL). Such a checksum covers only the pseudo header, so addresses and ports are
 * updated by separate calls. */
#ifndef NN_REWRITE_H
#define NN_REWRITE_H

#include "parse.h"

#define NN_TCP_CHECKSUM_OFFSET 16
#define NN_UDP_CHECKSUM_OFFSET 6
#define NN_ICMP_CHECKSUM_OFFSET 2
#define NN_SOURCE_PORT_OFFSET 0
#define NN_DESTINATION_PORT_OFFSET 2
#define NN_ADDR_BYTES 16

/* Where the fields of one end are in the packet: offsets from the start of the frame. */
struct nn_place {
	__u32 ip; /* the IP header */
	__u32 addr; /* the address */
	__u32 port;
	__u32 checksum; /* covers address and port */
};

/* Replace the address, and update IPv4's header checksum. Returns a negative number if the packet is too short. */
NN_INLINE int nn_rewrite_addr(struct __sk_buff *ctx, int ip_version, const struct nn_place *at,
			      const struct nn_addr *from, const struct nn_addr *to)
{
	if (ip_version == 6)
		return bpf_skb_store_bytes(ctx, at->addr, to, NN_ADDR_BYTES, 0);
	if (bpf_l3_csum_replace(ctx, at->ip + offsetof(struct iphdr, check), from->word[3], to->word[3], 4) < 0)
		return -1;
	return bpf_skb_store_bytes(ctx, at->addr, &to->word[3], 4, 0);
}

/* Update the transport checksum for another address. `flags`: of bpf_l4_csum_replace. */
NN_INLINE int nn_rewrite_pseudo(struct __sk_buff *ctx, int ip_version, __u32 checksum, const struct nn_addr *from,
				const struct nn_addr *to, __u64 flags)
{
	__s64 difference;

	if (ip_version == 4)
		return bpf_l4_csum_replace(ctx, checksum, from->word[3], to->word[3], flags | 4);
	difference = bpf_csum_diff((__be32 *)from, NN_ADDR_BYTES, (__be32 *)to, NN_ADDR_BYTES, 0);
	return bpf_l4_csum_replace(ctx, checksum, 0, difference, flags);
}

NN_INLINE int nn_rewrite_port(struct __sk_buff *ctx, const struct nn_place *at, __be16 from, __be16 to, __u64 flags)
{
	if (from == to)
		return 0;
	if (bpf_l4_csum_replace(ctx, at->checksum, from, to, flags | 2) < 0)
		return -1;
	return bpf_skb_store_bytes(ctx, at->port, &to, sizeof(to), 0);
}

/* Rewrite one end of a TCP or UDP packet. In a later fragment only the address is rewritten. Returns 0 or a drop
 * code. */
NN_INLINE int nn_rewrite_end(struct __sk_buff *ctx, const struct nn_packet *packet, const struct nn_place *at,
			     const struct nn_addr *from, const struct nn_addr *to, __be16 from_port, __be16 to_port)
{
	/* A UDP checksum of 0 means none (RFC 768): it stays 0, and a computed 0 is written as 0xffff. */
	__u64 flags = packet->tuple.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

	if (!packet->later_fragment) {
		if (nn_rewrite_pseudo(ctx, packet->ip_version, at->checksum, from, to, flags | BPF_F_PSEUDO_HDR) < 0 ||
		    nn_rewrite_port(ctx, at, from_port, to_port, flags) < 0)
			return NN_DROP_INVALID_PACKET;
	}
	return nn_rewrite_addr(ctx, packet->ip_version, at, from, to) < 0 ? NN_DROP_INVALID_PACKET : 0;
}

NN_INLINE void nn_place_source(const struct nn_packet *packet, __u32 ip, struct nn_place *at)
{
	at->ip = ip;
	at->addr = ip + (packet->ip_version == 4 ? offsetof(struct iphdr, saddr) : offsetof(struct ipv6hdr, saddr));
	at->port = packet->offset + NN_SOURCE_PORT_OFFSET;
	at->checksum = packet->offset +
		       (packet->tuple.protocol == IPPROTO_TCP ? NN_TCP_CHECKSUM_OFFSET : NN_UDP_CHECKSUM_OFFSET);
}

NN_INLINE void nn_place_destination(const struct nn_packet *packet, __u32 ip, struct nn_place *at)
{
	nn_place_source(packet, ip, at);
	at->addr = ip + (packet->ip_version == 4 ? offsetof(struct iphdr, daddr) : offsetof(struct ipv6hdr, daddr));
	at->port = packet->offset + NN_DESTINATION_PORT_OFFSET;
}

/* Both functions are for TCP and UDP only. They also update the tuple. Return 0 or a drop code. */
NN_SUBPROGRAM int nn_rewrite_source(struct __sk_buff *ctx, struct nn_packet *packet, const struct nn_addr *addr,
				    __be16 port)
{
	struct nn_place at;
	int result;

	if (!packet || !addr)
		return NN_DROP_INVALID_PACKET;
	nn_place_source(packet, ETH_HLEN, &at);
	result = nn_rewrite_end(ctx, packet, &at, &packet->tuple.saddr, addr, packet->tuple.sport, port);
	packet->tuple.saddr = *addr;
	packet->tuple.sport = port;
	return result;
}

NN_SUBPROGRAM int nn_rewrite_destination(struct __sk_buff *ctx, struct nn_packet *packet, const struct nn_addr *addr,
					 __be16 port)
{
	struct nn_place at;
	int result;

	if (!packet || !addr)
		return NN_DROP_INVALID_PACKET;
	nn_place_destination(packet, ETH_HLEN, &at);
	result = nn_rewrite_end(ctx, packet, &at, &packet->tuple.daddr, addr, packet->tuple.dport, port);
	packet->tuple.daddr = *addr;
	packet->tuple.dport = port;
	return result;
}

#endif
