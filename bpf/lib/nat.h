/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The flow table of the service stage. Each flow has two entries: what becomes of the client's packets, and what becomes
 * of those that answer them. Both are made and deleted together, with the two of source.h if the flow has them. The flow
 * has one slot (fair.h), by the client's entry, and who called owns it. */
#ifndef NN_NAT_H
#define NN_NAT_H

#include "conntrack.h"
#include "fair.h"
#include "rewrite.h"

/* Entries come and go with the flows, so that a node without such flows needs no memory for them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct nn_nat_key);
	__type(value, struct nn_nat_entry);
} nn_nat SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3276);
	__type(key, __u32);
	__type(value, struct nn_fair_bucket);
} nn_nat_slot SEC(".maps");

NN_INLINE void nn_nat_key_of(const struct nn_tuple *tuple, __u8 reply, struct nn_nat_key *key)
{
	key->saddr = tuple->saddr;
	key->daddr = tuple->daddr;
	key->sport = tuple->sport;
	key->dport = tuple->dport;
	key->protocol = tuple->protocol;
	key->reply = reply;
	key->pad[0] = key->pad[1] = 0;
}

/* The key of a flow's other half: packets in the opposite direction. */
NN_INLINE void nn_nat_other_of(const struct nn_nat_key *key, const struct nn_nat_entry *entry, struct nn_nat_key *other)
{
	other->saddr = entry->daddr;
	other->daddr = entry->saddr;
	other->sport = entry->dport;
	other->dport = entry->sport;
	other->protocol = key->protocol;
	other->reply = key->reply ^ 1;
	other->pad[0] = other->pad[1] = 0;
}

/* The key by which the client's packets are found where they leave the node. `reply`: the entry of replies of the flow,
 * whose key has the same ends. */
NN_INLINE void nn_nat_source_of(const struct nn_nat_key *reply, struct nn_nat_key *source)
{
	source->saddr = reply->daddr;
	source->daddr = reply->saddr;
	source->sport = reply->dport;
	source->dport = reply->sport;
	source->protocol = reply->protocol;
	source->reply = NN_NAT_SOURCE_CLIENT;
	source->pad[0] = source->pad[1] = 0;
}

/* Delete the entry with the key `gone` of the context, and its other half. Returns its flags. */
NN_INLINE __u8 nn_nat_delete_pair(struct nn_nat *nat)
{
	struct nn_nat_entry *entry = bpf_map_lookup_elem(&nn_nat, &nat->gone);
	__u8 flags;

	if (!entry)
		return 0;
	flags = entry->flags;
	nn_nat_other_of(&nat->gone, entry, &nat->other);
	bpf_map_delete_elem(&nn_nat, &nat->gone);
	bpf_map_delete_elem(&nn_nat, &nat->other);
	return flags;
}

/* Delete all entries of the flow that has the key in the context: of the client or of replies. */
NN_GLOBAL int nn_nat_delete(void)
{
	struct nn_context *context = nn_context_now();
	struct nn_nat *nat;

	if (!context)
		return 0;
	nat = &context->nat;
	if (!(nn_nat_delete_pair(nat) & NN_NAT_HAS_SOURCE))
		return 0;
	if (!nat->gone.reply)
		nat->gone = nat->other;
	nn_nat_source_of(&nat->gone, &nat->other);
	nat->gone = nat->other;
	nn_nat_delete_pair(nat);
	return 0;
}

NN_INLINE void nn_nat_remove(void *entries, const struct nn_ct_key *key)
{
	struct nn_context *context = nn_context_now();

	(void)entries;
	if (!context)
		return;
	__builtin_memcpy(&context->nat.gone, key, sizeof(context->nat.gone));
	nn_nat_delete();
}

/* True if both sides have spoken; in a flow from outside, if the client has acknowledged an answer. A SYN-ACK is no proof
 * that there is a client, and neither is a further packet in its name: anyone may have sent them. So a UDP flow from
 * outside is never open. */
NN_INLINE int nn_nat_is_open(__u8 flags)
{
	return (flags & (NN_NAT_SEEN_REPLY | NN_NAT_OPENED)) == (NN_NAT_SEEN_REPLY | NN_NAT_OPENED);
}

/* True if both sides have sent a FIN. */
NN_INLINE int nn_nat_is_closed(__u8 flags)
{
	return (flags & (NN_NAT_FIN_FORWARD | NN_NAT_FIN_REPLY)) == (NN_NAT_FIN_FORWARD | NN_NAT_FIN_REPLY);
}

NN_INLINE int nn_nat_has_expired(const struct nn_nat_entry *entry, __u8 protocol, __u32 now)
{
	__u8 flags = nn_nat_is_open(entry->flags) ? entry->flags : entry->flags & ~NN_NAT_SEEN_REPLY;

	return (__s32)(now - entry->last_seen) > (__s32)nn_ct_lifetime(flags, protocol);
}

