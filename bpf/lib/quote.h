/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors quote the packet that they are about: one that their receiver sent. */
#ifndef NN_QUOTE_H
#define NN_QUOTE_H

#include "nat.h"

/* Parse the packet that an ICMP error quotes. Returns 0 or a negative number. */
NN_INLINE int nn_parse_quote(struct __sk_buff *ctx, struct nn_context *context)
{
	/* Not on the stack: the call chain would exceed 512 bytes. */
	struct nn_packet *inner = &context->quote;

	__builtin_memset(inner, 0, sizeof(*inner));
	inner->quoted = 1;
	inner->offset = context->packet.offset + NN_ICMP_HEADER;
	inner->end = context->packet.end;
	if (nn_parse_ip(ctx, inner, context->packet.ip_version) < 0)
		return -1;
	context->has_quote = 1;
	return 0;
}

/* Replace one end of a quoted packet. The ICMP checksum covers it. */
NN_INLINE int nn_rewrite_quoted_end(struct __sk_buff *ctx, const struct nn_place *at, const struct nn_packet *inner,
				    const struct nn_addr *from, const struct nn_addr *to)
{
	if (nn_addr_equal(from, to))
		return 0;
	/* IPv4: the changed address and the changed header checksum cancel each other in the ICMP checksum. */
	if (inner->ip_version == 6 && nn_rewrite_pseudo(ctx, 6, at->checksum, from, to, 0) < 0)
		return -1;
	return nn_rewrite_addr(ctx, inner->ip_version, at, from, to);
}

/* Rewrite the packet that an ICMP error quotes. `to`: what becomes of a packet that travels like the error. So the quoted
 * destination becomes the source of `to`, by which the receiver finds its socket, and the quoted source its destination.
 * The ICMP checksum covers the quote. The header checksum of quoted IPv4 is updated, because receivers check it. The
 * quoted transport checksum is not: often it is not quoted, and no receiver verifies it. Returns 0 or a drop code. */
NN_INLINE int nn_rewrite_quoted(struct __sk_buff *ctx, const struct nn_packet *packet, const struct nn_packet *inner,
				const struct nn_nat_entry *to)
{
	__u32 ip = packet->offset + NN_ICMP_HEADER;
	struct nn_place at;

	nn_place_destination(inner, ip, &at);
	at.checksum = packet->offset + NN_ICMP_CHECKSUM_OFFSET;
	if (!inner->later_fragment && nn_rewrite_port(ctx, &at, inner->tuple.dport, to->sport, 0) < 0)
		return NN_DROP_INVALID_PACKET;
	if (nn_rewrite_quoted_end(ctx, &at, inner, &inner->tuple.daddr, &to->saddr) < 0)
		return NN_DROP_INVALID_PACKET;
	nn_place_source(inner, ip, &at);
	at.checksum = packet->offset + NN_ICMP_CHECKSUM_OFFSET;
	if (!inner->later_fragment && nn_rewrite_port(ctx, &at, inner->tuple.sport, to->dport, 0) < 0)
		return NN_DROP_INVALID_PACKET;
	return nn_rewrite_quoted_end(ctx, &at, inner, &inner->tuple.saddr, &to->daddr) < 0 ? NN_DROP_INVALID_PACKET : 0;
}

/* Replace an address of an ICMP packet. Returns 0 or a drop code. */
NN_INLINE int nn_rewrite_outer(struct __sk_buff *ctx, const struct nn_packet *packet, struct nn_place *at,
			       const struct nn_addr *from, const struct nn_addr *to)
{
	at->checksum = packet->offset + NN_ICMP_CHECKSUM_OFFSET;
	/* ICMPv6 has a pseudo header, ICMP has none. */
	if (packet->ip_version == 6 && nn_rewrite_pseudo(ctx, 6, at->checksum, from, to, BPF_F_PSEUDO_HDR) < 0)
		return NN_DROP_INVALID_PACKET;
	return nn_rewrite_addr(ctx, packet->ip_version, at, from, to) < 0 ? NN_DROP_INVALID_PACKET : 0;
}

NN_INLINE int nn_rewrite_outer_source(struct __sk_buff *ctx, const struct nn_packet *packet, const struct nn_addr *to)
{
	struct nn_place at;

	nn_place_source(packet, ETH_HLEN, &at);
	return nn_rewrite_outer(ctx, packet, &at, &packet->tuple.saddr, to);
}

NN_INLINE int nn_rewrite_outer_destination(struct __sk_buff *ctx, const struct nn_packet *packet,
					   const struct nn_addr *to)
{
	struct nn_place at;

	nn_place_destination(packet, ETH_HLEN, &at);
	return nn_rewrite_outer(ctx, packet, &at, &packet->tuple.daddr, to);
}

#endif
