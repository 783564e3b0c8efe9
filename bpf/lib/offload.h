/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Bytes of a pod's packet that are not final when the program judges it: a device, or the kernel before it, still writes
 * a checksum (CHECKSUM_PARTIAL) and cuts a large packet into segments (GSO). Both places and kinds come from the sender: a
 * raw socket chooses them freely. struct __sk_buff does not show them, so they are read from the kernel's own structs. */
#ifndef NN_OFFLOAD_H
#define NN_OFFLOAD_H

#include <bpf/bpf_core_read.h>

#include "parse.h"
#include "rewrite.h"

#define NN_CHECKSUM_PARTIAL 3 /* CHECKSUM_PARTIAL of linux/skbuff.h */
#define NN_SCTP_CHECKSUM_OFFSET 8
#define NN_UDP_HEADER 8
/* Some devices keep the place in 8 bits (e1000): what is farther behind would be written elsewhere. */
#define NN_CHECKSUM_PLACE_MAX 256

/* SKB_GSO_* of linux/skbuff.h: the same from Linux 5.10 to 6.18. */
#define NN_GSO_TCPV4 (1 << 0)
#define NN_GSO_TCPV6 (1 << 4)
#define NN_GSO_FCOE (1 << 5)
#define NN_GSO_SCTP (1 << 14)
#define NN_GSO_UDP (1 << 16)
#define NN_GSO_UDP_L4 (1 << 17)
#define NN_GSO_TRANSPORTS (NN_GSO_TCPV4 | NN_GSO_TCPV6 | NN_GSO_FCOE | NN_GSO_SCTP | NN_GSO_UDP | NN_GSO_UDP_L4)
/* GRE, IPXIP4, IPXIP6, UDP_TUNNEL (with and without checksums), TUNNEL_REMCSUM, ESP */
#define NN_GSO_TUNNELS (0x3f << 6 | 1 << 13 | 1 << 15)

/* Of the kernel's structs, the members that are read here. The loader finds them in the running kernel (CO-RE). */
struct sk_buff {
	unsigned char *head;
	__u32 end; /* from head, as all that follow */
	__u16 csum_start;
	__u16 csum_offset; /* from csum_start */
	__u16 network_header;
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

struct skb_shared_info {
	__u32 gso_type;
} __attribute__((preserve_access_index));

/* Of the kernel's packet, what is read for every packet of a pod. */
struct nn_unfinished {
	__u16 csum_start;
	__u16 csum_offset;
	__u16 network_header;
	__u8 ip_summed;
};

#define NN_OFFSET(member) bpf_core_field_offset(struct sk_buff, member)
#define NN_READ_SKB(ctx, member, to) bpf_probe_read_kernel(to, sizeof(*(to)), (void *)(ctx) + NN_OFFSET(member))

#ifdef NN_CAST_CTX /* a build for Linux 6.2 and newer; one that names this function does not load in older kernels */
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
/* A call of bpf_probe_read_kernel takes about 300 instructions. In every kernel so far the members lie within these bytes, from
 * ip_summed on. */
#define NN_WINDOW 64

#define NN_FROM_WINDOW(window, at, member) (*(__u16 *)((void *)(window) + (NN_OFFSET(member) - (at))))

/* The loader writes the offsets into the program as constants: the verifier removes one of the branches. */
NN_INLINE void nn_read_unfinished(struct __sk_buff *ctx, struct nn_unfinished *unfinished)
{
	const struct sk_buff *skb = (const void *)ctx;
	const __u32 at = __CORE_RELO(skb, ip_summed, BYTE_OFFSET);
	__u64 window[NN_WINDOW / 8];

	if (NN_OFFSET(csum_start) - at <= NN_WINDOW - 4 && NN_OFFSET(csum_offset) - at <= NN_WINDOW - 4 &&
	    NN_OFFSET(network_header) - at <= NN_WINDOW - 4) {
		bpf_probe_read_kernel(window, sizeof(window), (void *)ctx + at);
		/* Of a little-endian machine: the shifts leave the bits of the member alone. */
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

/* Has the protocol's header no checksum that a device finishes, and no port that was parsed? */
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

/* The place must be the checksum of the header that was parsed. Tunnels (over UDP, GRE, IP in IP) may name one behind every
 * header that was parsed: it belongs to an inner packet, which is payload here. No kernel sends a fragment with an
 * unfinished checksum. Returns 0 or a drop code. */
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

/* Which segments of this packet keep the header that was parsed. */
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

/* A device segments the packet by the kind that the sender named: it must be the protocol that was parsed, or a tunnel's,
 * whose outer headers are copied. A segmented fragment would be several, with numbers that were not judged. Returns 0 or a
 * drop code. */
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

/* A frame from a pod, once it is parsed. What is not IP has no checksum to be finished and no segments. A function of its
 * own, so that its stack is not the callers' of others. Returns 0 or a drop code. */
NN_SUBPROGRAM int nn_check_offload(struct __sk_buff *ctx, const struct nn_packet *packet)
{
	struct nn_unfinished unfinished = {};
	int is_partial, result = 0;

	if (!packet) /* the verifier of older kernels wants to see it */
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
