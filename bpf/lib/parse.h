/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packet -> tuple. One cursor: each step checks its bounds, moves the cursor and returns the next protocol or a
 * negative drop code. */
#ifndef NN_PARSE_H
#define NN_PARSE_H

#include "fragment.h"

#define NN_IPV6_EXTENSIONS_MAX 6
#define NN_IP_FRAGMENT_OFFSET 0x1fff
#define NN_IP_MORE_FRAGMENTS 0x2000
#define NN_IPV6_FRAGMENT_OFFSET 0xfff8 /* in bytes */
#define NN_IPV6_MORE_FRAGMENTS 1
#define NN_NEXTHDR_ROUTING 43
#define NN_NEXTHDR_FRAGMENT 44
#define NN_NEXTHDR_AUTH 51
#define NN_NEXTHDR_DEST 60
/* From RFC 792 and 4443: linux/icmp.h and linux/icmpv6.h include libc's headers, which clang -target bpf does not
 * always find. */
#define NN_ICMP_ECHO_REPLY 0
#define NN_ICMP_DEST_UNREACH 3
#define NN_ICMP_ECHO 8
#define NN_ICMP_TIME_EXCEEDED 11
#define NN_ICMP_PARAMETER_PROBLEM 12
#define NN_ICMPV6_FIRST_INFORMATIONAL 128
#define NN_ICMPV6_ECHO_REQUEST 128
#define NN_ICMPV6_ECHO_REPLY 129
#define NN_TCP_FIN 0x01
#define NN_TCP_SYN 0x02
#define NN_TCP_RST 0x04
#define NN_TCP_ACK 0x10

NN_INLINE int nn_parse_ipv4(struct __sk_buff *ctx, struct nn_packet *packet)
{
	struct iphdr ip;
	__u32 length;
	__u16 fragment;

	if (nn_load_next(ctx, packet, &ip, sizeof(ip)) < 0)
		return NN_DROP_INVALID_PACKET;
	if (ip.version != 4 || ip.ihl < 5)
		return NN_DROP_INVALID_PACKET;
	nn_addr_from_v4(&packet->tuple.saddr, ip.saddr);
	nn_addr_from_v4(&packet->tuple.daddr, ip.daddr);
	packet->ip_version = 4;
	packet->hop_limit = ip.ttl;
	fragment = bpf_ntohs(ip.frag_off) & (NN_IP_FRAGMENT_OFFSET | NN_IP_MORE_FRAGMENTS);
	if (!packet->quoted) {
		length = bpf_ntohs(ip.tot_len);
		if (!length && !fragment)
			length = nn_big_tcp_length(ctx, packet, ip.protocol);
		packet->end = packet->offset + length;
		if (length < ip.ihl * 4 || packet->end > ctx->len)
			return NN_DROP_INVALID_PACKET;
	}
	packet->offset += ip.ihl * 4;
	if (fragment) {
		packet->fragment_id = ip.id;
		packet->fragment_start = packet->offset;
		if (nn_note_fragment(ctx, packet, (fragment & NN_IP_FRAGMENT_OFFSET) * 8,
				     fragment & NN_IP_MORE_FRAGMENTS) < 0)
			return NN_DROP_INVALID_PACKET;
	}
	return ip.protocol;
}

