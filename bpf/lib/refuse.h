/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Turns a packet into the answer that refuses it: a reset for TCP, ICMP "port unreachable" for UDP and echo requests. One
 * packet answers one packet, and the answer is not much longer, so there is no limit. */
#ifndef NN_REFUSE_H
#define NN_REFUSE_H

#include "context.h"
#include "rewrite.h"

#define NN_ANSWER_TTL 64
#define NN_TCP_SEQUENCE_OFFSET 4
#define NN_ICMP_PORT_UNREACHABLE 3
#define NN_ICMPV6_DEST_UNREACH 1
#define NN_ICMPV6_PORT_UNREACHABLE 4
/* The IP header of the refused packet and 8 bytes, which hold its ports (RFC 792). */
#define NN_QUOTE_V4 28
#define NN_QUOTE_V6 48

/* What the checksum of an answer covers besides the answer. The IPv4-mapped form gives the same sum as the pseudo header
 * of IPv4: the prefix adds 0xffff, which is 0 in ones' complement. */
struct nn_pseudo {
	struct nn_addr saddr;
	struct nn_addr daddr;
	__be32 length;
	__be32 protocol;
};

struct nn_reset {
	__be16 sport;
	__be16 dport;
	__be32 sequence;
	__be32 acknowledged;
	__u8 offset;
	__u8 flags;
	__be16 window;
	__u16 checksum;
	__be16 urgent;
};

struct nn_unreachable {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u16 unused;
	__u16 unused2;
	__u8 quote[NN_QUOTE_V6];
};

