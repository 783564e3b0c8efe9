/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packet -> tuple. One cursor: each step checks its bounds, moves the cursor and returns the next protocol or a
 * negative drop code. Headers that every packet has are read in place where they can be, the others by a helper. */
#ifndef NN_PARSE_H
#define NN_PARSE_H

#include <linux/ip.h>
#include <linux/ipv6.h>

#include "common.h"

#define NN_IPV6_EXTENSIONS_MAX 6
#define NN_HEADERS_MAX 512 /* bytes: a bound that the verifier can see */
#define NN_IP_FRAGMENT_OFFSET 0x1fff
#define NN_IP_MORE_FRAGMENTS 0x2000
#define NN_NEXTHDR_HOP 0
#define NN_NEXTHDR_ROUTING 43
#define NN_NEXTHDR_FRAGMENT 44
#define NN_NEXTHDR_AUTH 51
#define NN_NEXTHDR_DEST 60
/* linux/icmp.h and linux/icmpv6.h draw in libc's headers, which clang -target bpf cannot always find: RFC 792, 4443. */
#define NN_ICMP_ECHO_REPLY 0
#define NN_ICMP_DEST_UNREACH 3
#define NN_ICMP_ECHO 8
#define NN_ICMP_TIME_EXCEEDED 11
#define NN_ICMP_PARAMETER_PROBLEM 12
#define NN_ICMP_HEADER 8 /* bytes, of both versions */
#define NN_ICMPV6_FIRST_INFORMATIONAL 128
#define NN_ICMPV6_ECHO_REQUEST 128
#define NN_ICMPV6_ECHO_REPLY 129
#define NN_TCP_FLAGS_OFFSET 13
#define NN_TCP_FIN 0x01
#define NN_TCP_SYN 0x02
#define NN_TCP_RST 0x04
#define NN_TCP_ACK 0x10

struct nn_tuple {
	struct nn_addr saddr;
	struct nn_addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 pad[3];
};

struct nn_packet {
	struct nn_tuple tuple;
	__u32 offset; /* the cursor: after parsing, where the transport header starts */
	__u32 fragment_id;
	__u8 ip_version;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 first_fragment; /* of several */
	__u8 later_fragment; /* no ports in this one */
	__u8 hop_limit;
	__u8 quoted; /* in an ICMP error, which may have no more of it than the ports (RFC 792) */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct nn_frag_key);
	__type(value, struct nn_frag_entry);
} nn_frag SEC(".maps");

/* Bytes of the packet: read where they are if they are in its linear part, where a sender has put its headers, else through
 * a helper. Returns a negative number when there are not as many. */
NN_INLINE int nn_load(struct __sk_buff *ctx, __u32 offset, void *to, const __u32 size)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (offset <= NN_HEADERS_MAX && data + offset + size <= end) {
		__builtin_memcpy(to, data + offset, size);
		return 0;
	}
	return bpf_skb_load_bytes(ctx, offset, to, size);
}

NN_INLINE int nn_parse_ipv4(struct __sk_buff *ctx, struct nn_packet *packet)
{
	struct iphdr ip;
	__u16 fragment;

	if (nn_load(ctx, packet->offset, &ip, sizeof(ip)) < 0)
		return NN_DROP_INVALID_PACKET;
	if (ip.version != 4 || ip.ihl < 5)
		return NN_DROP_INVALID_PACKET;
	nn_addr_from_v4(&packet->tuple.saddr, ip.saddr);
	nn_addr_from_v4(&packet->tuple.daddr, ip.daddr);
	packet->ip_version = 4;
	packet->hop_limit = ip.ttl;
	fragment = bpf_ntohs(ip.frag_off);
	if (fragment & (NN_IP_FRAGMENT_OFFSET | NN_IP_MORE_FRAGMENTS)) {
		packet->fragment_id = ip.id;
		packet->later_fragment = (fragment & NN_IP_FRAGMENT_OFFSET) != 0;
		packet->first_fragment = !packet->later_fragment;
	}
	packet->offset += ip.ihl * 4;
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

	if (bpf_skb_load_bytes(ctx, packet->offset, &header, sizeof(header)) < 0)
		return NN_DROP_INVALID_IPV6_EXTENSION;
	if (next == NN_NEXTHDR_FRAGMENT) {
		packet->fragment_id = header.id;
		packet->later_fragment = (header.fragment & bpf_htons(0xfff8)) != 0;
		packet->first_fragment = !packet->later_fragment && (header.fragment & bpf_htons(1));
		packet->offset += sizeof(header);
	} else if (next == NN_NEXTHDR_AUTH) {
		packet->offset += (header.length + 2) * 4;
	} else {
		packet->offset += (header.length + 1) * 8;
	}
	return header.next;
}

