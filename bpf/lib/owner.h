/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who pays for an entry of a table with slots (fair.h): a number of 32 bits. A caller that is no pod may have any number
 * of addresses, so the called endpoint pays for its entries; the lower half of the owner keeps one caller from evicting
 * the entries of another one. */
#ifndef NN_OWNER_H
#define NN_OWNER_H

#include "events.h"
#include "hash.h"
#include "policy.h"

#define NN_OWNER_OUTSIDE 0x80000000 /* group: the called endpoint; the lower half names the caller */
#define NN_OWNER_GROUP 0xffff0000 /* of such an owner */
#define NN_OWNER_ENDPOINT 0x40000000 /* a pod of this node, by its endpoint_id */
#define NN_OWNER_ADDRESS 0x3fffffff /* a hash of the address of another pod */

NN_INLINE __u32 nn_owner_endpoint(__u16 endpoint_id)
{
	return NN_OWNER_ENDPOINT | endpoint_id;
}

/* An address outside of this node that calls the endpoint of the view. */
NN_INLINE __u32 nn_owner_remote(const struct nn_view *view, const struct nn_addr *addr, __u32 identity)
{
	__u64 number = nn_addr_number(addr);

	if (!nn_is_reserved(identity))
		return number & NN_OWNER_ADDRESS;
	return NN_OWNER_OUTSIDE | (__u32)view->endpoint_id << 16 | (number & 0xffff);
}

#endif
