/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Bytes of a pod's packet that are not final when the program sees it: the device, or the kernel before it, still
 * writes a checksum (CHECKSUM_PARTIAL) and cuts a large packet into segments (GSO). The sender controls both: a raw
 * socket can set any checksum offset and segment type. struct __sk_buff does not show these fields, so they are read
 * from the kernel's structs. */
#ifndef NN_OFFLOAD_H
#define NN_OFFLOAD_H

#include <bpf/bpf_core_read.h>

#include "parse.h"
#include "rewrite.h"

#define NN_CHECKSUM_PARTIAL 3 /* CHECKSUM_PARTIAL of linux/skbuff.h */
#define NN_SCTP_CHECKSUM_OFFSET 8
#define NN_UDP_HEADER 8
/* Some devices store the checksum offset in 8 bits (e1000): a larger one would be written at another place. */
#define NN_CHECKSUM_PLACE_MAX 256

/* SKB_GSO_* of linux/skbuff.h: unchanged from Linux 5.10 to 6.18. */
#define NN_GSO_TCPV4 (1 << 0)
#define NN_GSO_TCPV6 (1 << 4)
#define NN_GSO_FCOE (1 << 5)
#define NN_GSO_SCTP (1 << 14)
#define NN_GSO_UDP (1 << 16)
#define NN_GSO_UDP_L4 (1 << 17)
#define NN_GSO_TRANSPORTS (NN_GSO_TCPV4 | NN_GSO_TCPV6 | NN_GSO_FCOE | NN_GSO_SCTP | NN_GSO_UDP | NN_GSO_UDP_L4)
/* GRE, IPXIP4, IPXIP6, UDP_TUNNEL (with and without checksums), TUNNEL_REMCSUM, ESP */
#define NN_GSO_TUNNELS (0x3f << 6 | 1 << 13 | 1 << 15)

/* The members of the kernel's structs that are read here. The loader finds their offsets in the running kernel
 * (CO-RE). */
