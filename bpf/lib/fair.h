/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* New entries of nn_ct, and which entry is evicted for them. Each entry has a slot in a small bucket that is chosen by a
 * hash of its key. A full bucket first loses expired entries, then one entry of the owner that has most of them. The
 * owner is who opened the flow. So a pod that opens flows without end evicts its own ones: its own entries, and those of
 * the pods that it calls. Packets of known flows do not use this file. */
#ifndef NN_FAIR_H
#define NN_FAIR_H

#include "conntrack.h"

#define NN_CT_WAYS 16
#define NN_CT_CLAIM_TRIES 3
/* An owner with half of a bucket loses so many unanswered flows at once: the search is paid once in as many. */
#define NN_CT_BATCH 4
#define NN_EEXIST 17

struct nn_ct_bucket {
	struct bpf_spin_lock lock;
	__u32 pad;
	__u32 tag[NN_CT_WAYS]; /* a hash of the key, never 0; 0: the slot is free */
	__u32 owner[NN_CT_WAYS]; /* nn_ct_owner_of */
	struct nn_ct_key key[NN_CT_WAYS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 6553);
	__type(key, __u32);
	__type(value, struct nn_ct_bucket);
} nn_ct_slot SEC(".maps");

#define NN_OWNER_OUTSIDE 0x80000000 /* group: the called endpoint; the lower half names the caller */
#define NN_OWNER_GROUP 0xffff0000 /* of such an owner */
#define NN_OWNER_ENDPOINT 0x40000000 /* a pod of this node, by its endpoint_id */
#define NN_OWNER_ADDRESS 0x3fffffff /* a hash of the address of another pod */

/* Who pays for the new flow: the pod that opened it. A caller that is no pod may have any number of addresses, so the
 * called endpoint pays for its flows; the lower half of the owner keeps one caller from evicting the flows of another
 * one. */
NN_INLINE __u32 nn_ct_owner_of(const struct nn_context *context, const struct nn_ct_key *key)
{
	__u32 peer = context->direction == NN_EGRESS ? context->dst_identity : context->src_identity;
	int by_pod = (context->direction == NN_EGRESS) != (context->is_reply != 0);

	/* A pod that calls itself through a Service (hairpin.h) is translated where it is called. */
	if (by_pod || (context->translated && context->direction == NN_INGRESS))
		return NN_OWNER_ENDPOINT | context->endpoint_id;
	if (context->is_local)
		return NN_OWNER_ENDPOINT | context->sender_id;
	if (!nn_is_reserved(peer))
		return nn_addr_number(&key->remote) & NN_OWNER_ADDRESS;
	return NN_OWNER_OUTSIDE | (__u32)context->endpoint_id << 16 | (nn_addr_number(&key->remote) & 0xffff);
}

/* 1 or 0, without a branch: old verifiers follow each one. */
NN_INLINE __u32 nn_is_zero(__u32 number)
{
	return ((__u64)number - 1) >> 63;
}

NN_INLINE __u32 nn_same_group(__u32 one, __u32 other)
{
	__u32 outside = (__u32)((__s32)one >> 31); /* all bits, or none */

	return nn_is_zero((one ^ other) & (NN_OWNER_GROUP | ~outside));
}

/* The verifier of 5.10 does not see the bound of a 32-bit number that was compared, and the compiler removes a mask. */
NN_INLINE __u64 nn_ct_bounded(__u64 slot)
{
	asm volatile("%0 &= 15" : "+r"(slot));
	return slot;
}

/* Put the flow of the context into the first free slot, or into its own one: user space deletes expired entries of
 * nn_ct, and leaves their slots. Returns 1 if there was one. */
