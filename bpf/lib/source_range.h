/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* loadBalancerSourceRanges: which sources may open flows to a load balancer's address. Flows that exist go on. */
#ifndef NN_SOURCE_RANGE_H
#define NN_SOURCE_RANGE_H

#include "lb.h"

/* The ranges of the frontends with NN_FRONTEND_SOURCE_RANGES. User space adds them before it sets the flag, and deletes
 * them after it cleared the flag. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct nn_source_range_key);
	__type(value, __u32);
} nn_source_range SEC(".maps");

/* True if this source may use the frontend of the choice. Call it after nn_lb_choose, whatever that returned: a source
 * that may not use the Service shall not learn whether it has backends. */
NN_INLINE int nn_source_allowed(const struct nn_lb_choice *choice, const struct nn_addr *source)
{
	struct nn_source_range_key key = { .prefixlen = NN_SOURCE_RANGE_BITS,
					   .rev_nat_index = choice->rev_nat_index,
					   .addr = *source };

	return !(choice->flags & NN_FRONTEND_SOURCE_RANGES) || bpf_map_lookup_elem(&nn_source_range, &key) != 0;
}

#endif