struct sk_buff {
	unsigned char *head;
	__u32 end; /* offset from head, like the fields below */
	__u16 csum_start;
	__u16 csum_offset; /* offset from csum_start */
	__u16 network_header;
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

struct skb_shared_info {
	__u32 gso_type;
} __attribute__((preserve_access_index));

/* The sk_buff fields that are read for every packet of a pod. */
struct nn_unfinished {
	__u16 csum_start;
	__u16 csum_offset;
	__u16 network_header;
	__u8 ip_summed;
};

#define NN_OFFSET(member) bpf_core_field_offset(struct sk_buff, member)
#define NN_READ_SKB(ctx, member, to) bpf_probe_read_kernel(to, sizeof(*(to)), (void *)(ctx) + NN_OFFSET(member))

#ifdef NN_CAST_CTX /* for Linux 6.2 and newer: older kernels do not load an object that names this function */
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;

NN_INLINE void nn_read_unfinished(struct __sk_buff *ctx, struct nn_unfinished *unfinished)
{
	const struct sk_buff *skb = bpf_cast_to_kern_ctx(ctx);

	unfinished->ip_summed = BPF_CORE_READ_BITFIELD(skb, ip_summed);
	unfinished->csum_start = skb->csum_start;
	unfinished->csum_offset = skb->csum_offset;
	unfinished->network_header = skb->network_header;
}
#else
/* A call of bpf_probe_read_kernel takes about 300 instructions, so read all members with one call if possible. In every
 * kernel so far they lie within these bytes, starting at ip_summed. */
#define NN_WINDOW 64

#define NN_FROM_WINDOW(window, at, member) (*(__u16 *)((void *)(window) + (NN_OFFSET(member) - (at))))

/* The loader writes the offsets into the program as constants, so the verifier removes one of the two branches. */
NN_INLINE void nn_read_unfinished(struct __sk_buff *ctx, struct nn_unfinished *unfinished)
{
	const struct sk_buff *skb = (const void *)ctx;
	const __u32 at = __CORE_RELO(skb, ip_summed, BYTE_OFFSET);
	__u64 window[NN_WINDOW / 8];

	if (NN_OFFSET(csum_start) - at <= NN_WINDOW - 4 && NN_OFFSET(csum_offset) - at <= NN_WINDOW - 4 &&
	    NN_OFFSET(network_header) - at <= NN_WINDOW - 4) {
		bpf_probe_read_kernel(window, sizeof(window), (void *)ctx + at);
		/* For little-endian machines: the two shifts isolate the bits of the bit field. */
		unfinished->ip_summed = window[0] << __CORE_RELO(skb, ip_summed, LSHIFT_U64) >>
					__CORE_RELO(skb, ip_summed, RSHIFT_U64);
		unfinished->csum_start = NN_FROM_WINDOW(window, at, csum_start);
		unfinished->csum_offset = NN_FROM_WINDOW(window, at, csum_offset);
		unfinished->network_header = NN_FROM_WINDOW(window, at, network_header);
		return;
	}
	unfinished->ip_summed = BPF_CORE_READ_BITFIELD_PROBED(skb, ip_summed);
	NN_READ_SKB(ctx, csum_start, &unfinished->csum_start);
	NN_READ_SKB(ctx, csum_offset, &unfinished->csum_offset);
	NN_READ_SKB(ctx, network_header, &unfinished->network_header);
}
#endif

/* True if the protocol has no checksum that a device completes, and no ports that were parsed. */
NN_INLINE int nn_is_opaque(const struct nn_packet *packet)
{
	__u8 protocol = packet->tuple.protocol;

	return protocol != IPPROTO_TCP && protocol != IPPROTO_UDP && protocol != IPPROTO_SCTP && !nn_is_icmp(packet);
}

NN_INLINE __u16 nn_checksum_field(const struct nn_packet *packet)
{
	switch (packet->tuple.protocol) {
	case IPPROTO_TCP:
		return NN_TCP_CHECKSUM_OFFSET;
	case IPPROTO_UDP:
		return NN_UDP_CHECKSUM_OFFSET;
	case IPPROTO_SCTP:
		return NN_SCTP_CHECKSUM_OFFSET;
	}
	return NN_ICMP_CHECKSUM_OFFSET;
}

/* The checksum position must be that of the parsed transport header. Tunnels (over UDP, GRE, IP in IP) may name a
 * position after all parsed headers: it belongs to the inner packet, which is payload here. No kernel sends a fragment
 * with an unfinished checksum. Returns 0 or a drop code. */
NN_INLINE int nn_check_checksum_place(const struct nn_unfinished *unfinished, const struct nn_packet *packet)
{
	__s32 start = ETH_HLEN + unfinished->csum_start - unfinished->network_header;
	__u32 offset = unfinished->csum_offset;

	if (nn_is_fragment(packet))
		return NN_DROP_CHECKSUM;
	if (start + (__s32)offset + 2 > NN_CHECKSUM_PLACE_MAX)
		return NN_DROP_CHECKSUM;
	if (nn_is_opaque(packet))
		return start >= (__s32)packet->offset ? 0 : NN_DROP_CHECKSUM;
	if (start == (__s32)packet->offset && offset == nn_checksum_field(packet))
		return 0;
	return packet->tuple.protocol == IPPROTO_UDP && start >= (__s32)(packet->offset + NN_UDP_HEADER) ?
		       0 :
		       NN_DROP_CHECKSUM;
}

/* The segment types that preserve the parsed transport header in each segment. */
NN_INLINE __u32 nn_gso_of(const struct nn_packet *packet)
{
	switch (packet->tuple.protocol) {
	case IPPROTO_TCP:
		return packet->ip_version == 4 ? NN_GSO_TCPV4 : NN_GSO_TCPV6;
	case IPPROTO_UDP:
		return NN_GSO_UDP | NN_GSO_UDP_L4;
	case IPPROTO_SCTP:
		return NN_GSO_SCTP;
	}
	return 0;
}

/* A device segments the packet by the type that the sender set. It must match the parsed protocol, or be a tunnel type,
 * which copies the outer headers. Segmenting a fragment would create several fragments at offsets that were not
 * checked. Returns 0 or a drop code. */
NN_INLINE int nn_check_segments(struct __sk_buff *ctx, const struct nn_packet *packet)
{
	unsigned char *head;
	__u32 end, kind;

	if (nn_is_fragment(packet))
		return NN_DROP_INVALID_PACKET;
	if (NN_READ_SKB(ctx, head, &head) < 0 || NN_READ_SKB(ctx, end, &end) < 0 ||
	    bpf_probe_read_kernel(&kind, sizeof(kind),
				  head + end + bpf_core_field_offset(struct skb_shared_info, gso_type)) < 0)
		return NN_DROP_INVALID_PACKET;
	if (kind & NN_GSO_TUNNELS)
		return nn_is_opaque(packet) || packet->tuple.protocol == IPPROTO_UDP ? 0 : NN_DROP_INVALID_PACKET;
	return kind & NN_GSO_TRANSPORTS & ~nn_gso_of(packet) ? NN_DROP_INVALID_PACKET : 0;
}

/* Check a parsed frame from a pod. A frame that is not IP must have no unfinished checksum and no segments. A
 * subprogram, so that its stack is free again when the caller calls other functions. Returns 0 or a drop code. */
NN_SUBPROGRAM int nn_check_offload(struct __sk_buff *ctx, const struct nn_packet *packet)
{
	struct nn_unfinished unfinished = {};
	int is_partial, result = 0;

	if (!packet) /* old verifiers require this check */
		return NN_DROP_INVALID_PACKET;
	nn_read_unfinished(ctx, &unfinished);
	is_partial = unfinished.ip_summed == NN_CHECKSUM_PARTIAL;
	if (!packet->ip_version)
		return is_partial || ctx->gso_size ? NN_DROP_CHECKSUM : 0;
	if (is_partial)
		result = nn_check_checksum_place(&unfinished, packet);
	if (result == 0 && ctx->gso_size)
		result = nn_check_segments(ctx, packet);
	return result;
}

#endif
