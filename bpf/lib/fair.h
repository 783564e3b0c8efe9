/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Tables that many pods share, without one of them evicting the entries of another one. Each entry has a slot in a small
 * bucket that is chosen by a hash of its key. A full bucket first loses expired entries, then one entry of the owner
 * that has most of them (owner.h). Lookups do not use this file.
 *
 * A table needs, in a header of its own (ct_create.h is an example):
 *
 * - `nn_x`, a plain hash map. Its keys have the size of struct nn_ct_key. It has more entries than slots, because an
 *   entry is inserted before it gets its slot.
 * - `nn_x_slot`, an array of struct nn_fair_bucket, and its size in nn_config.
 * - a function of type nn_fair_look_fn, which says how old an entry is.
 * - NN_FAIR_TABLE(nn_x, buckets, look, number). It defines nn_x_claim and the two functions that this calls. They are
 *   global functions, so the verifier checks each once; the map is a constant in each.
 *   NN_FAIR_TABLE_OF has one more argument: what else to delete with an entry (nat.h).
 *
 * nn_fair_insert inserts an entry. In user space, nodenet/tables declares both maps, and how a new nn_x_slot is filled. */
#ifndef NN_FAIR_H
#define NN_FAIR_H

#include "owner.h"

#define NN_FAIR_WAYS 16
#define NN_FAIR_CLAIM_TRIES 3
/* An owner with half of a bucket loses so many entries of NN_FAIR_FIRST at once: the search is paid once in as many. */
#define NN_FAIR_BATCH 4
#define NN_ENOENT 2
#define NN_EEXIST 17

struct nn_fair_bucket {
	struct bpf_spin_lock lock;
	__u32 pad;
	__u32 tag[NN_FAIR_WAYS]; /* a hash of the key, never 0; 0: the slot is free */
	__u32 owner[NN_FAIR_WAYS];
	struct nn_ct_key key[NN_FAIR_WAYS]; /* or another key of this size */
};

/* The age of an entry: how long it was not used, below NN_FAIR_FIRST; any unit. Plus NN_FAIR_FIRST if it goes before
 * all entries of its owner without this bit. Or NN_FAIR_EXPIRED. */
typedef __u64 (*nn_fair_look_fn)(const void *entry, const struct nn_ct_key *key, const struct nn_context *context);

/* Deletes an entry that loses its slot, and what belongs to it. */
typedef void (*nn_fair_delete_fn)(void *entries, const struct nn_ct_key *key);

NN_INLINE void nn_fair_delete(void *entries, const struct nn_ct_key *key)
{
	bpf_map_delete_elem(entries, key);
}

#define NN_FAIR_FIRST (1ULL << 35)
#define NN_FAIR_EXPIRED (~0ULL)

/* What nn_x_claim does. */
enum nn_fair_step {
	NN_FAIR_TAKE = 0, /* give the key in the context a slot */
	NN_FAIR_EVICT = 1, /* only make room in its bucket, and so in the table */
	NN_FAIR_REFUSE = 2, /* count an entry that found no room */
};

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
NN_INLINE __u64 nn_fair_bounded(__u64 slot)
{
	asm volatile("%0 &= 15" : "+r"(slot));
	return slot;
}

NN_INLINE int nn_same_key(const struct nn_ct_key *one, const struct nn_ct_key *other)
{
	const __u32 *a = (const __u32 *)one, *b = (const __u32 *)other;
	__u32 different = 0;

#pragma unroll
	for (unsigned int i = 0; i < sizeof(*one) / sizeof(*a); i++)
		different |= a[i] ^ b[i];
	return !different;
}

/* Put the key of the context into its own slot, or else into the first free one: user space deletes expired entries, and
 * leaves their slots. A key with two slots would lose its entry when the older one is freed. An equal tag is not enough: keys with equal hashes are easy to find, and an entry that lost its
 * slot is never evicted. Returns 1 if there was a slot. */
NN_INLINE int nn_fair_take(struct nn_fair_bucket *bucket, const struct nn_context *context, __u32 tag)
{
	__u64 slot;

	bpf_spin_lock(&bucket->lock);
#pragma clang loop unroll(disable)
	for (slot = 0; slot < NN_FAIR_WAYS; slot++)
		if (bucket->tag[slot] == tag && nn_same_key(&bucket->key[slot], &context->key))
			break;
	if (slot == NN_FAIR_WAYS) {
#pragma clang loop unroll(disable)
		for (slot = 0; slot < NN_FAIR_WAYS; slot++)
			if (bucket->tag[slot] == 0)
				break;
	}
	if (slot < NN_FAIR_WAYS) {
		bucket->owner[slot] = context->owner;
		bucket->key[slot] = context->key;
		/* Last: nn_fair_weigh reads without the lock. */
		*(volatile __u32 *)&bucket->tag[slot] = tag;
	}
	bpf_spin_unlock(&bucket->lock);
	return slot < NN_FAIR_WAYS;
}

