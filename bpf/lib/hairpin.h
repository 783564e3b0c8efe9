/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A pod that calls its own Service and is itself the chosen backend. Its kernel would reject packets from its own
 * address, so the pod sees a reserved source address, the hairpin address. Policy is not checked: a pod may always
 * reach itself. The packets return directly to the pod and never cross the bridge. */
#ifndef NN_HAIRPIN_H
#define NN_HAIRPIN_H

#include "common.h"

/* 169.254.42.1: link-local (RFC 3927), not forwarded by routers. 100::1: the discard prefix (RFC 6666). */
#define NN_HAIRPIN_V4 0xa9fe2a01
#define NN_HAIRPIN_V6_FIRST 0x01000000
#define NN_HAIRPIN_V6_LAST 1

NN_INLINE void nn_hairpin_addr(struct nn_addr *addr, int ip_version)
{
	if (ip_version == 4) {
		nn_addr_from_v4(addr, bpf_htonl(NN_HAIRPIN_V4));
		return;
	}
	addr->word[0] = bpf_htonl(NN_HAIRPIN_V6_FIRST);
	addr->word[1] = 0;
	addr->word[2] = 0;
	addr->word[3] = bpf_htonl(NN_HAIRPIN_V6_LAST);
}

NN_INLINE int nn_is_hairpin_addr(const struct nn_addr *addr)
{
	if (addr->word[3] == bpf_htonl(NN_HAIRPIN_V4))
		return nn_addr_is_v4(addr);
	return addr->word[3] == bpf_htonl(NN_HAIRPIN_V6_LAST) && addr->word[0] == bpf_htonl(NN_HAIRPIN_V6_FIRST) &&
	       (addr->word[1] | addr->word[2]) == 0;
}

#endif