NN_INLINE int nn_parse_ipv6_extension(struct __sk_buff *ctx, struct nn_packet *packet, int next)
{
	struct {
		__u8 next;
		__u8 length;
		__be16 fragment;
		__be32 id;
	} header;

	if (nn_load_next(ctx, packet, &header, sizeof(header)) < 0)
		return NN_DROP_INVALID_IPV6_EXTENSION;
	if (next == NN_NEXTHDR_FRAGMENT)
		packet->offset += sizeof(header);
	else if (next == NN_NEXTHDR_AUTH)
		packet->offset += (header.length + 2) * 4;
	else
		packet->offset += (header.length + 1) * 8;
	/* A header must not continue in the next fragment. */
	if (packet->offset > packet->end)
		return NN_DROP_INVALID_IPV6_EXTENSION;
	if (next != NN_NEXTHDR_FRAGMENT)
		return header.next;
	/* Reject a second fragment header: no sender creates one, and implementations disagree about its meaning. */
	if (packet->fragment_start)
		return NN_DROP_INVALID_IPV6_EXTENSION;
	packet->fragment_start = packet->offset;
	packet->fragment_id = header.id;
	/* Offset 0 without more fragments is a complete packet (RFC 6946). */
	if ((header.fragment & bpf_htons(NN_IPV6_FRAGMENT_OFFSET | NN_IPV6_MORE_FRAGMENTS)) &&
	    nn_note_fragment(ctx, packet, bpf_ntohs(header.fragment) & NN_IPV6_FRAGMENT_OFFSET,
			     header.fragment & bpf_htons(NN_IPV6_MORE_FRAGMENTS)) < 0)
		return NN_DROP_INVALID_PACKET;
	return header.next;
}

NN_INLINE int nn_parse_ipv6(struct __sk_buff *ctx, struct nn_packet *packet)
{
	struct ipv6hdr ip;
	__u32 length;
	int next;

	if (nn_load_next(ctx, packet, &ip, sizeof(ip)) < 0)
		return NN_DROP_INVALID_PACKET;
	if (ip.version != 6)
		return NN_DROP_INVALID_PACKET;
	__builtin_memcpy(&packet->tuple.saddr, &ip.saddr, sizeof(packet->tuple.saddr));
	__builtin_memcpy(&packet->tuple.daddr, &ip.daddr, sizeof(packet->tuple.daddr));
	/* The maps store IPv4 in this form, so an IPv6 packet must not use it. */
	if (nn_addr_is_v4(&packet->tuple.saddr) || nn_addr_is_v4(&packet->tuple.daddr))
		return NN_DROP_INVALID_PACKET;
	packet->ip_version = 6;
	packet->hop_limit = ip.hop_limit;
	if (!packet->quoted) {
		length = bpf_ntohs(ip.payload_len);
		if (!length)
			length = nn_big_tcp_payload(ctx, packet, ip.nexthdr);
		packet->end = packet->offset + sizeof(ip) + length;
		if (!length || packet->end > ctx->len)
			return NN_DROP_INVALID_PACKET;
	}
	packet->offset += sizeof(ip);
	next = ip.nexthdr;
#pragma unroll
	for (int i = 0; i < NN_IPV6_EXTENSIONS_MAX; i++) {
		if (next != NN_NEXTHDR_HOP && next != NN_NEXTHDR_ROUTING && next != NN_NEXTHDR_FRAGMENT &&
		    next != NN_NEXTHDR_AUTH && next != NN_NEXTHDR_DEST)
			return next;
		/* A later fragment holds only data after its fragment header, no further headers. */
		if (packet->later_fragment)
			return next;
		next = nn_parse_ipv6_extension(ctx, packet, next);
		if (next < 0)
			return next;
	}
	return NN_DROP_INVALID_IPV6_EXTENSION;
}

NN_INLINE int nn_parse_ports(struct __sk_buff *ctx, struct nn_packet *packet)
{
	struct {
		__be16 sport;
		__be16 dport;
		__be32 sequence; /* from here on: TCP */
		__be32 acknowledged;
		__u8 words; /* of the header, in the upper half */
		__u8 flags;
		__be16 window;
	} header;

	if (packet->tuple.protocol == IPPROTO_TCP && !packet->quoted) {
		if (nn_load_next(ctx, packet, &header, sizeof(header)) < 0)
			return NN_DROP_INVALID_PACKET;
		packet->tcp_flags = header.flags;
		packet->tcp_header = header.words >> 4 << 2;
		packet->tcp_sequence = bpf_ntohl(header.sequence);
		packet->tcp_acknowledged = bpf_ntohl(header.acknowledged);
	} else if (nn_load_next(ctx, packet, &header, 4) < 0) {
		return NN_DROP_INVALID_PACKET;
	}
	packet->tuple.sport = header.sport;
	packet->tuple.dport = header.dport;
	return 0;
}

