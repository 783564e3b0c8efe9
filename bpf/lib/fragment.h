/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments. Only the first fragment of a datagram carries the ports, so policy is checked on it. It must carry all
 * headers (RFC 7112), and no later fragment may overwrite them (RFC 1858, 3128, 5722). */
#ifndef NN_FRAGMENT_H
#define NN_FRAGMENT_H

#include "packet.h"

#define NN_DATAGRAM_MAX 65535
#define NN_IPV6_FRAGMENT_HEADERS 48 /* IPv6 limits only the payload; the fragment header does not count */
/* About 1 ms: within a second, the bucket of a busy sender loses its oldest entry. Linux waits 30 s for the fragments of
 * a datagram (ipfrag_time). */
#define NN_FRAG_TIME_SHIFT 20
#define NN_FRAG_LIFETIME (30 * NN_NS_PER_SECOND >> NN_FRAG_TIME_SHIFT)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct nn_frag_key);
	__type(value, struct nn_frag_entry);
} nn_frag SEC(".maps");

/* Another CPU may have made the entry after this one read the clock. Only so little counts as 0: the clock wraps after 52
 * days, and half of that is no age of a new entry. */
#define NN_FRAG_CLOCK_LEAD 1024

NN_INLINE __u32 nn_frag_age(const struct nn_frag_entry *entry, __u64 time)
{
	__u32 age = (__u32)(time >> NN_FRAG_TIME_SHIFT) - entry->created;

	return age >= -(__u32)NN_FRAG_CLOCK_LEAD ? 0 : age;
}

NN_INLINE int nn_is_fragment(const struct nn_packet *packet)
{
	return packet->first_fragment || packet->later_fragment;
}

/* Record the position of a fragment in its datagram. The cursor is at the fragment's payload. Returns 0 or a drop
 * code. */
NN_INLINE int nn_note_fragment(struct __sk_buff *ctx, struct nn_packet *packet, __u32 before, __u32 more)
{
	__u32 most = NN_DATAGRAM_MAX + (packet->ip_version == 6 ? NN_IPV6_FRAGMENT_HEADERS : 0);
	__u32 payload = packet->end - packet->offset;

	packet->later_fragment = before != 0;
	packet->first_fragment = !before;
	packet->fragment_offset = before;
	if (packet->quoted)
		return 0;
	/* A fragment that is not the last must have a multiple of 8 bytes: the kernel rejects others or cuts them, and
	 * policy must not be checked on bytes that are cut off later. */
	if (payload == 0 || (more && (payload & 7)))
		return NN_DROP_INVALID_PACKET;
	if (before + (packet->end - ETH_HLEN) > most)
		return NN_DROP_INVALID_PACKET;
	/* A device that segments a packet writes fragment offsets from 0, which would move this fragment. */
	return ctx->gso_size ? NN_DROP_INVALID_PACKET : 0;
}

NN_INLINE void nn_frag_key_of(const struct nn_packet *packet, __u32 ifindex, struct nn_frag_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = packet->tuple.saddr;
	key->daddr = packet->tuple.daddr;
	key->id = packet->fragment_id;
	/* IPv6 identification numbers are shared by all protocols (RFC 8200, 4.5), and later fragments may name any
	 * protocol. */
	if (packet->ip_version == 4)
		key->id |= (__u32)packet->tuple.protocol << 16;
	key->ifindex = ifindex;
}

/* Copy ports and protocol from the first fragment, if that passed. Fragments may arrive in any order (RFC 791, RFC
 * 8200): nn_police_early_fragment decides about a fragment that arrives before the first one. */
NN_INLINE int nn_parse_later_fragment(struct __sk_buff *ctx, struct nn_packet *packet)
{
	struct nn_frag_entry *first;
	struct nn_frag_key key;

	if (packet->fragment_offset < nn_transport_header(packet))
		return NN_DROP_INVALID_PACKET;
	nn_frag_key_of(packet, ctx->ifindex, &key);
	first = bpf_map_lookup_elem(&nn_frag, &key);
	if (!first || nn_frag_age(first, bpf_ktime_get_ns()) > NN_FRAG_LIFETIME) {
		packet->early_fragment = 1;
		return packet->quoted ? NN_DROP_FRAGMENT_NOT_FOUND : 0;
	}
	if (packet->fragment_offset < first->headers)
		return NN_DROP_INVALID_PACKET;
	packet->tuple.sport = first->sport;
	packet->tuple.dport = first->dport;
	packet->tuple.protocol = first->protocol;
	return 0;
}

#endif
