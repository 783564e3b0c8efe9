/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Source translation of flows from outside to a backend that is not on this node. Its replies must come back through this
 * node, so the backend sees one of the node's addresses, and a port that no other flow to this backend has.
 *
 * The flow is translated in two steps, and the node's stack routes the packet between them. Where a packet enters the
 * node, only its destination changes; where it leaves the node, only its source. So the stack never receives a packet
 * with one of its own addresses as the source, which it would discard, and sees the client and the backend as the ends:
 *
 *   client -> node:port        enters: NN_NAT_CLIENT          client -> backend
 *   client -> backend          leaves: NN_NAT_SOURCE_CLIENT   source address:source port -> backend
 *   backend -> source address  enters: NN_NAT_SOURCE_REPLY    backend -> client
 *   backend -> client          leaves: NN_NAT_REPLY           node:port -> client */
#ifndef NN_SOURCE_H
#define NN_SOURCE_H

#include "nat.h"

#define NN_SOURCE_STEP 7919
#define NN_SOURCE_TRIES 8

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct nn_source_addr_entry);
} nn_source_addr SEC(".maps");

/* True if the port may be one of those that replace clients' ports. */
NN_INLINE int nn_is_source_port(__be16 port)
{
	return (__u16)(bpf_ntohs(port) - nn_config.source_port) < nn_config.source_ports;
}

/* The port of the context's reply_key is in use. Delete its flow if that has expired, or if `evict` is set. Returns 1 if
 * the port is free now. */
NN_GLOBAL int nn_source_release(__u32 evict)
{
	struct nn_context *context = nn_context_now();
	struct nn_nat_entry *entry;
	struct nn_nat *nat;

	if (!context)
		return 0;
	nat = &context->nat;
	entry = bpf_map_lookup_elem(&nn_nat, &nat->reply_key);
	if (!entry)
		return 1;
	/* It is left of the context's own flow. */
	if (entry->dport == nat->source_key.sport && nn_addr_equal(&entry->daddr, &nat->source_key.saddr)) {
		bpf_map_delete_elem(&nn_nat, &nat->reply_key);
		return 1;
	}
	nn_nat_other_of(&nat->reply_key, entry, &nat->gone);
	entry = bpf_map_lookup_elem(&nn_nat, &nat->gone);
	if (!evict && entry && !nn_nat_has_expired(entry, nat->gone.protocol, context->now))
		return 0;
	/* The flow's entry of replies has the ends of this one, in the other direction. */
	nn_nat_source_of(&nat->gone, &nat->other);
	nat->gone = nat->other;
	nat->gone.reply = NN_NAT_REPLY;
	nn_nat_delete();
	bpf_map_delete_elem(&nn_nat, &nat->reply_key);
	return 1;
}

/* Point the context's reply_key to the flow that has a candidate. */
NN_INLINE void nn_source_at(struct nn_nat *nat, __u32 number)
{
	nat->source.sport = bpf_htons(nn_config.source_port + number % nn_config.source_ports);
	nn_nat_other_of(&nat->source_key, &nat->source, &nat->reply_key);
}

/* Try one port for the context's flow. Returns 1 if the flow has it now, 0 if another flow has it, or a drop code. */
NN_GLOBAL int nn_source_take(__u32 number)
{
	struct nn_context *context = nn_context_now();
	struct nn_nat *nat;
	long result;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	nat = &context->nat;
	nn_source_at(nat, number);
	/* BPF_NOEXIST: another CPU may try the same port. */
	result = nn_nat_insert(&nat->reply_key, &nat->reply, BPF_NOEXIST);
	if (result == -NN_EEXIST && nn_source_release(0))
		result = nn_nat_insert(&nat->reply_key, &nat->reply, BPF_NOEXIST);
	if (result == -NN_EEXIST)
		return 0;
	if (result < 0)
		return NN_DROP_CT_INSERT_FAILED;
	if (nn_nat_insert(&nat->source_key, &nat->source, BPF_ANY) < 0) {
		bpf_map_delete_elem(&nn_nat, &nat->reply_key);
		return NN_DROP_CT_INSERT_FAILED;
	}
	return 1;
}

/* Who has a port: a number of the client's address, or 0 if its flow is not open yet, or closed. A closed one waits only
 * for the last packets: with many short connections it must not keep the port until it expires. */
NN_GLOBAL __u32 nn_source_holder(__u32 number)
{
	struct nn_context *context = nn_context_now();
	struct nn_nat_entry *entry;
	struct nn_nat *nat;
	__u32 who;

	if (!context)
		return 0;
	nat = &context->nat;
	nn_source_at(nat, number);
	entry = bpf_map_lookup_elem(&nn_nat, &nat->reply_key);
	if (!entry)
		return 0;
	who = nn_nat_client_number(&entry->daddr);
	nn_nat_other_of(&nat->reply_key, entry, &nat->gone);
	entry = bpf_map_lookup_elem(&nn_nat, &nat->gone);
	return entry && nn_nat_is_open(entry->flags) && !nn_nat_is_closed(entry->flags) ? who : 0;
}

/* All candidates of the context's flow are in use. One that is not open yet, or closed, is evicted; else one of the client that has
 * more than half of them, unless that is this one. So neither half-open flows nor the connections of one client keep the
 * others from a backend. Returns the number of the port that is free now, or 0. */