NN_INLINE int nn_parse_icmp(struct __sk_buff *ctx, struct nn_packet *packet)
{
	struct {
		__u8 type;
		__u8 code;
		__be16 checksum;
		__be16 id;
	} icmp;

	if (nn_load_next(ctx, packet, &icmp, sizeof(icmp)) < 0)
		return NN_DROP_INVALID_PACKET;
	packet->icmp_type = icmp.type;
	packet->icmp_code = icmp.code;
	/* Use the identifier of an echo as both ports: a ping is then one flow, together with its replies. */
	if ((packet->ip_version == 4 && (icmp.type == NN_ICMP_ECHO || icmp.type == NN_ICMP_ECHO_REPLY)) ||
	    (packet->ip_version == 6 && (icmp.type == NN_ICMPV6_ECHO_REQUEST || icmp.type == NN_ICMPV6_ECHO_REPLY))) {
		packet->tuple.sport = icmp.id;
		packet->tuple.dport = icmp.id;
	}
	return 0;
}

NN_INLINE int nn_parse_transport(struct __sk_buff *ctx, struct nn_packet *packet)
{
	if (packet->later_fragment)
		return nn_parse_later_fragment(ctx, packet);
	/* Require the complete fixed header: otherwise a second fragment could supply the rest of it. */
	if (!packet->quoted && packet->offset + nn_transport_header(packet) > packet->end)
		return NN_DROP_INVALID_PACKET;
	switch (packet->tuple.protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		return nn_parse_ports(ctx, packet);
	}
	return nn_is_icmp(packet) ? nn_parse_icmp(ctx, packet) : 0;
}

/* Parse the IP packet at packet->offset; `version` comes from the outer layer. Its length field says where it ends; a
 * quoted packet ends at packet->end, because an ICMP error need not contain all of it. Returns 0 or a drop code. A
 * subprogram, because it also parses the packet that an ICMP error quotes. */
NN_SUBPROGRAM int nn_parse_ip(struct __sk_buff *ctx, struct nn_packet *packet, int version)
{
	int protocol;

	if (!packet) /* old verifiers require this check */
		return NN_DROP_INVALID_PACKET;
	if (!packet->quoted)
		packet->end = ctx->len;
	protocol = version == 4 ? nn_parse_ipv4(ctx, packet) : nn_parse_ipv6(ctx, packet);
	if (protocol < 0)
		return protocol;
	packet->tuple.protocol = protocol;
	return nn_parse_transport(ctx, packet);
}

NN_INLINE int nn_is_icmp_error(const struct nn_packet *packet)
{
	if (!nn_is_icmp(packet) || nn_is_fragment(packet))
		return 0;
	if (packet->ip_version == 4)
		return packet->icmp_type == NN_ICMP_DEST_UNREACH ||
		       packet->icmp_type == NN_ICMP_TIME_EXCEEDED ||
		       packet->icmp_type == NN_ICMP_PARAMETER_PROBLEM;
	/* RFC 4443: error messages have types below 128. */
	return packet->icmp_type < NN_ICMPV6_FIRST_INFORMATIONAL;
}

/* A SYN without ACK: it opens a connection. */
NN_INLINE int nn_is_syn(const struct nn_packet *packet)
{
	return (packet->tcp_flags & (NN_TCP_SYN | NN_TCP_ACK)) == NN_TCP_SYN;
}

NN_INLINE int nn_is_echo_request(const struct nn_packet *packet)
{
	return nn_is_icmp(packet) && !packet->later_fragment &&
	       packet->icmp_type == (packet->ip_version == 4 ? NN_ICMP_ECHO : NN_ICMPV6_ECHO_REQUEST);
}

#endif