NN_INLINE int nn_parse_ipv6(struct __sk_buff *ctx, struct nn_packet *packet)
{
	struct ipv6hdr ip;
	int next;

	if (nn_load(ctx, packet->offset, &ip, sizeof(ip)) < 0)
		return NN_DROP_INVALID_PACKET;
	if (ip.version != 6)
		return NN_DROP_INVALID_PACKET;
	__builtin_memcpy(&packet->tuple.saddr, &ip.saddr, sizeof(packet->tuple.saddr));
	__builtin_memcpy(&packet->tuple.daddr, &ip.daddr, sizeof(packet->tuple.daddr));
	/* In the maps this form means IPv4; on the wire it means nothing good. */
	if (nn_addr_is_v4(&packet->tuple.saddr) || nn_addr_is_v4(&packet->tuple.daddr))
		return NN_DROP_INVALID_PACKET;
	packet->ip_version = 6;
	packet->hop_limit = ip.hop_limit;
	packet->offset += sizeof(ip);
	next = ip.nexthdr;
#pragma unroll
	for (int i = 0; i < NN_IPV6_EXTENSIONS_MAX; i++) {
		if (next != NN_NEXTHDR_HOP && next != NN_NEXTHDR_ROUTING && next != NN_NEXTHDR_FRAGMENT &&
		    next != NN_NEXTHDR_AUTH && next != NN_NEXTHDR_DEST)
			return next;
		/* Behind a later fragment's header there are no headers, only data. */
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
		__u8 tcp[NN_TCP_FLAGS_OFFSET - 3]; /* from byte 4 to the flags */
	} header;

	if (packet->tuple.protocol == IPPROTO_TCP && !packet->quoted) {
		if (nn_load(ctx, packet->offset, &header, sizeof(header)) < 0)
			return NN_DROP_INVALID_PACKET;
		packet->tcp_flags = header.tcp[sizeof(header.tcp) - 1];
	} else if (nn_load(ctx, packet->offset, &header, 4) < 0) {
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

	if (bpf_skb_load_bytes(ctx, packet->offset, &icmp, sizeof(icmp)) < 0)
		return NN_DROP_INVALID_PACKET;
	packet->icmp_type = icmp.type;
	packet->icmp_code = icmp.code;
	/* An echo's identifier takes the place of both ports: a ping is a flow, and its reply the same flow. */
	if ((packet->ip_version == 4 && (icmp.type == NN_ICMP_ECHO || icmp.type == NN_ICMP_ECHO_REPLY)) ||
	    (packet->ip_version == 6 && (icmp.type == NN_ICMPV6_ECHO_REQUEST || icmp.type == NN_ICMPV6_ECHO_REPLY))) {
		packet->tuple.sport = icmp.id;
		packet->tuple.dport = icmp.id;
	}
	return 0;
}

NN_INLINE void nn_frag_key_of(const struct nn_packet *packet, __u32 ifindex, struct nn_frag_key *key)
{
	key->saddr = packet->tuple.saddr;
	key->daddr = packet->tuple.daddr;
	key->id = packet->fragment_id;
	key->ifindex = ifindex;
}

NN_INLINE int nn_parse_later_fragment(struct __sk_buff *ctx, struct nn_packet *packet)
{
	struct nn_frag_entry *first;
	struct nn_frag_key key;

	nn_frag_key_of(packet, ctx->ifindex, &key);
	first = bpf_map_lookup_elem(&nn_frag, &key);
	if (!first)
		return NN_DROP_FRAGMENT_NOT_FOUND;
	packet->tuple.sport = first->sport;
	packet->tuple.dport = first->dport;
	packet->tuple.protocol = first->protocol;
	return 0;
}

/* To be called once the first fragment was let through: what is dropped must not decide about others. */
NN_INLINE void nn_remember_fragment(struct __sk_buff *ctx, const struct nn_packet *packet)
{
	struct nn_frag_entry first = { .sport = packet->tuple.sport,
				       .dport = packet->tuple.dport,
				       .protocol = packet->tuple.protocol };
	struct nn_frag_key key;

	if (!packet->first_fragment)
		return;
	nn_frag_key_of(packet, ctx->ifindex, &key);
	bpf_map_update_elem(&nn_frag, &key, &first, BPF_ANY);
}

/* ICMP of the other family's number is no ICMP: it has neither ports nor types here. */
NN_INLINE int nn_is_icmp(const struct nn_packet *packet)
{
	return packet->tuple.protocol == (packet->ip_version == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

NN_INLINE int nn_parse_transport(struct __sk_buff *ctx, struct nn_packet *packet)
{
	if (packet->later_fragment)
		return nn_parse_later_fragment(ctx, packet);
	switch (packet->tuple.protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		return nn_parse_ports(ctx, packet);
	}
	return nn_is_icmp(packet) ? nn_parse_icmp(ctx, packet) : 0;
}

/* The IP packet at packet->offset; `version` comes from the layer around it. Returns 0 or a drop code. A subprogram,
 * because an ICMP error holds a second packet. */
NN_SUBPROGRAM int nn_parse_ip(struct __sk_buff *ctx, struct nn_packet *packet, int version)
{
	int protocol;

	if (!packet) /* the verifier of older kernels wants to see it */
		return NN_DROP_INVALID_PACKET;
	protocol = version == 4 ? nn_parse_ipv4(ctx, packet) : nn_parse_ipv6(ctx, packet);
	if (protocol < 0)
		return protocol;
	packet->tuple.protocol = protocol;
	return nn_parse_transport(ctx, packet);
}

NN_INLINE int nn_is_fragment(const struct nn_packet *packet)
{
	return packet->first_fragment || packet->later_fragment;
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

NN_INLINE int nn_is_echo_request(const struct nn_packet *packet)
{
	return nn_is_icmp(packet) && !packet->later_fragment &&
	       packet->icmp_type == (packet->ip_version == 4 ? NN_ICMP_ECHO : NN_ICMPV6_ECHO_REQUEST);
}

#endif
