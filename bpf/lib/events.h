/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counters and the ring buffer to user space. nn_drop counts a dropped packet and sends the event, so that no caller
 * forgets one of the two. */
#ifndef NN_EVENTS_H
#define NN_EVENTS_H

#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

#include "parse.h"

#define NN_EVENTS_SIZE (1 << 22) /* bytes */
#define NN_WAKEUP_BYTES (NN_EVENTS_SIZE / 8)
#define NN_METRIC_FORWARDED 0
#define NN_METRIC_LOST_EVENT 255
#define NN_METRICS (3 << 8) /* two directions, from 1; 0: what became of entries of tables */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, NN_EVENTS_SIZE);
} nn_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NN_METRICS);
	__type(key, __u32); /* the bytes of struct nn_metrics_key */
	__type(value, struct nn_metrics_entry);
} nn_metrics SEC(".maps");

/* Everything that a program knows about a packet: the content of events, and the arguments that its functions pass to
 * each other. */
struct nn_context {
	struct nn_packet packet;
	__u32 now; /* seconds of CLOCK_MONOTONIC, of `time` */
	__u32 subject; /* identity of the endpoint for which the packet is checked */
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rule_id;
	__u32 rev_nat_index;
	__u16 endpoint_id;
	__u8 direction;
	__u8 ct_status;
	__u8 is_reply;
	__u8 translated; /* the Service's address was replaced by `backend` */
	__u8 untranslate; /* a reply: its source must be rewritten to the Service `rev_nat_index` */
	__u8 subject_flags; /* of nn_endpoint_entry */
	__u8 is_local; /* sent by an endpoint of this node, so src_identity is already set */
	__u8 has_quote; /* `quote` is filled in for this packet */
	__u8 outside; /* the source is one of the node's addresses, but the packet came from elsewhere (origin.h) */
	__u8 ct_flags; /* nn_ct_flags for the new entry */
	__be16 backend_port;
	__be16 source_port; /* to a Service: replaces the pod's port; from it: the pod's own port; 0: unchanged */
	struct nn_addr backend; /* chosen for a packet to a Service */
	__u16 sender_id; /* its endpoint_id, if is_local is set */
	__u16 pad;
	__u32 pad2;
	__u64 cookie;
	__u64 time; /* ns of CLOCK_MONOTONIC, read once per packet: reading the clock costs as much as a lookup */
	__u32 users; /* programs that use this context; this field and those below are not cleared per packet */
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

NN_INLINE void nn_count(__u8 reason, __u8 direction, __u64 bytes)
{
	__u32 key = reason | (__u32)direction << 8;
	struct nn_metrics_entry *entry = bpf_map_lookup_elem(&nn_metrics, &key);

	if (!entry)
		return;
	entry->packets++;
	entry->bytes += bytes;
}

/* Count entries of a table that are gone (struct nn_metrics_key). */
NN_INLINE void nn_count_entries(enum nn_table table, enum nn_entry_end end, __u32 count)
{
	__u32 key = table * NN_ENTRY_ENDS + end;
	struct nn_metrics_entry *entry = bpf_map_lookup_elem(&nn_metrics, &key);

	if (entry)
		entry->packets += count;
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

/* Returns 0 if the context is in use: drop the packet. It is counted without an event, because an event needs the
 * context. */
NN_INLINE struct nn_context *nn_context_new(struct __sk_buff *ctx, __u8 direction)
{
	struct nn_context *context = nn_context_now();

	if (!context)
		return 0;
	if (!nn_context_take(context)) {
		nn_count(-NN_DROP_INVALID_TC_BUFFER, direction, ctx->len);
		return 0;
	}
	__builtin_memset(context, 0, offsetof(struct nn_context, users));
	context->direction = direction;
	context->time = bpf_ktime_get_ns();
	context->now = context->time / NN_NS_PER_SECOND;
	return context;
}

/* Waking the reader for each event would cost more than the event itself. The agent polls many times a second; wake it
 * only if much of the buffer is in use. */

NN_INLINE void nn_submit_event(struct nn_event *event)
{
	__u64 waiting = bpf_ringbuf_query(&nn_events, BPF_RB_AVAIL_DATA);

	bpf_ringbuf_submit(event, waiting >= NN_WAKEUP_BYTES ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

NN_INLINE struct nn_event *nn_reserve_event(__u8 direction)
{
	struct nn_event *event = bpf_ringbuf_reserve(&nn_events, sizeof(*event), 0);

	if (!event)
		nn_count(NN_METRIC_LOST_EVENT, direction, 0);
	return event;
}

NN_GLOBAL int nn_send_event(struct __sk_buff *ctx, __u8 type, __u8 point, int reason)
{
	struct nn_context *context = nn_context_now();
	struct nn_event *event;
	struct {
		__u8 dst[ETH_ALEN];
		__u8 src[ETH_ALEN];
	} mac = {};

	if (!context)
		return 0;
	event = nn_reserve_event(context->direction);
	if (!event)
		return 0;
	__builtin_memset(event, 0, sizeof(*event));
	event->type = type;
	event->point = point;
	event->size = sizeof(*event);
	event->reason = reason;
	event->time = context->time;
	event->cookie = context->cookie;
	event->saddr = context->packet.tuple.saddr;
	event->daddr = context->packet.tuple.daddr;
	event->sport = context->packet.tuple.sport;
	event->dport = context->packet.tuple.dport;
	event->protocol = context->packet.tuple.protocol;
	event->direction = context->direction;
	event->ct_status = context->ct_status;
	event->tcp_flags = context->packet.tcp_flags;
	event->icmp_type = context->packet.icmp_type;
	event->icmp_code = context->packet.icmp_code;
	event->endpoint_id = context->endpoint_id;
	event->src_identity = context->src_identity;
	event->dst_identity = context->dst_identity;
	event->rule_id = context->rule_id;
	event->rev_nat_index = context->rev_nat_index;
	event->ifindex = ctx->ifindex;
	event->length = ctx->len;
	event->ip_version = context->packet.ip_version;
	event->is_reply = context->is_reply;
	bpf_skb_load_bytes(ctx, 0, &mac, sizeof(mac));
	__builtin_memcpy(event->src_mac, mac.src, ETH_ALEN);
	__builtin_memcpy(event->dst_mac, mac.dst, ETH_ALEN);
	nn_submit_event(event);
	return 0;
}

NN_INLINE int nn_drop(struct __sk_buff *ctx, struct nn_context *context, int reason)
{
	nn_count(-reason, context->direction, ctx->len);
	nn_send_event(ctx, NN_EVENT_DROP, 0, reason);
	return TC_ACT_SHOT;
}

#endif