/* Sum of 16-bit words in ones' complement. */
NN_INLINE __u16 nn_sum_of(void *data, __u32 size, __u32 start)
{
	__u32 sum = bpf_csum_diff(0, 0, data, size, start);

	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The pseudo header of the answer to the context's packet. */
NN_INLINE __u16 nn_pseudo_of(const struct nn_packet *packet, __u32 length, __u32 protocol)
{
	struct nn_pseudo pseudo = { .saddr = packet->tuple.daddr,
				    .daddr = packet->tuple.saddr,
				    .length = bpf_htonl(length),
				    .protocol = bpf_htonl(protocol) };

	return nn_sum_of(&pseudo, sizeof(pseudo), 0);
}

/* The IP header of the answer, without options. */
NN_INLINE int nn_store_answer_ip(struct __sk_buff *ctx, const struct nn_packet *packet, __u16 length, __u8 protocol)
{
	const struct nn_tuple *tuple = &packet->tuple;

	if (packet->ip_version == 4) {
		struct iphdr ip = { .version = 4,
				    .ihl = sizeof(ip) / 4,
				    .tot_len = bpf_htons(sizeof(ip) + length),
				    .ttl = NN_ANSWER_TTL,
				    .protocol = protocol,
				    .saddr = tuple->daddr.word[3],
				    .daddr = tuple->saddr.word[3] };

		ip.check = ~nn_sum_of(&ip, sizeof(ip), 0);
		return bpf_skb_store_bytes(ctx, ETH_HLEN, &ip, sizeof(ip), 0);
	} else {
		struct ipv6hdr ip = { .version = 6,
				      .payload_len = bpf_htons(length),
				      .nexthdr = protocol,
				      .hop_limit = NN_ANSWER_TTL };

		__builtin_memcpy(&ip.saddr, &tuple->daddr, sizeof(ip.saddr));
		__builtin_memcpy(&ip.daddr, &tuple->saddr, sizeof(ip.daddr));
		return bpf_skb_store_bytes(ctx, ETH_HLEN, &ip, sizeof(ip), 0);
	}
}

NN_INLINE __u32 nn_answer_offset(const struct nn_packet *packet)
{
	return ETH_HLEN + (packet->ip_version == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
}

/* The numbers of the reset that the receiver of this segment would send (RFC 9293, 3.10.7). Returns a negative number if
 * the packet cannot be read. */
NN_INLINE int nn_reset_numbers(struct __sk_buff *ctx, const struct nn_packet *packet, struct nn_reset *reset)
{
	struct {
		__be32 sequence;
		__be32 acknowledged;
		__u8 offset;
		__u8 flags;
	} __attribute__((packed)) segment;
	__u32 length;

	if (bpf_skb_load_bytes(ctx, packet->offset + NN_TCP_SEQUENCE_OFFSET, &segment, sizeof(segment)) < 0)
		return -1;
	reset->flags = NN_TCP_RST;
	if (segment.flags & NN_TCP_ACK) {
		reset->sequence = segment.acknowledged;
		return 0;
	}
	length = packet->end - packet->offset - (segment.offset >> 4) * 4;
	length += !!(segment.flags & NN_TCP_SYN) + !!(segment.flags & NN_TCP_FIN);
	reset->acknowledged = bpf_htonl(bpf_ntohl(segment.sequence) + length);
	reset->flags |= NN_TCP_ACK;
	return 0;
}

/* Turn a TCP packet into a reset. Returns 0 or a negative number: the packet is then incomplete and must be dropped. */
NN_GLOBAL int nn_reset_of(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct nn_reset reset = {};
	__u16 pseudo, checksum;
	__u32 at;

	if (!context)
		return -1;
	at = nn_answer_offset(&context->packet);
	if (nn_reset_numbers(ctx, &context->packet, &reset) < 0)
		return -1;
	reset.sport = context->packet.tuple.dport;
	reset.dport = context->packet.tuple.sport;
	reset.offset = NN_TCP_HEADER / 4 << 4;
	pseudo = nn_pseudo_of(&context->packet, NN_TCP_HEADER, IPPROTO_TCP);
	checksum = ~nn_sum_of(&reset, sizeof(reset), pseudo);
	/* What a device completes (CHECKSUM_PARTIAL). */
	reset.checksum = pseudo;
	if (bpf_skb_change_tail(ctx, at + NN_TCP_HEADER, 0) < 0 ||
	    nn_store_answer_ip(ctx, &context->packet, NN_TCP_HEADER, IPPROTO_TCP) < 0 ||
	    bpf_skb_store_bytes(ctx, at, &reset, sizeof(reset), 0) < 0)
		return -1;
	/* Without such a device the complete one. The helper knows, and then changes the field from the first value to
	 * the second. */
	return bpf_l4_csum_replace(ctx, at + NN_TCP_CHECKSUM_OFFSET, (__u16)~pseudo, (__u16)~checksum, 2);
}

/* Turn a packet into ICMP "port unreachable". If a device completes the checksum of the datagram, it writes into the second
 * unused field. ICMPv6 covers a pseudo header, of which the device does not know: the field holds its sum, and then the
 * message is right with and without such a device. Returns 0 or a negative number, as nn_reset_of. */
NN_GLOBAL int nn_unreachable_of(struct __sk_buff *ctx)
{
	struct nn_context *context = nn_context_now();
	struct nn_unreachable message = {};
	const struct nn_packet *packet;
	__u32 at, length;
	__u16 pseudo;

	if (!context)
		return -1;
	packet = &context->packet;
	at = nn_answer_offset(packet);
	/* The quote of a packet with options would not hold its ports. */
	if (packet->offset != at)
		return -1;
	if (packet->ip_version == 4) {
		length = NN_ICMP_HEADER + NN_QUOTE_V4;
		message.type = NN_ICMP_DEST_UNREACH;
		message.code = NN_ICMP_PORT_UNREACHABLE;
		if (bpf_skb_load_bytes(ctx, ETH_HLEN, message.quote, NN_QUOTE_V4) < 0)
			return -1;
		message.checksum = ~nn_sum_of(&message, NN_ICMP_HEADER + NN_QUOTE_V4, 0);
	} else {
		length = NN_ICMP_HEADER + NN_QUOTE_V6;
		message.type = NN_ICMPV6_DEST_UNREACH;
		message.code = NN_ICMPV6_PORT_UNREACHABLE;
		if (bpf_skb_load_bytes(ctx, ETH_HLEN, message.quote, NN_QUOTE_V6) < 0)
			return -1;
		pseudo = nn_pseudo_of(packet, NN_ICMP_HEADER + NN_QUOTE_V6, IPPROTO_ICMPV6);
		message.unused2 = pseudo;
		message.checksum = ~nn_sum_of(&message, NN_ICMP_HEADER + NN_QUOTE_V6, pseudo);
	}
	if (bpf_skb_change_tail(ctx, at + length, 0) < 0 ||
	    nn_store_answer_ip(ctx, packet, length, packet->ip_version == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6) < 0)
		return -1;
	return packet->ip_version == 4 ?
		       bpf_skb_store_bytes(ctx, at, &message, NN_ICMP_HEADER + NN_QUOTE_V4, 0) :
		       bpf_skb_store_bytes(ctx, at, &message, NN_ICMP_HEADER + NN_QUOTE_V6, 0);
}

/* Turn the packet into the answer that refuses it. Resets and later fragments get none (RFC 9293, RFC 1122), nor does what
 * is neither TCP, UDP nor an echo request. Returns 0, or a negative number: drop the
 * packet. */
NN_INLINE int nn_refusal_of(struct __sk_buff *ctx, const struct nn_packet *packet)
{
	__u8 protocol = packet->tuple.protocol;

	if (packet->later_fragment)
		return -1;
	if (protocol == IPPROTO_TCP)
		return packet->first_fragment || (packet->tcp_flags & NN_TCP_RST) ? -1 : nn_reset_of(ctx);
	return protocol == IPPROTO_UDP || nn_is_echo_request(packet) ? nn_unreachable_of(ctx) : -1;
}

/* Exchange the MACs of a frame. Returns a negative number if its sender's is no MAC of one machine. */
NN_INLINE int nn_answer_ethernet(struct __sk_buff *ctx)
{
	struct {
		__u8 one[ETH_ALEN];
		__u8 other[ETH_ALEN];
	} mac;

	if (bpf_skb_load_bytes(ctx, 0, &mac, sizeof(mac)) < 0 || (mac.other[0] & 1) ||
	    bpf_skb_store_bytes(ctx, 0, &mac.other, ETH_ALEN, 0) < 0)
		return -1;
	return bpf_skb_store_bytes(ctx, ETH_ALEN, &mac.one, ETH_ALEN, 0);
}

#endif