/* Flows of which one side never spoke go first, then those idle longest. */
NN_INLINE __u64 nn_nat_look(const void *found, const struct nn_ct_key *key, const struct nn_context *context)
{
	const struct nn_nat_entry *entry = found;
	__s32 idle = context->now - entry->last_seen;

	if (nn_nat_has_expired(entry, key->protocol, context->now))
		return NN_FAIR_EXPIRED;
	return (idle > 0 ? idle : 0) | (nn_nat_is_open(entry->flags) ? 0 : NN_FAIR_FIRST);
}

NN_FAIR_TABLE_OF(nn_nat, nn_config.nat_buckets, nn_nat_look, nn_nat_remove, NN_TABLE_NAT)

/* A client outside may have any number of addresses in its /64 of IPv6. */
NN_INLINE void nn_nat_client(struct nn_addr *client)
{
	if (!nn_addr_is_v4(client))
		client->word[2] = client->word[3] = 0;
}

/* A number of a client outside, never 0. */
NN_INLINE __u32 nn_nat_client_number(const struct nn_addr *addr)
{
	struct nn_addr client = *addr;

	nn_nat_client(&client);
	return (__u32)nn_addr_number(&client) | 1;
}

/* The pod that called. From outside anyone can send a first packet in any client's name, so all flows that are not open
 * yet have one owner: they evict each other (nn_nat_prove). */
NN_INLINE __u32 nn_nat_owner_of(const struct nn_view *view, const void *key)
{
	(void)key;
	return view->endpoint_id ? nn_owner_endpoint(view->endpoint_id) : NN_OWNER_OUTSIDE;
}

/* How far behind the first answer an acknowledgement may be, in a connection that is found in its middle. */
#define NN_NAT_WINDOW 0xffff

/* `reply`: the entry of the context's packet, which answers a client outside. Remember which acknowledgement proves that
 * the client received it: of a SYN-ACK exactly one number, which only its receiver knows. A connection whose entries
 * were lost has no SYN-ACK any more: then the first answer counts, and the client may acknowledge later ones with it. A
 * reset proves nothing: its number may be that of the packet that it answers. */
NN_INLINE void nn_nat_expect(const struct nn_packet *packet, struct nn_nat_entry *reply)
{
	__u32 opens = packet->tcp_flags & NN_TCP_SYN ? 1 : 0;

	if (packet->tuple.protocol != IPPROTO_TCP || reply->endpoint_id || (packet->tcp_flags & NN_TCP_RST) ||
	    (reply->slot && !opens))
		return;
	reply->backend_id = packet->tcp_sequence + opens + (packet->tcp_flags & NN_TCP_FIN ? 1 : 0) + packet->end -
			    packet->offset - packet->tcp_header;
	reply->slot = opens ? 1 : NN_NAT_WINDOW;
}

/* True if the context's packet, of a client outside, acknowledges an answer: the client is real. `flow`: its entry, one
 * of the client's. */
NN_INLINE int nn_nat_proves(struct nn_context *context, const struct nn_nat_entry *flow)
{
	const struct nn_packet *packet = &context->packet;
	const struct nn_nat_entry *reply;

	if (!(flow->flags & NN_NAT_SEEN_REPLY) || packet->tuple.protocol != IPPROTO_TCP || nn_is_syn(packet) ||
	    !(packet->tcp_flags & NN_TCP_ACK))
		return 0;
	nn_nat_other_of(&context->nat.key, flow, &context->nat.other);
	reply = bpf_map_lookup_elem(&nn_nat, &context->nat.other);
	return reply && packet->tcp_acknowledged - reply->backend_id < reply->slot;
}

/* The client of the context's flow from outside has acknowledged an answer, so it is real: it owns the flow now. The
 * claim finds the flow's slot. Pods of other nodes are clients of their own. */
NN_GLOBAL int nn_nat_prove(void)
{
	struct nn_context *context = nn_context_now();
	const struct nn_view *view;
	struct nn_addr client;
	__u32 identity;

	if (!context)
		return 0;
	view = nn_view_new(context, NN_EGRESS);
	client = context->nat.key.saddr;
	identity = nn_identity_of(&client, context->state.generation);
	if (nn_is_reserved(identity))
		nn_nat_client(&client);
	context->owner = nn_owner_remote(view, &client, identity);
	__builtin_memcpy(&context->key, &context->nat.key, sizeof(context->key));
	return nn_nat_claim(NN_FAIR_TAKE);
}

NN_INLINE int nn_nat_is_same(const struct nn_nat_entry *a, const struct nn_nat_entry *b)
{
	return a->sport == b->sport && a->dport == b->dport && a->endpoint_id == b->endpoint_id &&
	       nn_addr_equal(&a->saddr, &b->saddr) && nn_addr_equal(&a->daddr, &b->daddr);
}

/* If another flow has this half, delete both halves of that one. */
NN_INLINE void nn_nat_displace(struct nn_nat *nat, const struct nn_nat_key *key, const struct nn_nat_entry *entry)
{
	const struct nn_nat_entry *found = bpf_map_lookup_elem(&nn_nat, key);

	if (!found || nn_nat_is_same(found, entry))
		return;
	nat->gone = *key;
	nn_nat_delete();
}

