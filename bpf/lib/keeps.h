/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether a packet of a known flow keeps the flow's backend, or gets one again. */
#ifndef NN_KEEPS_H
#define NN_KEEPS_H

#include "lb.h"
#include "nat.h"

/* Seconds: datagrams keep their backend unless they pause for longer than this. */
#define NN_SERVICE_DATAGRAM NN_CT_STREAM
/* Seconds: a SYN that is retransmitted within this time goes to the same backend. */
#define NN_SERVICE_OPENING NN_CT_TCP_OPENING

/* A backend's number may be reused for another one, so compare the address. */
NN_INLINE int nn_is_backend_of(const struct nn_backend_entry *backend, const struct nn_nat_entry *flow)
{
	return backend && backend->port == flow->dport && nn_addr_equal(&backend->addr, &flow->daddr);
}

/* True if the backend is still in the slot of its Service. Also 0 if it moved to another slot: for a retransmitted SYN
 * another choice does no harm. */
NN_INLINE int nn_service_has_slot(const struct nn_tuple *tuple, const struct nn_nat_entry *flow)
{
	struct nn_frontend_key key = { .addr = tuple->daddr, .port = tuple->dport, .protocol = tuple->protocol };
	struct nn_frontend_entry *slot = 0;
	__u32 id = flow->backend_id;

	/* From outside it may be the slot of the other scope. */
	if (flow->slot && (flow->endpoint_id || nn_lb_master(&key, NN_SCOPE_EXTERNAL))) {
		key.backend_slot = flow->slot;
		slot = bpf_map_lookup_elem(&nn_frontend, &key);
	}
	if (!slot || slot->backend_id != id)
		return 0;
	return nn_is_backend_of(bpf_map_lookup_elem(&nn_backend, &id), flow);
}

/* True if the packet keeps the backend of this flow. An established connection keeps it even if it is removed from the
 * Service; datagrams keep it only while it is in the Service. A SYN keeps it while the connection opens. */
NN_INLINE int nn_service_keeps(const struct nn_packet *packet, const struct nn_nat_entry *flow, __u32 now)
{
	__s32 idle = now - flow->last_seen;

	if (packet->tuple.protocol == IPPROTO_UDP)
		return idle <= NN_SERVICE_DATAGRAM &&
		       nn_is_backend_of(nn_lb_member(flow->rev_nat_index, flow->backend_id), flow);
	if (!nn_is_syn(packet))
		return 1;
	return !(flow->flags & NN_NAT_OPENED) && idle <= NN_SERVICE_OPENING &&
	       nn_service_has_slot(&packet->tuple, flow);
}

#endif
