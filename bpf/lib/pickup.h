/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A TCP packet in mid-connection without a conntrack entry: the entry was evicted or expired, its map was replaced, the
 * pod started before its programs were attached, or the endpoint got another number. The packet does not show who
 * opened the connection, so policy is checked for both cases: its sender opened the connection, or its receiver did. If
 * the results differ, the pod's sockets decide. Datagrams have no mid-connection: each one without an entry opens a
 * flow. */
#ifndef NN_PICKUP_H
#define NN_PICKUP_H

#include "accepted.h"
#include "conntrack.h"
#include "policy.h"

/* A SYN without ACK opens a connection; all other TCP packets belong to an open one. A translated packet goes to a
 * Service, and a Service never opens connections. */
NN_INLINE int nn_is_midstream(const struct nn_packet *packet, const struct nn_view *view)
{
	return packet->tuple.protocol == IPPROTO_TCP && !view->nat && !nn_is_syn(packet);
}

/* nn_opener_by_socket: neither NN_INGRESS, NN_EGRESS nor 0 (not known). */
#define NN_CHECK_LISTENER 3

NN_INLINE int nn_opener_by_kernel(struct bpf_sock *sock, int v4)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sock);

	if (!tcp)
		return 0;
	return nn_was_accepted(tcp, v4) ? NN_INGRESS : NN_EGRESS;
}

NN_INLINE int nn_opener_by_socket(struct bpf_sock *sock, int v4)
{
	switch (sock->state) {
	case BPF_TCP_SYN_SENT:
		return NN_EGRESS;
	case BPF_TCP_NEW_SYN_RECV:
		return NN_INGRESS;
	case BPF_TCP_TIME_WAIT: /* its opener is not recorded any more */
	case BPF_TCP_LISTEN: /* there is a listener, but no connection */
		return 0;
	}
	return nn_config.kernel_structs ? nn_opener_by_kernel(sock, v4) : NN_CHECK_LISTENER;
}

/* Who opened the connection according to the pod's sockets: NN_INGRESS, NN_EGRESS, or 0 if they do not show it. A
 * socket that is bound to a device is not found. If the kernel's structs cannot be read, a listener on the pod's port
 * means that the other side opened the connection. The listener is looked up with a zero remote address and port,
 * because the connection's own socket would be found first otherwise. */
NN_SUBPROGRAM int nn_who_opened(struct __sk_buff *ctx, const struct nn_ct_key *key)
{
	struct nn_endpoint_entry *endpoint;
	struct bpf_sock_tuple ends = {};
	struct bpf_sock *sock;
	__u32 size, netns;
	int v4, opener;

	if (!key) /* old verifiers require this check */
		return 0;
	endpoint = nn_endpoint_lookup(&key->pod);
	if (!endpoint || !endpoint->netns)
		return 0;
	netns = endpoint->netns - 1;
	v4 = nn_addr_is_v4(&key->pod);
	if (v4) {
		ends.ipv4.saddr = key->remote.word[3];
		ends.ipv4.daddr = key->pod.word[3];
		ends.ipv4.sport = key->remote_port;
		ends.ipv4.dport = key->pod_port;
	} else {
		__builtin_memcpy(ends.ipv6.saddr, &key->remote, sizeof(ends.ipv6.saddr));
		__builtin_memcpy(ends.ipv6.daddr, &key->pod, sizeof(ends.ipv6.daddr));
		ends.ipv6.sport = key->remote_port;
		ends.ipv6.dport = key->pod_port;
	}
	size = v4 ? sizeof(ends.ipv4) : sizeof(ends.ipv6);
	sock = bpf_skc_lookup_tcp(ctx, &ends, size, netns, 0);
	if (!sock)
		return 0;
	opener = nn_opener_by_socket(sock, v4);
	bpf_sk_release(sock);
	if (opener != NN_CHECK_LISTENER)
		return opener;
	if (v4) {
		ends.ipv4.saddr = 0;
		ends.ipv4.sport = 0;
	} else {
		__builtin_memset(ends.ipv6.saddr, 0, sizeof(ends.ipv6.saddr));
		ends.ipv6.sport = 0;
	}
	sock = bpf_skc_lookup_tcp(ctx, &ends, size, netns, 0);
	if (!sock)
		return NN_EGRESS;
	opener = sock->state == BPF_TCP_LISTEN ? NN_INGRESS : NN_EGRESS;
	bpf_sk_release(sock);
	return opener;
}

/* Check policy for a packet of nn_is_midstream, after nn_identify. Sets the fields of the flow's new entry: whether the
 * packet is a reply, the rule, and NN_CT_UNSURE if policy allows both directions and the sockets do not show the opener
 * (both are checked again when the rules change). Returns 0 or a drop code. A drop code with NN_CT_UNSURE means that
 * the opener is not known and policy does not allow both directions. */
NN_GLOBAL int nn_pickup(struct __sk_buff *ctx, __u32 side)
{
	struct nn_context *context = nn_context_now();
	__u32 own_rule, answer_rule;
	int own, answer, opener;
	struct nn_view *view;
	__u8 direction;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	view = nn_view_of(context, side);
	direction = view->direction;
	own = nn_policy_ask(side, direction);
	own_rule = view->rule_id;
	answer = nn_policy_ask(side, NN_INGRESS + NN_EGRESS - direction);
	answer_rule = view->rule_id;
	/* A SYN-ACK is a reply. It must not open a flow that needs a rule to be opened. */
	if (own == 0 && own_rule && (context->packet.tcp_flags & NN_TCP_SYN)) {
		own = NN_DROP_POLICY_DENIED;
		own_rule = 0;
	}
	view->is_reply = 0;
	view->ct_flags = 0;
	if (own < 0 && answer < 0) {
		view->rule_id = own_rule;
		return own;
	}
	opener = nn_who_opened(ctx, &view->flow);
	if (!opener) {
		view->ct_flags = NN_CT_UNSURE | nn_ct_flags_of(&context->packet, 0);
		view->rule_id = own_rule;
		if (own < 0)
			return own;
		return answer < 0 ? NN_DROP_CT_UNKNOWN_STATE : 0;
	}
	view->is_reply = opener != direction;
	view->ct_flags = nn_ct_flags_of(&context->packet, view->is_reply);
	view->rule_id = view->is_reply ? answer_rule : own_rule;
	return view->is_reply ? answer : own;
}

/* True if the sender of a dropped packet should get a reset. Its connection cannot continue, and without a reset it
 * would wait for its timeouts. Only the sender of the packet gets a reset. Its address and MAC were checked, so a
 * forged packet cannot end the connection of another pod. */
NN_INLINE int nn_reset_is_due(const struct nn_packet *packet, const struct nn_view *view, int reason)
{
	return (reason == NN_DROP_CT_UNKNOWN_STATE || reason == NN_DROP_POLICY_DENIED) &&
	       (view->ct_flags & NN_CT_UNSURE) && !nn_is_fragment(packet) &&
	       (packet->tcp_flags & (NN_TCP_SYN | NN_TCP_RST | NN_TCP_ACK)) == NN_TCP_ACK;
}

#endif