NN_INLINE int nn_ct_take(struct nn_ct_bucket *bucket, const struct nn_context *context, __u32 tag)
{
	__u64 slot;

	bpf_spin_lock(&bucket->lock);
#pragma clang loop unroll(disable)
	for (slot = 0; slot < NN_CT_WAYS; slot++)
		if (bucket->tag[slot] == 0 || bucket->tag[slot] == tag)
			break;
	if (slot < NN_CT_WAYS) {
		bucket->owner[slot] = context->owner;
		bucket->key[slot] = context->flow;
		/* Last: nn_ct_weigh reads without the lock. */
		*(volatile __u32 *)&bucket->tag[slot] = tag;
	}
	bpf_spin_unlock(&bucket->lock);
	return slot < NN_CT_WAYS;
}

/* Free a slot and delete its flow, unless another CPU has changed the slot. */
NN_INLINE void nn_ct_release(struct nn_ct_bucket *bucket, __u64 slot, __u32 tag)
{
	struct nn_ct_key key;
	__u32 found;

	bpf_spin_lock(&bucket->lock);
	found = bucket->tag[slot];
	key = bucket->key[slot];
	if (found == tag) {
		bucket->tag[slot] = 0;
		bucket->owner[slot] = 0;
	}
	bpf_spin_unlock(&bucket->lock);
	if (found == tag)
		bpf_map_delete_elem(&nn_ct, &key);
}

/* The entry with the greatest weight is evicted: one of the largest owner, or of the new flow's own one if no other has
 * twice as many. So what an owner holds is safer than what another one wants. From outside, the same applies to the
 * callers of one endpoint. */
NN_INLINE __u64 nn_ct_weight(const struct nn_ct_bucket *bucket, __u32 owner, __u32 own)
{
	__u32 group = 0, same = 0, is_own;

#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_CT_WAYS; i++) {
		group += nn_same_group(owner, bucket->owner[i]) * 2;
		same += nn_is_zero(owner ^ bucket->owner[i]) * 2;
	}
	is_own = nn_same_group(own, owner);
	group = (group << is_own) - is_own;
	is_own = nn_is_zero(own ^ owner);
	same = (same << is_own) - is_own;
	return (__u64)group << 8 | same;
}

/* Look at one slot of a full bucket. Frees it and returns 1 if its flow has expired, or was deleted by user space. */
NN_GLOBAL int nn_ct_weigh(__u32 slot)
{
	struct nn_context *context = nn_context_now();
	struct nn_ct_bucket *bucket;
	struct nn_ct_entry *entry;
	__u32 index, tag, owner;
	__s32 idle;
	__u64 score, place;

	if (!context)
		return 0;
	index = context->bucket;
	bucket = bpf_map_lookup_elem(&nn_ct_slot, &index);
	if (!bucket || slot >= NN_CT_WAYS)
		return 0;
	place = nn_ct_bounded(slot);
	tag = bucket->tag[place];
	if (!tag)
		return 0;
	entry = bpf_map_lookup_elem(&nn_ct, &bucket->key[place]);
	idle = entry ? context->now - entry->last_seen : 0;
	if (!entry || idle > (__s32)nn_ct_lifetime(entry, bucket->key[place].protocol)) {
		nn_ct_release(bucket, place, tag);
		return 1;
	}
	owner = bucket->owner[place];
	score = nn_ct_weight(bucket, owner, context->owner) << 40;
	if (!(entry->flags & NN_CT_SEEN_REPLY)) {
		score |= 1ULL << 39;
		context->unanswered |= 1 << slot;
	}
	if (idle > 0)
		score |= (__u64)idle << 4;
	score |= slot;
	if (score > context->victim)
		context->victim = score;
	return 0;
}

/* Free the slot of the victim, and those of more unanswered flows if its owner has half of the bucket. */
NN_INLINE void nn_ct_evict(struct nn_ct_bucket *bucket, struct nn_context *context)
{
	__u64 slot = nn_ct_bounded(context->victim);
	__u32 owner = bucket->owner[slot], more = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_CT_WAYS; i++)
		more += nn_is_zero(owner ^ bucket->owner[i]);
	more = more >= NN_CT_WAYS / 2 ? NN_CT_BATCH - 1 : 0;
	nn_ct_release(bucket, slot, bucket->tag[slot]);
