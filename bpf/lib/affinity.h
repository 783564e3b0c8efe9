/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* sessionAffinity ClientIP: the new flows of one client to one Service port go to one backend, until the client has
 * opened none for the Service's timeout. The client is a pod's address, at the socket too. So a pod has at most one
 * entry for each address and Service port, and no pod can evict the entries of another one by more calls. Clients outside
 * may be any number, so their entries are in a table of their own. */
#ifndef NN_AFFINITY_H
#define NN_AFFINITY_H

#include "context.h"
#include "lb.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct nn_affinity_key);
	__type(value, struct nn_affinity_entry);
} nn_affinity SEC(".maps");

/* The same for clients outside. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct nn_affinity_key);
	__type(value, struct nn_affinity_entry);
} nn_affinity_out SEC(".maps");

/* The cookie of a network namespace -> the pod's addresses. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct nn_client_entry);
} nn_client SEC(".maps");

/* `entries`: nn_affinity or nn_affinity_out. A backend was chosen for a new flow: replace it by the client's own one, or remember it. A backend that takes no new
 * flows is not a member, so the client gets another one. */
NN_INLINE void nn_affinity_keep(void *entries, const struct nn_affinity_key *key, struct nn_lb_choice *choice, __u32 now)
{
	struct nn_affinity_entry fresh = { .backend_id = choice->backend_id, .last_used = now };
	struct nn_affinity_entry *held = bpf_map_lookup_elem(entries, key);
	__u32 external = choice->scope == NN_SCOPE_EXTERNAL ? NN_MEMBER_EXTERNAL : 0;
	struct nn_backend_entry *member;

	if (held && now - held->last_used <= choice->affinity_seconds) {
		member = nn_lb_member(choice->rev_nat_index | NN_MEMBER_AFFINITY, held->backend_id | external);
		if (member) {
			choice->backend = *member;
			choice->backend_id = held->backend_id;
			choice->slot = 0; /* not known */
			held->last_used = now;
			return;
		}
	}
	bpf_map_update_elem(entries, key, &fresh, BPF_ANY);
}

#endif
