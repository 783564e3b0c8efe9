/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connection tracking: one entry per flow, keyed by the tuple as one pod sees it, so that one lookup serves packets of
 * both directions. The entry records who opened the flow and in which generation of policy it was last allowed. */
#ifndef NN_CONNTRACK_H
#define NN_CONNTRACK_H

#include "events.h"
#include "hash.h"
#include "policy.h"

/* Seconds without a packet after which a flow expires. TCP: close to RFC 5382 (established: at least 2 h 4 min). UDP:
 * RFC 4787 requires at least 2 minutes of a NAT; conntrack on Linux uses 30 s, and 120 s for streams. */
#define NN_CT_TCP_ESTABLISHED 8000
#define NN_CT_TCP_OPENING 60
#define NN_CT_TCP_CLOSING 10
#define NN_CT_STREAM 180
#define NN_CT_OTHER 60

/* Entries are evicted by their owners (ct_create.h), so that no pod can evict the flows of another one. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct nn_ct_key);
	__type(value, struct nn_ct_entry);
} nn_ct SEC(".maps");

/* The flow as the pod sees it: in packets that it sends (egress), the pod is the source. */
NN_INLINE void nn_ct_key_of(const struct nn_tuple *tuple, __u8 direction, struct nn_ct_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->protocol = tuple->protocol;
	if (direction == NN_EGRESS) {
		key->pod = tuple->saddr;
		key->remote = tuple->daddr;
		key->pod_port = tuple->sport;
		key->remote_port = tuple->dport;
	} else {
		key->pod = tuple->daddr;
		key->remote = tuple->saddr;
		key->pod_port = tuple->dport;
		key->remote_port = tuple->sport;
	}
}

NN_INLINE __u32 nn_ct_lifetime(__u8 flags, __u8 protocol)
{
	if (protocol != IPPROTO_TCP)
		return flags & NN_CT_SEEN_REPLY ? NN_CT_STREAM : NN_CT_OTHER;
	if ((flags & NN_CT_RST) ||
	    (flags & (NN_CT_FIN_FORWARD | NN_CT_FIN_REPLY)) == (NN_CT_FIN_FORWARD | NN_CT_FIN_REPLY))
		return NN_CT_TCP_CLOSING;
	return flags & NN_CT_SEEN_REPLY ? NN_CT_TCP_ESTABLISHED : NN_CT_TCP_OPENING;
}

/* A SYN without ACK always opens a new flow: policy is checked again, in the direction of the SYN. An echo request
 * against the flow's direction is a new flow too, not a reply. */
NN_INLINE int nn_ct_opens(const struct nn_packet *packet, const struct nn_ct_entry *entry, __u8 direction)
{
	if (packet->tuple.protocol == IPPROTO_TCP)
		return nn_is_syn(packet);
	return entry->direction != direction && nn_is_echo_request(packet);
}

/* One pair of ends cannot carry two connections of a pod, for example one to the backend directly and one through a
 * Service, or two through different Services. The pod's kernel may still choose the same source port for both, because
 * it sees different remote addresses. Refuse the second connection while the first one is open. For datagrams, replies
 * go to the last sender instead. */
NN_INLINE int nn_ct_conflicts(const struct nn_ct_entry *entry, const struct nn_view *view, __u8 protocol)
{
	__u8 translated = entry->flags & NN_CT_TRANSLATED;

	if (view->direction != NN_EGRESS || protocol != IPPROTO_TCP ||
	    (entry->flags & (NN_CT_FIN_FORWARD | NN_CT_RST)))
		return 0;
	return translated != (view->nat & NN_CT_TRANSLATED) ||
	       (translated && entry->rev_nat_index != view->rev_nat_index);
}

NN_INLINE void nn_ct_set_service(struct nn_ct_entry *entry, const struct nn_view *view)
{
	if (view->nat) {
		entry->rev_nat_index = view->rev_nat_index;
		entry->flags |= NN_CT_TRANSLATED;
	} else {
		entry->flags &= ~NN_CT_TRANSLATED;
	}
}

/* Returns the entry if it has not expired and belongs to this endpoint: a pod must not inherit the flows of the
 * previous owner of its address. The difference is signed, because another CPU may have written last_seen after this
 * one read the clock. */
NN_INLINE struct nn_ct_entry *nn_ct_lookup(const struct nn_ct_key *key, __u16 endpoint_id, __u32 now)
{
	struct nn_ct_entry *entry = bpf_map_lookup_elem(&nn_ct, key);

	if (!entry || entry->endpoint_id != endpoint_id)
		return 0;
	return (__s32)(now - entry->last_seen) > (__s32)nn_ct_lifetime(entry->flags, key->protocol) ? 0 : entry;
}

/* True if no change of policy since the entry was judged can have changed its verdict. Ages are compared, because
 * generations may wrap; an entry that was copied from another map has an age that is too large. */
NN_INLINE int nn_ct_is_judged(const struct nn_ct_entry *entry, const struct nn_state *state)
{
	return state->generation - entry->revision <= state->generation - state->recheck_from;
}

/* The entry flags that follow from one packet. */
NN_INLINE __u8 nn_ct_flags_of(const struct nn_packet *packet, int is_reply)
{
	__u8 flags = is_reply ? NN_CT_SEEN_REPLY : 0;

	if (packet->tcp_flags & NN_TCP_FIN)
		flags |= is_reply ? NN_CT_FIN_REPLY : NN_CT_FIN_FORWARD;
	if (packet->tcp_flags & NN_TCP_RST)
		flags |= NN_CT_RST;
	return flags;
}

/* Update the entry from a packet. Returns 1 if the packet deserves an event: the first reply, a FIN or a RST. Fields
 * are written only when they change, to keep the cache line shared between CPUs. A packet after a RST clears the RST
 * flag: the receiver ignored that RST (RFC 5961). */
NN_INLINE int nn_ct_touch(struct nn_ct_entry *entry, const struct nn_packet *packet, int is_reply, __u32 now)
{
	__u8 flags = (entry->flags & ~NN_CT_RST) | nn_ct_flags_of(packet, is_reply), new_flags;

	new_flags = flags & ~entry->flags;
	if (entry->last_seen != now)
		entry->last_seen = now;
	if (flags != entry->flags)
		entry->flags = flags;
	return new_flags != 0;
}

#endif