#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_CT_BATCH - 1; i++) {
		/* Any of them: they are about as old. */
		slot = nn_ct_bounded(slot + 1);
		if (more && (context->unanswered >> slot & 1) && bucket->owner[slot] == owner)
			nn_ct_release(bucket, slot, bucket->tag[slot]);
	}
}

/* Free the expired slots of a bucket, or evict if none is expired. */
NN_GLOBAL int nn_ct_make_room(void)
{
	struct nn_context *context = nn_context_now();
	struct nn_ct_bucket *bucket;
	__u32 index;
	int expired = 0;

	if (!context)
		return 0;
	context->victim = 0;
	context->unanswered = 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_CT_WAYS; i++)
		expired |= nn_ct_weigh(i);
	index = context->bucket;
	bucket = bpf_map_lookup_elem(&nn_ct_slot, &index);
	if (bucket && !expired && context->victim)
		nn_ct_evict(bucket, context);
	return 0;
}

/* Give the flow in the context a slot. `evict`: only make room, in nn_ct too. Returns 0 or a drop code. */
NN_GLOBAL int nn_ct_claim(int evict)
{
	struct nn_context *context = nn_context_now();
	struct nn_ct_bucket *bucket;
	__u64 number;
	__u32 index, tag;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	number = nn_flow_number(&context->flow);
	context->bucket = index = (number >> 32) * nn_config.ct_buckets >> 32;
	tag = (__u32)number | 1;
	bucket = bpf_map_lookup_elem(&nn_ct_slot, &index);
	if (!bucket)
		return NN_DROP_CT_INSERT_FAILED;
	if (evict)
		return nn_ct_make_room();
#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_CT_CLAIM_TRIES; i++) {
		if (nn_ct_take(bucket, context, tag))
			return 0;
		nn_ct_make_room();
	}
	return NN_DROP_CT_INSERT_FAILED;
}

/* Insert the entry first: only one of two CPUs with the same flow succeeds, and it claims the slot. */
NN_INLINE int nn_ct_insert(const struct nn_ct_key *key, const struct nn_ct_entry *entry, struct nn_context *context)
{
	long result = bpf_map_update_elem(&nn_ct, key, entry, BPF_NOEXIST);

	if (result == -NN_EEXIST)
		return bpf_map_update_elem(&nn_ct, key, entry, BPF_ANY) < 0 ? NN_DROP_CT_INSERT_FAILED : 0;
	context->owner = nn_ct_owner_of(context, key);
	context->flow = *key;
	if (result < 0) {
		/* nn_ct has more entries than there are slots, so only entries without a slot can fill it: those of a
		 * map that was replaced (nodenet/bpf/carry.py). */
		nn_ct_claim(1);
		if (bpf_map_update_elem(&nn_ct, key, entry, BPF_NOEXIST) < 0)
			return NN_DROP_CT_INSERT_FAILED;
	}
	if (nn_ct_claim(0) == 0)
		return 0;
	bpf_map_delete_elem(&nn_ct, key);
	return NN_DROP_CT_INSERT_FAILED;
}

NN_INLINE int nn_ct_create(const struct nn_ct_key *key, struct nn_context *context, __u32 revision, __u32 now)
{
	/* A connection that is picked up midway may start with a reply: then the other side opened it. */
	struct nn_ct_entry entry = { .last_seen = now,
				     .revision = revision,
				     .rule_id = context->rule_id,
				     .rev_nat_index = context->rev_nat_index,
				     .direction = context->is_reply ? NN_INGRESS + NN_EGRESS - context->direction :
								   context->direction,
				     .flags = context->ct_flags |
					      (context->translated ? NN_CT_TRANSLATED : 0) |
					      (context->translated && context->source_port ? NN_CT_PORT : 0) |
					      (context->outside ? NN_CT_OUTSIDE : 0),
				     .endpoint_id = context->endpoint_id,
				     .created = now };

	return nn_ct_insert(key, &entry, context);
}

#endif
