/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Service address -> backend, and back. */
#ifndef NN_LB_H
#define NN_LB_H

#include "common.h"

/* Every address with a frontend. User space adds it before the frontends, and deletes it after them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct nn_service_addr_key);
	__type(value, struct nn_service_addr_entry);
} nn_service_addr SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct nn_frontend_key);
	__type(value, struct nn_frontend_entry);
} nn_frontend SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct nn_backend_entry);
} nn_backend SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct nn_revnat_entry);
} nn_revnat SEC(".maps");

/* The backends of a UDP Service: those in its slots, and terminating ones that get no new flows. User space adds a
 * member before it puts the backend in a slot, and removes it after the backend left its slot, so that a lookup never
 * misses a backend in use. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct nn_member_key);
	__type(value, struct nn_backend_entry);
} nn_member SEC(".maps");

/* Returns 0 if no frontend has this address. */
NN_INLINE const struct nn_service_addr_entry *nn_service_addr_of(const struct nn_addr *addr)
{
	return bpf_map_lookup_elem(&nn_service_addr, addr);
}

/* The verdict on a packet to an address that is not served: 0: it goes on as any other packet, or a drop code. */
NN_INLINE int nn_unserved(const struct nn_addr *addr)
{
	const struct nn_service_addr_entry *entry = nn_service_addr_of(addr);

	return entry && (entry->flags & NN_ADDR_REFUSE_UNSERVED) ? NN_DROP_IS_A_CLUSTERIP : 0;
}

/* In place of a nn_frontend_scope: INTERNAL, and frontends with NN_FRONTEND_NODE_ONLY count. Never in a key. */
#define NN_SCOPE_NODE 2

struct nn_lb_choice {
	struct nn_backend_entry backend;
	__u32 backend_id;
	__u32 rev_nat_index;
	__u16 slot;
	__u16 flags; /* of the frontend; 0 if there is none */
	__u32 scope; /* nn_frontend_scope of the entry that was used */
	__u32 affinity_id;
	__u32 affinity_seconds; /* 0: the Service has no session affinity (affinity.h) */
};

/* True if `result` of nn_lb_choose is a refusal, of which the sender learns. Not if only other nodes have backends and the
 * traffic policy is Local: a load balancer must not take that for a dead Service. Not if a slot or its backend is missing
 * for a moment, while user space changes them: the sender tries again. */
NN_INLINE int nn_lb_refuses(int result, const struct nn_lb_choice *choice)
{
	return result == NN_DROP_IS_A_CLUSTERIP ||
	       (result == NN_DROP_BACKEND_NOT_FOUND && choice->slot == 0 &&
		!(choice->flags & NN_FRONTEND_ONLY_ELSEWHERE));
}

/* Returns the backend if it belongs to this UDP Service, else 0. It may belong to other Services too. */
NN_INLINE struct nn_backend_entry *nn_lb_member(__u32 rev_nat_index, __u32 backend_id)
{
	struct nn_member_key key = { .rev_nat_index = rev_nat_index, .backend_id = backend_id };

	return bpf_map_lookup_elem(&nn_member, &key);
}

NN_INLINE int nn_lb_backend(__u32 id, struct nn_lb_choice *choice)
{
	struct nn_backend_entry *found = bpf_map_lookup_elem(&nn_backend, &id);

	if (!found)
		return NN_DROP_BACKEND_NOT_FOUND;
	choice->backend = *found;
	choice->backend_id = id;
	return 1;
}

/* The master entry for traffic of this scope. Its scope is then in the key. */
NN_INLINE struct nn_frontend_entry *nn_lb_master(struct nn_frontend_key *key, __u8 scope)
{
	struct nn_frontend_entry *internal = bpf_map_lookup_elem(&nn_frontend, key);
	struct nn_frontend_entry *external;

	if (scope != NN_SCOPE_EXTERNAL || !internal || !(internal->flags & NN_FRONTEND_HAS_EXTERNAL))
		return internal;
	key->scope = NN_SCOPE_EXTERNAL;
	external = bpf_map_lookup_elem(&nn_frontend, key);
	if (external)
		return external;
	/* It was deleted between the two lookups, after the flag: INTERNAL serves all traffic from now on. */
	key->scope = NN_SCOPE_INTERNAL;
	return internal;
}

/* Choose a backend: `number` selects it; 0 selects one at random. Returns 1: a backend was chosen. 0: no Service
 * serves this. Negative: the Service has no backend, or does not have this port and refuses it. `scope`: where the
 * packet comes from. */
NN_INLINE int nn_lb_choose(const struct nn_addr *addr, __be16 port, __u8 protocol, __u8 scope, __u32 number,
			   struct nn_lb_choice *choice)
{
	struct nn_frontend_key key = { .addr = *addr, .port = port, .protocol = protocol };
	struct nn_frontend_entry *master = nn_lb_master(&key, scope);
	struct nn_frontend_entry *slot;

	choice->rev_nat_index = 0;
	choice->flags = 0;
	choice->slot = 0;
	if (!master || (master->flags & NN_FRONTEND_NODE_ONLY && scope != NN_SCOPE_NODE))
		/* An unserved port of a ClusterIP is refused, as kube-proxy's nftables mode does. */
		return nn_unserved(addr);
	choice->rev_nat_index = master->rev_nat_index;
	choice->flags = master->flags;
	choice->scope = key.scope;
	choice->affinity_id = master->affinity_id;
	choice->affinity_seconds = master->affinity_seconds;
	if (master->count == 0)
		return NN_DROP_BACKEND_NOT_FOUND;
	key.backend_slot = (number ? number : bpf_get_prandom_u32()) % master->count + 1;
	slot = bpf_map_lookup_elem(&nn_frontend, &key);
	if (!slot) {
		/* The frontend shrank between the two lookups. Slot 1 is removed last, so try it. */
		key.backend_slot = 1;
		slot = bpf_map_lookup_elem(&nn_frontend, &key);
	}
	choice->slot = key.backend_slot;
	return slot ? nn_lb_backend(slot->backend_id, choice) : NN_DROP_BACKEND_NOT_FOUND;
}

#endif