/* Name the context's flow and its owner for nn_nat_claim: entries of its bucket give way, not its own. A function that does
 * not call nn_nat_claim itself: a frame more in that chain of calls is too much for 5.10. */
NN_GLOBAL int nn_nat_name_flow(void)
{
	struct nn_context *context = nn_context_now();

	if (!context)
		return 0;
	/* Not set if the client's half was there before: then it claimed no slot. */
	context->owner = nn_nat_owner_of(nn_view_of(context, NN_EGRESS), 0);
	__builtin_memcpy(&context->key, &context->nat.key, sizeof(context->key));
	return 0;
}

/* Insert another half of the context's flow than the client's. There are more entries than the slots need, so only
 * entries without a slot can fill the table: those of a map that was replaced (nodenet/bpf/carry.py). Then other flows
 * give way, as for the client's half (nn_fair_insert). */
NN_INLINE long nn_nat_insert(const struct nn_nat_key *key, const struct nn_nat_entry *entry, __u64 flags)
{
	long result = bpf_map_update_elem(&nn_nat, key, entry, flags);

#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_FAIR_CLAIM_TRIES && result < 0 && result != -NN_EEXIST; i++) {
		nn_nat_name_flow();
		nn_nat_claim(NN_FAIR_EVICT);
		result = bpf_map_update_elem(&nn_nat, key, entry, flags);
	}
	if (result < 0 && result != -NN_EEXIST)
		nn_nat_claim(NN_FAIR_REFUSE);
	return result;
}

/* Add the flow of the context, from its client's half. Returns 0 or a drop code. */
NN_GLOBAL int nn_nat_create(void)
{
	struct nn_context *context = nn_context_now();
	struct nn_nat *nat;
	int result;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	nat = &context->nat;
	nn_nat_other_of(&nat->key, &nat->entry, &nat->reply_key);
	__builtin_memset(&nat->reply, 0, sizeof(nat->reply));
	nat->reply.saddr = nat->key.daddr;
	nat->reply.daddr = nat->key.saddr;
	nat->reply.sport = nat->key.dport;
	nat->reply.dport = nat->key.sport;
	nat->reply.last_seen = nat->entry.last_seen;
	nat->reply.rev_nat_index = nat->entry.rev_nat_index;
	nat->reply.endpoint_id = nat->entry.endpoint_id;
	nat->reply.flags = nat->entry.flags & NN_NAT_HAS_SOURCE;
	nn_nat_displace(nat, &nat->reply_key, &nat->reply);
	nn_nat_displace(nat, &nat->key, &nat->entry);
	result = nn_fair_insert(&nn_nat, &nat->key, &nat->entry, nn_view_of(context, NN_EGRESS), nn_nat_owner_of,
				nn_nat_claim);
	if (result < 0)
		return result;
	if (nn_nat_insert(&nat->reply_key, &nat->reply, BPF_ANY) < 0) {
		bpf_map_delete_elem(&nn_nat, &nat->key);
		return NN_DROP_CT_INSERT_FAILED;
	}
	/* Another CPU may have evicted the flow between the two. */
	if (!bpf_map_lookup_elem(&nn_nat, &nat->key)) {
		bpf_map_delete_elem(&nn_nat, &nat->reply_key);
		return NN_DROP_CT_INSERT_FAILED;
	}
	return 0;
}

/* A packet after a RST clears that flag, as in nn_ct_touch. */
NN_INLINE void nn_nat_touch(struct nn_nat_entry *entry, __u8 flags, __u32 now)
{
	flags |= entry->flags & ~NN_NAT_RST;
	if (flags != entry->flags)
		entry->flags = flags;
	if (entry->last_seen != now)
		entry->last_seen = now;
}

/* A packet that answers. The client's entry carries the flow's age, so update it too: once per second, and when
 * something new is seen. */
NN_INLINE void nn_nat_touch_reply(struct nn_context *context, const struct nn_nat_key *key, struct nn_nat_entry *entry)
{
	__u8 flags = nn_ct_flags_of(&context->packet, 1);
	struct nn_nat_entry *client;

	nn_nat_expect(&context->packet, entry);
	if (!(flags & ~entry->flags) && entry->last_seen == context->now)
		return;
	nn_nat_touch(entry, flags, context->now);
	nn_nat_other_of(key, entry, &context->nat.other);
	client = bpf_map_lookup_elem(&nn_nat, &context->nat.other);
	if (client)
		nn_nat_touch(client, flags, context->now);
}

/* Write the ends that the entry names into the packet. Returns 0 or a drop code. */
NN_INLINE int nn_nat_apply(struct __sk_buff *ctx, struct nn_packet *packet, const struct nn_nat_entry *to)
{
	const struct nn_tuple *tuple = &packet->tuple;
	int result = 0;

	if (to->dport != tuple->dport || !nn_addr_equal(&to->daddr, &tuple->daddr))
		result = nn_rewrite_destination(ctx, packet, &to->daddr, to->dport);
	if (result == 0 && (to->sport != tuple->sport || !nn_addr_equal(&to->saddr, &tuple->saddr)))
		result = nn_rewrite_source(ctx, packet, &to->saddr, to->sport);
	return result;
}

#endif
