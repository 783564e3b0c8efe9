/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counters and the ring buffer to user space. nn_drop counts a dropped packet and sends the event, so that no caller
 * forgets one of the two. */
#ifndef NN_EVENTS_H
#define NN_EVENTS_H

#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

#include "context.h"

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

/* The context of a new packet, with one side. Returns 0 if it is in use: drop the packet. It is counted without an
 * event, because an event needs the context. */
NN_INLINE struct nn_context *nn_context_new(struct __sk_buff *ctx, __u8 direction)
{
	struct nn_context *context = nn_context_now();

	if (!context)
		return 0;
	if (!nn_context_take(context)) {
		nn_count(-NN_DROP_INVALID_TC_BUFFER, direction, ctx->len);
		return 0;
	}
	nn_context_init(context, direction);
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

/* Report the packet as one side of it sees it. `side`: NN_INGRESS or NN_EGRESS. */
NN_GLOBAL int nn_send_event(struct __sk_buff *ctx, __u8 type, __u8 point, int reason, __u32 side)
{
	struct nn_context *context = nn_context_now();
	const struct nn_view *view;
	struct nn_event *event;
	struct {
		__u8 dst[ETH_ALEN];
		__u8 src[ETH_ALEN];
	} mac = {};

	if (!context)
		return 0;
	view = nn_view_of(context, side);
	event = nn_reserve_event(view->direction);
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
	event->direction = view->direction;
	event->ct_status = view->ct_status;
	event->tcp_flags = context->packet.tcp_flags;
	event->icmp_type = context->packet.icmp_type;
	event->icmp_code = context->packet.icmp_code;
	event->endpoint_id = view->endpoint_id;
	event->src_identity = view->direction == NN_EGRESS ? view->subject : view->peer_identity;
	event->dst_identity = view->direction == NN_EGRESS ? view->peer_identity : view->subject;
	event->rule_id = view->rule_id;
	event->rev_nat_index = view->rev_nat_index;
	event->ifindex = ctx->ifindex;
	event->length = ctx->len;
	event->ip_version = context->packet.ip_version;
	event->is_reply = view->is_reply;
	bpf_skb_load_bytes(ctx, 0, &mac, sizeof(mac));
	__builtin_memcpy(event->src_mac, mac.src, ETH_ALEN);
	__builtin_memcpy(event->dst_mac, mac.dst, ETH_ALEN);
	nn_submit_event(event);
	return 0;
}

/* `side`: the side on which the packet is dropped. */
NN_INLINE int nn_drop(struct __sk_buff *ctx, __u8 side, int reason)
{
	nn_count(-reason, side, ctx->len);
	nn_send_event(ctx, NN_EVENT_DROP, 0, reason, side);
	return TC_ACT_SHOT;
}

#endif
