/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The parsed fields of a packet, where it ends, and how its bytes are read. */
#ifndef NN_PACKET_H
#define NN_PACKET_H

#include <linux/ip.h>
#include <linux/ipv6.h>

#include "common.h"

#define NN_HEADERS_MAX 512 /* bytes: a bound that the verifier can see */
#define NN_IPV6_HEADER 40 /* bytes */
#define NN_NEXTHDR_HOP 0
#define NN_ICMP_HEADER 8 /* bytes, of both versions */
#define NN_TCP_HEADER 20 /* bytes, without options */
#define NN_UDP_HEADER 8
#define NN_SCTP_HEADER 12

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
	__u32 offset; /* the cursor; after parsing: start of the transport header */
	__u32 end; /* end of the IP packet; a quoted packet ends with the packet that quotes it */
	__u32 fragment_id;
	__u32 fragment_start; /* start of this fragment's part of the datagram; 0: no fragment header */
	__u32 fragment_offset; /* bytes of the datagram before this part */
	__u8 ip_version;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 first_fragment; /* there are more fragments */
	__u8 later_fragment; /* not the first: it carries no ports */
	__u8 early_fragment; /* a later fragment whose first one is not known */
	__u8 hop_limit;
	__u8 quoted; /* quoted by an ICMP error, which may contain only the ports of it (RFC 792) */
	__u8 tcp_header; /* bytes; this and the next two: not of a quoted packet */
	__u8 pad[2];
	__u32 tcp_sequence;
	__u32 tcp_acknowledged;
};

/* Read bytes of the packet: directly if they are in its linear part, where senders put the headers, else with a helper.
 * Returns a negative number if the packet is too short. */
NN_INLINE int nn_load(struct __sk_buff *ctx, __u32 offset, void *to, const __u32 size)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (offset <= NN_HEADERS_MAX && data + offset + size <= end) {
		__builtin_memcpy(to, data + offset, size);
		return 0;
	}
	return bpf_skb_load_bytes(ctx, offset, to, size);
}

/* The same at the cursor, but only up to the end of the IP packet. The kernel removes bytes after it (padding, a
 * trailer) before it reads headers, so a header must not be read from them. */
NN_INLINE int nn_load_next(struct __sk_buff *ctx, const struct nn_packet *packet, void *to, const __u32 size)
{
	if (packet->offset + size > packet->end)
		return -1;
	return nn_load(ctx, packet->offset, to, size);
}

/* ICMPv6 in an IPv4 packet, and the reverse, is not treated as ICMP: it has no ports and no types here. */
NN_INLINE int nn_is_icmp(const struct nn_packet *packet)
{
	return packet->tuple.protocol == (packet->ip_version == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

/* Minimum bytes of the transport header; 0: this protocol is not parsed. */
NN_INLINE __u32 nn_transport_header(const struct nn_packet *packet)
{
	switch (packet->tuple.protocol) {
	case IPPROTO_TCP:
		return NN_TCP_HEADER;
	case IPPROTO_UDP:
		return NN_UDP_HEADER;
	case IPPROTO_SCTP:
		return NN_SCTP_HEADER;
	}
	return nn_is_icmp(packet) ? NN_ICMP_HEADER : 0;
}

/* BIG TCP (IPv6 since Linux 5.19, IPv4 since 6.3): a TCP packet that the device will segment may be longer than the
 * length field can express. The field is then 0, and the packet ends with the buffer. No other valid packet has length
 * 0. */
NN_INLINE __u32 nn_big_tcp_length(struct __sk_buff *ctx, const struct nn_packet *packet, __u8 protocol)
{
	return protocol == IPPROTO_TCP && ctx->gso_size ? ctx->len - packet->offset : 0;
}

/* The payload length of an IPv6 BIG TCP packet. Up to Linux 6.19 the kernel puts a hop-by-hop header with the jumbo
 * option (RFC 2675) before TCP, in exactly this form, and removes it before it sends the segments. */
NN_INLINE __u32 nn_big_tcp_payload(struct __sk_buff *ctx, const struct nn_packet *packet, __u8 next)
{
	__u32 length = nn_big_tcp_length(ctx, packet, IPPROTO_TCP);
	struct {
		__u8 next;
		__u8 length;
		__u8 option;
		__u8 option_length;
		__be32 payload;
	} hop;

	if (!length)
		return 0;
	length -= NN_IPV6_HEADER;
	if (next == IPPROTO_TCP)
		return length;
	if (next != NN_NEXTHDR_HOP || nn_load(ctx, packet->offset + NN_IPV6_HEADER, &hop, sizeof(hop)) < 0)
		return 0;
	return hop.next == IPPROTO_TCP && hop.length == 0 && hop.option == 0xc2 && hop.option_length == 4 &&
		       hop.payload == bpf_htonl(length) ? length : 0;
}

#endif
