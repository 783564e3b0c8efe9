/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Used by every program: the kernel's types, the helpers, the configuration and address arithmetic. */
#ifndef NN_COMMON_H
#define NN_COMMON_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#define NN_INLINE static __always_inline
#define NN_SUBPROGRAM static __noinline
/* The verifier checks a global function once, not once per call path. Without this, old kernels reject the program
 * (5.10: limit of a million instructions). Global functions take the packet and numbers only; everything else is in
 * nn_scratch. */
#define NN_GLOBAL __attribute__((noinline))
#define NN_ADDR_BITS 128
#define NN_NS_PER_SECOND 1000000000ULL

/* In a section of its own, so that user space can set the struct without knowing the layout of .rodata. */
const volatile struct nn_config nn_config SEC(".rodata.config") = {
	.enforce_policy = 1,
	.redirect_peer = 1,
	.refuse_errno = 0,
	.trace_events = 1,
	.ct_buckets = 6553,
	.frag_buckets = 409,
	.nat_buckets = 3276,
	.source_port = 49152,
	.source_ports = 16384,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE); /* user space writes the 8 bytes with one store */
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct nn_state);
} nn_state SEC(".maps");

/* One load of 8 bytes: the two fields belong together. */
NN_INLINE void nn_state_read(struct nn_state *state)
{
	__u32 zero = 0;
	struct nn_state *found = bpf_map_lookup_elem(&nn_state, &zero);

	if (found)
		*(volatile __u64 *)state = *(volatile __u64 *)found;
}

/* True if the change of generation `since` is in force for a program that read `generation`. Generations may wrap. */
NN_INLINE int nn_is_in_force(__u32 since, __u32 generation)
{
	return (__s32)(generation - since) >= 0;
}

NN_INLINE void nn_addr_from_v4(struct nn_addr *addr, __be32 v4)
{
	addr->word[0] = 0;
	addr->word[1] = 0;
	addr->word[2] = bpf_htonl(0xffff);
	addr->word[3] = v4;
}

NN_INLINE int nn_addr_is_v4(const struct nn_addr *addr)
{
	return addr->word[0] == 0 && addr->word[1] == 0 && addr->word[2] == bpf_htonl(0xffff);
}

NN_INLINE int nn_addr_is_zero(const struct nn_addr *addr)
{
	return (addr->word[0] | addr->word[1] | addr->word[2] | addr->word[3]) == 0;
}

NN_INLINE int nn_addr_equal(const struct nn_addr *a, const struct nn_addr *b)
{
	return ((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) |
		(a->word[3] ^ b->word[3])) == 0;
}

/* fe80::/10 (RFC 4291, 2.5.6) */
NN_INLINE int nn_addr_is_link_local(const struct nn_addr *addr)
{
	return (addr->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

NN_INLINE __u32 nn_now_seconds(void)
{
	return bpf_ktime_get_ns() / NN_NS_PER_SECOND;
}

#endif
