/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the stages know about the current packet: parse -> service -> policy -> deliver. Each stage writes its own part,
 * and reads those of the stages before it. */
#ifndef NN_CONTEXT_H
#define NN_CONTEXT_H

#include "parse.h"

/* The packet as one side sees it, and what the policy stage finds. A packet between two pods of this node has both
 * sides: it leaves one pod (egress) and enters the other one (ingress). */
struct nn_view {
	__u32 subject; /* identity of the endpoint on this side */
	__u32 peer_identity; /* of the other end; 0: not looked up, or not known */
	__u32 rule_id;
	__u32 rev_nat_index; /* Service that the flow uses; 0: none */
	__u16 endpoint_id;
	__u16 sender_id; /* ingress, if is_local is set: endpoint_id of the sender */
	__u8 direction;
	__u8 subject_flags; /* of nn_endpoint_entry */
	__u8 is_local; /* ingress: sent by an endpoint of this node whose egress side was checked */
	__u8 nat; /* how the service stage translated the packet: NN_CT_TRANSLATED, NN_CT_PORT */
	__u8 ct_status;
	__u8 ct_flags; /* nn_ct_flags for the new entry */
	__u8 is_reply;
	__u8 outside; /* the source is one of the node's addresses, but the packet came from elsewhere (origin.h) */
	__u8 reverse; /* flags of a reply to translate back before it enters the pod: NN_CT_TRANSLATED, NN_CT_PORT */
	__u8 is_new; /* conntrack does not know `flow` */
	__u8 pad[2];
	struct nn_ct_key flow; /* not cleared: written before it is read */
};

/* What the service stage does with the packet. */
struct nn_nat {
	__u8 translated; /* the packet is now one to the backend */
	__u8 refused; /* dropped, and the sender gets an answer */
	__u8 pad[6];
	/* The fields below are not cleared. */
	struct nn_nat_key key; /* the flow of a packet to a Service, and what becomes of it */
	struct nn_nat_entry entry;
	struct nn_nat_key reply_key; /* the same for the packets that answer it */
	struct nn_nat_entry reply;
	struct nn_nat_key gone; /* argument of nn_nat_delete */
	struct nn_nat_key other; /* its other half */
	struct nn_nat_key source_key; /* the flow's source translation (source.h) */
	struct nn_nat_entry source;
};

struct nn_context {
	struct nn_packet packet; /* the packet as it is now: the service stage updates addresses and ports */
	struct nn_state state; /* read once per packet, so that all lookups use the same generation */
	__u32 now; /* seconds of CLOCK_MONOTONIC, of `time` */
	__u8 has_quote; /* `quote` is filled in for this packet */
	__u8 pad[3];
	__u64 cookie; /* of the sending socket; 0: not looked up, or not known */
	__u64 time; /* ns of CLOCK_MONOTONIC, read once per packet: reading the clock costs as much as a lookup */
	struct nn_nat nat;
	struct nn_view view[2];
	__u32 users; /* programs that use this context */
	__u32 pad2;
	struct nn_packet quote; /* the packet that an ICMP error quotes, if has_quote is set */
	/* A new entry of a table with slots (fair.h). */
	struct nn_ct_key key;
	__u32 owner;
	__u32 bucket; /* index in the table's array of buckets */
	__u32 unanswered; /* slots of the bucket with NN_FAIR_FIRST, one bit each */
	__u32 pad3;
	__u64 victim; /* score and slot of the entry that is evicted first */
};

/* The context of the current packet. Both tc hooks run with bottom halves disabled, so no other tc program runs on the
 * same CPU meanwhile. Where programs can be preempted (PREEMPT_RT), nn_context_take prevents double use. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct nn_context);
} nn_scratch SEC(".maps");

NN_INLINE struct nn_context *nn_context_now(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&nn_scratch, &zero);
}

/* `side`: NN_INGRESS or NN_EGRESS. An index, not a branch: old verifiers follow each branch. */
NN_INLINE struct nn_view *nn_view_of(struct nn_context *context, __u32 side)
{
	return &context->view[side & 1];
}

NN_INLINE struct nn_view *nn_view_new(struct nn_context *context, __u32 side)
{
	struct nn_view *view = nn_view_of(context, side);

	__builtin_memset(view, 0, offsetof(struct nn_view, flow));
	view->direction = side;
	return view;
}

/* The endpoint on this side. */
NN_INLINE void nn_view_set_endpoint(const struct nn_context *context, struct nn_view *view,
				    const struct nn_endpoint_entry *endpoint)
{
	int now = nn_is_in_force(endpoint->since, context->state.generation);

	view->endpoint_id = endpoint->endpoint_id;
	view->subject = now ? endpoint->identity : endpoint->was_identity;
	view->subject_flags = now ? endpoint->flags : endpoint->was_flags;
}

/* Take the per-CPU context. If two programs try at the same time, at most one succeeds, because each increments the
 * counter before it reads it. */
NN_INLINE int nn_context_take(struct nn_context *context)
{
	if (!nn_config.preemptible)
		return 1;
	__sync_fetch_and_add(&context->users, 1);
	if (*(volatile __u32 *)&context->users == 1)
		return 1;
	__sync_fetch_and_add(&context->users, -1);
	return 0;
}

NN_INLINE void nn_context_release(struct nn_context *context)
{
	if (nn_config.preemptible)
		__sync_fetch_and_add(&context->users, -1);
}

/* Clear what may be read before it is written. */
NN_INLINE void nn_context_init(struct nn_context *context, __u32 side)
{
	__builtin_memset(context, 0, offsetof(struct nn_context, nat.key));
	nn_view_new(context, side);
	nn_state_read(&context->state);
	context->time = bpf_ktime_get_ns();
	context->now = context->time / NN_NS_PER_SECOND;
}

#endif