/* Free a slot and delete its entry, unless another CPU has changed the slot. Returns 1 if it was freed. */
NN_INLINE int nn_fair_release(void *entries, nn_fair_delete_fn remove, struct nn_fair_bucket *bucket, __u64 slot, __u32 tag)
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
	if (found != tag)
		return 0;
	remove(entries, &key);
	return 1;
}

/* The entry with the greatest weight is evicted: one of the largest owner, or of the new entry's own one if no other has
 * twice as many. So what an owner holds is safer than what another one wants. From outside, the same applies to the
 * callers of one endpoint. */
NN_INLINE __u64 nn_fair_weight(const struct nn_fair_bucket *bucket, __u32 owner, __u32 own)
{
	__u32 group = 0, same = 0, is_own;

#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_FAIR_WAYS; i++) {
		group += nn_same_group(owner, bucket->owner[i]) * 2;
		same += nn_is_zero(owner ^ bucket->owner[i]) * 2;
	}
	is_own = nn_same_group(own, owner);
	group = (group << is_own) - is_own;
	is_own = nn_is_zero(own ^ owner);
	same = (same << is_own) - is_own;
	return (__u64)group << 8 | same;
}

/* Look at one slot of a full bucket. Frees it and returns 1 if its entry has expired, or was deleted by user space. */
NN_INLINE int nn_fair_weigh(void *entries, void *slots, nn_fair_look_fn look, nn_fair_delete_fn remove,
			    enum nn_table number, __u32 slot)
{
	struct nn_context *context = nn_context_now();
	struct nn_fair_bucket *bucket;
	__u64 age, score, place;
	__u32 index, tag, owner;
	void *entry;

	if (!context)
		return 0;
	index = context->bucket;
	bucket = bpf_map_lookup_elem(slots, &index);
	if (!bucket || slot >= NN_FAIR_WAYS)
		return 0;
	place = nn_fair_bounded(slot);
	tag = bucket->tag[place];
	/* Nor is an entry evicted for itself: it may have its slot, and need room for what belongs to it (nat.h). */
	if (!tag || nn_same_key(&bucket->key[place], &context->key))
		return 0;
	entry = bpf_map_lookup_elem(entries, &bucket->key[place]);
	age = entry ? look(entry, &bucket->key[place], context) : NN_FAIR_EXPIRED;
	if (age == NN_FAIR_EXPIRED) {
		if (nn_fair_release(entries, remove, bucket, place, tag) && entry)
			nn_count_entries(number, NN_ENTRY_EXPIRED, 1);
		return 1;
	}
	owner = bucket->owner[place];
	score = nn_fair_weight(bucket, owner, context->owner) << 40 | age << 4 | slot;
	if (age & NN_FAIR_FIRST)
		context->unanswered |= 1 << slot;
	if (score > context->victim)
		context->victim = score;
	return 0;
}

/* Free the slot of the victim, and those of more entries of NN_FAIR_FIRST if its owner has half of the bucket. */
NN_INLINE void nn_fair_evict(void *entries, nn_fair_delete_fn remove, struct nn_fair_bucket *bucket,
			     struct nn_context *context, enum nn_table number)
{
	__u64 slot = nn_fair_bounded(context->victim);
	__u32 owner = bucket->owner[slot], more = 0, freed;

#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_FAIR_WAYS; i++)
		more += nn_is_zero(owner ^ bucket->owner[i]);
	more = more >= NN_FAIR_WAYS / 2 ? NN_FAIR_BATCH - 1 : 0;
	freed = nn_fair_release(entries, remove, bucket, slot, bucket->tag[slot]);
#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_FAIR_BATCH - 1; i++) {
		/* Any of them: they are about as old. */
		slot = nn_fair_bounded(slot + 1);
		if (more && (context->unanswered >> slot & 1) && bucket->owner[slot] == owner)
			freed += nn_fair_release(entries, remove, bucket, slot, bucket->tag[slot]);
	}
	nn_count_entries(number, NN_ENTRY_EVICTED, freed);
}