NN_GLOBAL __u32 nn_source_evict(__u32 number)
{
	struct nn_context *context = nn_context_now();
	__u32 who, leader = 0, at = 0;
	int votes = 0, count = 0;

	if (!context)
		return 0;
	/* If one client has more than half, it is the leader in the end (Boyer and Moore). */
#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_SOURCE_TRIES; i++) {
		who = nn_source_holder(number + i * NN_SOURCE_STEP);
		if (votes == 0 || who == leader || who == 0)
			at = number + i * NN_SOURCE_STEP;
		if (who == 0)
			break;
		if (votes == 0)
			leader = who;
		votes += who == leader ? 1 : -1;
	}
	if (who != 0) {
#pragma clang loop unroll(disable)
		for (int i = 0; i < NN_SOURCE_TRIES; i++)
			count += nn_source_holder(number + i * NN_SOURCE_STEP) == leader;
		if (count <= NN_SOURCE_TRIES / 2 || leader == nn_nat_client_number(&context->nat.key.saddr))
			return 0;
	}
	nn_source_at(&context->nat, at);
	nn_source_release(1);
	nn_count_entries(NN_TABLE_NAT, NN_ENTRY_EVICTED, 1);
	return at ?: nn_config.source_ports;
}

/* Use the source translation that the context's flow had before, if it is complete and has the node's address; what is
 * left of another one is deleted. Returns 1 if it is used. */
NN_INLINE int nn_source_reuse(struct nn_context *context, const struct nn_addr *own)
{
	struct nn_nat *nat = &context->nat;
	struct nn_nat_entry *held = bpf_map_lookup_elem(&nn_nat, &nat->source_key), *reply;
	int is_own;

	if (!held)
		return 0;
	nn_nat_other_of(&nat->source_key, held, &nat->other);
	reply = bpf_map_lookup_elem(&nn_nat, &nat->other);
	is_own = reply && reply->dport == nat->source_key.sport &&
		 nn_addr_equal(&reply->daddr, &nat->source_key.saddr);
	if (is_own && nn_addr_equal(&held->saddr, own)) {
		held->flags = nat->source.flags;
		held->last_seen = context->now;
		/* What proves the client is not known yet (nn_nat_expect). */
		reply->flags = 0;
		reply->backend_id = 0;
		reply->slot = 0;
		return 1;
	}
	bpf_map_delete_elem(&nn_nat, &nat->source_key);
	if (is_own)
		bpf_map_delete_elem(&nn_nat, &nat->other);
	return 0;
}

/* A packet leaves the node, and no source translation was found for it: the context's key. If its flow must have one, it
 * must not leave with the client's address. The flow is deleted, so that the client's next packet opens it again. Returns 0
 * or a drop code. */
NN_GLOBAL int nn_source_lost(void)
{
	struct nn_context *context = nn_context_now();
	const struct nn_nat_entry *reply;
	struct nn_nat *nat;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	nat = &context->nat;
	nat->gone.saddr = nat->key.daddr;
	nat->gone.daddr = nat->key.saddr;
	nat->gone.sport = nat->key.dport;
	nat->gone.dport = nat->key.sport;
	nat->gone.protocol = nat->key.protocol;
	nat->gone.reply = NN_NAT_REPLY;
	nat->gone.pad[0] = nat->gone.pad[1] = 0;
	reply = bpf_map_lookup_elem(&nn_nat, &nat->gone);
	if (!reply || reply->endpoint_id || !(reply->flags & NN_NAT_HAS_SOURCE))
		return 0;
	nn_nat_delete();
	return NN_DROP_NAT_NO_MAPPING;
}

/* Add the source translation of the context's flow, whose client's half was just added (nn_nat_create). The candidates
 * follow from `number`, the flow's hash, so that a flow whose entries were lost gets the same port again. Returns 0 or a
 * drop code. */
NN_GLOBAL int nn_source_create(__u32 number)
{
	struct nn_context *context = nn_context_now();
	struct nn_source_addr_entry *own;
	__u32 version;
	struct nn_nat *nat;
	int result = 0;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	nat = &context->nat;
	version = context->packet.ip_version;
	own = bpf_map_lookup_elem(&nn_source_addr, &version);
	if (!own)
		return NN_DROP_NAT_NO_MAPPING;
	nn_nat_source_of(&nat->reply_key, &nat->source_key);
	nat->source = nat->entry;
	nat->source.saddr = own->addr;
	nat->source.flags &= ~NN_NAT_HAS_SOURCE;
	if (nn_source_reuse(context, &own->addr))
		return 0;
	nat->reply.saddr = nat->entry.daddr;
	nat->reply.sport = nat->entry.dport;
	nat->reply.daddr = nat->entry.saddr;
	nat->reply.dport = nat->entry.sport;
	nat->reply.flags = 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_SOURCE_TRIES && result == 0; i++)
		result = nn_source_take(number + i * NN_SOURCE_STEP);
	if (result == 0) {
		number = nn_source_evict(number);
		result = number ? nn_source_take(number) : 0;
	}
	if (result <= 0)
		return result ?: NN_DROP_NAT_NO_MAPPING;
	/* Another CPU may have evicted the flow meanwhile. */
	if (!bpf_map_lookup_elem(&nn_nat, &nat->key)) {
		bpf_map_delete_elem(&nn_nat, &nat->reply_key);
		bpf_map_delete_elem(&nn_nat, &nat->source_key);
		return NN_DROP_CT_INSERT_FAILED;
	}
	return 0;
}

#endif
