/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hashes of addresses and flows. nodenet/abi/slots.py computes the same numbers. */
#ifndef NN_HASH_H
#define NN_HASH_H

#include "common.h"

#define NN_GOLDEN_RATIO 0x9e3779b97f4a7c15ULL /* 2^64 divided by the golden ratio */

/* Hashes: multiplication by the golden ratio, word by word. The upper half is the better one. */
NN_INLINE __u64 nn_addr_number(const struct nn_addr *addr)
{
	__u64 number = 0;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		number = (number ^ addr->word[i]) * NN_GOLDEN_RATIO;
		number ^= number >> 32;
	}
	return number;
}

NN_INLINE __u64 nn_flow_number(const struct nn_ct_key *flow)
{
	__u64 number = (__u64)flow->pod_port << 32 | (__u32)flow->remote_port << 16 | flow->protocol;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		number = (number ^ flow->pod.word[i]) * NN_GOLDEN_RATIO;
		number = (number ^ number >> 32 ^ flow->remote.word[i]) * NN_GOLDEN_RATIO;
		number ^= number >> 32;
	}
	return number;
}

#endif