/* Free the expired slots of a bucket, or evict if none is expired. */
NN_INLINE int nn_fair_make_room(void *entries, void *slots, int (*weigh)(__u32 slot), nn_fair_delete_fn remove,
				enum nn_table number)
{
	struct nn_context *context = nn_context_now();
	struct nn_fair_bucket *bucket;
	__u32 index;
	int expired = 0;

	if (!context)
		return 0;
	context->victim = 0;
	context->unanswered = 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_FAIR_WAYS; i++)
		expired |= weigh(i);
	index = context->bucket;
	bucket = bpf_map_lookup_elem(slots, &index);
	if (bucket && !expired && context->victim)
		nn_fair_evict(entries, remove, bucket, context, number);
	return 0;
}

/* Returns 0 or a drop code. */
NN_INLINE int nn_fair_claim(void *slots, __u32 buckets, int (*make_room)(void), enum nn_table number, int step)
{
	struct nn_context *context = nn_context_now();
	struct nn_fair_bucket *bucket;
	__u32 index, tag;
	__u64 hash;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	if (step == NN_FAIR_REFUSE) {
		nn_count_entries(number, NN_ENTRY_REFUSED, 1);
		return NN_DROP_CT_INSERT_FAILED;
	}
	hash = nn_flow_number(&context->key);
	context->bucket = index = (hash >> 32) * buckets >> 32;
	tag = (__u32)hash | 1;
	bucket = bpf_map_lookup_elem(slots, &index);
	if (!bucket)
		return NN_DROP_CT_INSERT_FAILED;
	if (step == NN_FAIR_EVICT)
		return make_room();
#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_FAIR_CLAIM_TRIES; i++) {
		if (nn_fair_take(bucket, context, tag))
			return 0;
		make_room();
	}
	return NN_DROP_CT_INSERT_FAILED;
}

#define NN_FAIR_TABLE_OF(table, buckets, look, remove, number)                                     \
	NN_GLOBAL int table##_weigh(__u32 slot)                                                    \
	{                                                                                          \
		return nn_fair_weigh(&table, &table##_slot, look, remove, number, slot);           \
	}                                                                                          \
	NN_GLOBAL int table##_make_room(void)                                                      \
	{                                                                                          \
		return nn_fair_make_room(&table, &table##_slot, table##_weigh, remove, number);    \
	}                                                                                          \
	NN_GLOBAL int table##_claim(int step)                                                      \
	{                                                                                          \
		return nn_fair_claim(&table##_slot, buckets, table##_make_room, number, step);     \
	}

/* A table whose entries stand alone. */
#define NN_FAIR_TABLE(table, buckets, look, number) NN_FAIR_TABLE_OF(table, buckets, look, nn_fair_delete, number)

/* Insert an entry, or replace the one with its key. A new entry belongs to `owner`, which is called for it only. The
 * entry comes before the slot: only one of two CPUs with the same key inserts it, and it claims the slot. Returns 0 or a
 * drop code. */
NN_INLINE int nn_fair_insert(void *entries, const void *key, const void *entry, const struct nn_view *view,
			     __u32 (*owner)(const struct nn_view *view, const void *key), int (*claim)(int step))
{
	long result = bpf_map_update_elem(entries, key, entry, BPF_NOEXIST);
	struct nn_context *context;

	if (result == -NN_EEXIST) {
		result = bpf_map_update_elem(entries, key, entry, BPF_EXIST);
		if (result != -NN_ENOENT)
			return result < 0 ? NN_DROP_CT_INSERT_FAILED : 0;
		/* Another CPU deleted it between the two, and freed its slot. */
		result = bpf_map_update_elem(entries, key, entry, BPF_NOEXIST);
	}
	context = nn_context_now();
	if (!context)
		return NN_DROP_INVALID_PACKET;
	_Static_assert(sizeof(context->key) == 40, "every table has keys of this size");
	context->owner = owner(view, key);
	__builtin_memcpy(&context->key, key, sizeof(context->key));
	/* The table has more entries than there are slots, so only entries without a slot can fill it: those of a map
	 * that was replaced (nodenet/bpf/carry.py). Slots whose entries user space deleted are freed first, which makes
	 * no room for an entry: then try again. */
#pragma clang loop unroll(disable)
	for (int i = 0; i < NN_FAIR_CLAIM_TRIES && result < 0; i++) {
		claim(NN_FAIR_EVICT);
		result = bpf_map_update_elem(entries, key, entry, BPF_NOEXIST);
	}
	if (result < 0)
		return claim(NN_FAIR_REFUSE);
	if (claim(NN_FAIR_TAKE) == 0)
		return 0;
	bpf_map_delete_elem(entries, key);
	return claim(NN_FAIR_REFUSE);
}

#endif
