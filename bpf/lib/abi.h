/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The structs and numbers that the programs share with user space, and those of the fragment map. Fixed width, explicit
 * padding. nodenet/abi mirrors the shared ones (nodenet/bpf/loader.py mirrors nn_config), and a test compares them
 * through BTF. Addresses are 16 bytes everywhere, IPv4 as ::ffff:a.b.c.d, so that one struct, one map and one function
 * serve both families. Ports are in network byte order, everything else in host byte order. */
#ifndef NN_ABI_H
#define NN_ABI_H

#include <linux/types.h>

struct nn_addr {
	union {
		__u8 byte[16];
		__u32 word[4]; /* no 64-bit member: it would pad the LPM key */
	};
};

/* Direction as the pod sees it. The tc hooks on the node's side of a veth are reversed: packets that the pod sends
 * (egress) arrive at tc ingress. The numbers are Hubble's TrafficDirection. */
enum nn_direction {
	NN_INGRESS = 1,
	NN_EGRESS = 2,
};

/* Reserved identities; a pod's label set gets a number from 256 upwards. */
enum nn_identity {
	NN_IDENTITY_ANY = 0, /* in a policy key: every peer */
	NN_IDENTITY_HOST = 1,
	NN_IDENTITY_WORLD = 2,
	NN_IDENTITY_UNMANAGED = 3, /* pods of which some have no room in nn_ipcache */
	NN_IDENTITY_REMOTE_NODE = 6,
};

/* Why a packet was dropped. The numbers are Hubble's DropReason, negated. Append only. */
enum nn_drop {
	NN_DROP_INVALID_SOURCE_IP = -132,
	NN_DROP_POLICY_DENIED = -133,
	NN_DROP_INVALID_PACKET = -134,
	NN_DROP_UNSUPPORTED_L3 = -139,
	NN_DROP_CHECKSUM = -154,
	NN_DROP_CT_INSERT_FAILED = -155,
	NN_DROP_INVALID_IPV6_EXTENSION = -156,
	NN_DROP_BACKEND_NOT_FOUND = -158,
	NN_DROP_CT_UNKNOWN_STATE = -163,
	NN_DROP_UNSUPPORTED_L2 = -166,
	NN_DROP_NAT_NO_MAPPING = -167,
	NN_DROP_IS_A_CLUSTERIP = -174,
	NN_DROP_FRAGMENT_NOT_FOUND = -175,
	NN_DROP_FORBIDDEN_ICMPV6 = -176,
	NN_DROP_NOT_IN_SOURCE_RANGE = -177,
	NN_DROP_INVALID_TC_BUFFER = -184,
	NN_DROP_MULTICAST = -201,
	NN_DROP_ENDPOINT_NOT_READY = -203,
};

/* Set by user space between open and load. The verifier treats these fields as constants and removes code that is
 * switched off. */
struct nn_config {
	__u8 enforce_policy;
	__u8 redirect_peer; /* packets between pods of this node skip the bridge */
	__u8 refuse_errno; /* 1: connect() fails with ECONNREFUSED (bpf_set_retval, Linux 5.18); 0: with EPERM */
	__u8 trace_events; /* 0: report drops only */
	__u8 preemptible; /* PREEMPT_RT: another program may preempt this one on its CPU */
	__u8 kernel_structs; /* programs may read the kernel's sk_buff and sockets: needs BTF and CAP_PERFMON */
	__u8 serve_uplinks; /* Services are translated on the node's own interfaces too (netdev.bpf.c) */
	__u8 pad;
	__u32 ct_buckets; /* entries of nn_ct_slot */
	__u32 frag_buckets; /* entries of nn_frag_slot */
	__u32 nat_buckets; /* entries of nn_nat_slot */
	__u16 source_port; /* the first of the ports that replace those of clients outside (source.h) */
	__u16 source_ports; /* how many these are */
	__u64 netns_cookie; /* of the node's network namespace; 0: the kernel does not report cookies (before 5.14) */
};

/* Address of a local pod -> its endpoint. */
struct nn_endpoint_key {
	struct nn_addr addr;
};

enum nn_endpoint_flags {
	NN_ENDPOINT_ISOLATED_INGRESS = 1,
	NN_ENDPOINT_ISOLATED_EGRESS = 2,
	NN_ENDPOINT_NO_REDIRECT = 4, /* deliver through the bridge: its VLANs or isolated ports apply to this pod */
	NN_ENDPOINT_TIERED_INGRESS = 8, /* rules of other tiers than NetworkPolicy apply to it */
	NN_ENDPOINT_TIERED_EGRESS = 16,
};

/* Values with two versions. A change of policy writes `was` (in force before it), `now` (in force after it) and
 * `since`, the generation of the change. Nothing of it is in force until nn_state has that generation. */
struct nn_endpoint_entry {
	__u32 ifindex; /* node's side of the veth pair */
	__u32 identity; /* also the subject of its policy keys */
	__u32 was_identity;
	__u32 since;
	__u16 endpoint_id;
	__u8 flags;
	__u8 was_flags;
	__u8 mac[6]; /* the pod's side */
	__u16 netns; /* 1 + the id (nsid) that the node's namespace has for the pod's; 0: not known */
};

/* Address -> identity, longest prefix. */
struct nn_lpm_key {
	__u32 prefixlen; /* 0-128 over addr; an IPv4 /n is 96 + n */
	struct nn_addr addr;
};

struct nn_ipcache_entry {
	__u32 identity; /* 0: as if there were no entry */
	__u32 was;
	__u32 since;
};

/* Address -> region: the most specific ipBlock or except prefix that contains it. Regions share the number space of
 * identities (bit 24 is set), so that the same policy table serves both. */
struct nn_cidr_entry {
	__u32 region; /* 0: none */
	__u32 was;
	__u32 since;
};

/* The direction in a policy key, and the tier: rules of the Admin tier have keys of their own. The others share the
 * keys of nn_direction: an isolated endpoint has rules of NetworkPolicies, others have rules of the Baseline tier. */
enum nn_rule_direction {
	NN_RULE_INGRESS = 1,
	NN_RULE_EGRESS = 2,
	NN_RULE_ADMIN_INGRESS = 5,
	NN_RULE_ADMIN_EGRESS = 6,
};

#define NN_RULE_ADMIN 4 /* added to nn_direction */

/* What a subject's rules say about a peer: who may send to it (ingress), or receive from it (egress). Longest prefix
 * match over the five fields in this order: a port range becomes several port prefixes, "all ports" ends after the
 * protocol, "all protocols" ends after the direction. */
struct nn_policy_key {
	__u32 prefixlen; /* bits of the fields below: 72 up to direction, 80 up to protocol, 96 with the exact port */
	__u32 subject; /* identity of the local endpoint */
	__u32 peer; /* identity or region of the other end; 0: every peer */
	__u8 direction; /* nn_rule_direction */
	__u8 protocol;
	__be16 port;
};

enum nn_action {
	NN_ACTION_ALLOW = 1,
	NN_ACTION_DENY = 2,
	NN_ACTION_PASS = 3, /* Admin tier: the next tier decides */
};

/* Within a tier the larger verdict is the stronger one: precedence first, then the action. */
struct nn_rule {
	__u32 verdict; /* precedence << 8 | nn_action; 0: as if there were no entry */
	__u32 rule_id; /* names the rule in user space */
};

struct nn_policy_entry {
	struct nn_rule now;
	struct nn_rule was;
	__u32 since;
};

/* One flow as one pod sees it; a flow between two local pods has two entries. */
struct nn_ct_key {
	struct nn_addr pod;
	struct nn_addr remote;
	__be16 pod_port;
	__be16 remote_port;
	__u8 protocol;
	__u8 pad[3];
};

enum nn_ct_flags {
	NN_CT_SEEN_REPLY = 1,
	NN_CT_FIN_FORWARD = 2, /* FIN from the side that opened the flow */
	NN_CT_FIN_REPLY = 4,
	NN_CT_RST = 8,
	NN_CT_TRANSLATED = 16, /* the pod sent to a Service: replies to the pod must come from the Service's address */
	NN_CT_PORT = 32, /* ... and its source port was replaced: nn_nat has the pod's own */
	NN_CT_OUTSIDE = 64, /* opened from one of the node's addresses, but not by the node */
	NN_CT_UNSURE = 128, /* picked up in mid-connection: opener not known, policy allowed both directions */
};

struct nn_ct_entry {
	__u32 last_seen; /* seconds of CLOCK_MONOTONIC */
	__u32 revision; /* generation of policy at which the flow was last allowed */
	__u32 rule_id; /* rule that allowed it; 0: no rule was needed (pod not isolated, or peer exempt) */
	__u32 rev_nat_index; /* Service that the flow uses; 0: none */
	__u8 direction; /* who opened it: NN_INGRESS or NN_EGRESS */
	__u8 flags;
	__u16 endpoint_id; /* owner of the flow: a later pod with the same address has another number */
	__u32 created; /* seconds of CLOCK_MONOTONIC */
};

enum nn_ct_status {
	NN_CT_NEW = 0,
	NN_CT_ESTABLISHED = 1,
	NN_CT_REPLY = 2,
	NN_CT_RELATED = 3,
};

/* What applies to all ports of an address that has frontends. Without a flag only the served ports are special: other
 * packets to the address pass as if it had no frontends. */
enum nn_service_addr_flags {
	NN_ADDR_REFUSE_UNSERVED = 1, /* a ClusterIP: only its ports exist */
};

struct nn_service_addr_key {
	struct nn_addr addr;
};

struct nn_service_addr_entry {
	__u32 flags;
};

/* Where a packet to a frontend comes from. With externalTrafficPolicy Local the two may have other backends. */
enum nn_frontend_scope {
	NN_SCOPE_INTERNAL = 0, /* a pod of this node, or the node itself */
	NN_SCOPE_EXTERNAL = 1,
};

enum nn_frontend_flags {
	/* No backend, because the traffic policy is Local and only other nodes have some: drop, without an answer. */
	NN_FRONTEND_ONLY_ELSEWHERE = 1,
	/* Of INTERNAL: the frontend has an EXTERNAL entry. Without the flag INTERNAL serves traffic from outside too. */
	NN_FRONTEND_HAS_EXTERNAL = 2,
	/* Traffic from outside keeps its source: externalTrafficPolicy is Local. */
	NN_FRONTEND_KEEP_SOURCE = 4,
	/* Only the sources in nn_source_range may use it. */
	NN_FRONTEND_SOURCE_RANGES = 8,
	/* ... and the node itself, because one of its addresses is in a range. */
	NN_FRONTEND_ALLOWS_NODE = 16,
	/* On the loopback: only processes of the node itself use it. The loopback of a pod is its own. */
	NN_FRONTEND_NODE_ONLY = 32,
};

/* Service address and slot -> backend. Slot 0 is the master entry: count and flags. */
struct nn_frontend_key {
	struct nn_addr addr;
	__be16 port;
	__u8 protocol;
	__u8 scope;
	__u16 backend_slot;
	__u8 pad2[2];
};

struct nn_frontend_entry {
	__u32 backend_id; /* in slots 1..count */
	__u32 rev_nat_index;
	__u16 count; /* in slot 0, as all that follows */
	__u16 flags;
	__u32 affinity_id; /* of the Service port, whichever of its addresses this is */
	__u32 affinity_seconds; /* the timeout of session affinity; 0: none */
};

/* The client's address, or in its first word the cookie of a network namespace that is no pod's. */
struct nn_affinity_key {
	struct nn_addr client;
	__u32 affinity_id;
};

struct nn_affinity_entry {
	__u32 backend_id;
	__u32 last_used; /* seconds of CLOCK_MONOTONIC */
};

struct nn_client_entry {
	struct nn_addr v4;
	struct nn_addr v6;
};

struct nn_backend_entry {
	struct nn_addr addr;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

#define NN_MEMBER_AFFINITY (1U << 31)
#define NN_MEMBER_EXTERNAL (1U << 31)

/* Membership of a backend in a Service; the value is its nn_backend_entry. UDP only: flows and sockets without a
 * connection use it to check that their backend still belongs to their Service. */
struct nn_member_key {
	__u32 rev_nat_index; /* plus NN_MEMBER_AFFINITY: a backend that takes new flows, of a Service with affinity */
	__u32 backend_id; /* plus NN_MEMBER_EXTERNAL: the same for traffic that the EXTERNAL entry serves */
};

/* rev_nat_index -> the Service address that clients used. */
struct nn_revnat_entry {
	struct nn_addr addr;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

/* loadBalancerSourceRanges of one frontend: the sources that may use it. */
struct nn_source_range_key {
	__u32 prefixlen; /* bits after this field: those of rev_nat_index, and of the range */
	__u32 rev_nat_index;
	struct nn_addr addr;
};

#define NN_SOURCE_RANGE_BITS (32 + 128)

/* IP version -> the node's address that replaces those of clients outside (source.h). */
struct nn_source_addr_entry {
	struct nn_addr addr;
};

/* Which packets of a flow an entry of nn_nat translates. The lowest bit: those of the backend. */
enum nn_nat_half {
	NN_NAT_CLIENT = 0,
	NN_NAT_REPLY = 1,
	NN_NAT_SOURCE_CLIENT = 2, /* the client's packets, where they leave the node */
	NN_NAT_SOURCE_REPLY = 3, /* the backend's packets, where they enter the node */
};

/* A flow that the service stage translates. It has two entries, which are made and deleted together: one for the packets
 * of the client, one for the packets that answer them. The key is a packet as it arrives. In a flow from a pod its
 * source was checked, and a pod's address belongs to one pod of the node. A flow from outside to a backend on another
 * node has two more entries, because its packets are translated twice (source.h). */
struct nn_nat_key {
	struct nn_addr saddr;
	struct nn_addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 reply; /* nn_nat_half */
	__u8 pad[2];
};

enum nn_nat_flags {
	NN_NAT_SEEN_REPLY = 1, /* this one and the next three: as in nn_ct_flags */
	NN_NAT_FIN_FORWARD = 2,
	NN_NAT_FIN_REPLY = 4,
	NN_NAT_RST = 8,
	NN_NAT_OPENED = 16, /* TCP: more than SYNs was sent. From outside: the client has acknowledged an answer */
	NN_NAT_HAS_SOURCE = 32, /* of the first two halves: the flow has the other two */
};

/* What becomes of the packet. It holds the addresses, because a connection may outlive the backend's number and its
 * Service. */
struct nn_nat_entry {
	struct nn_addr saddr;
	struct nn_addr daddr;
	__be16 sport;
	__be16 dport;
	__u32 last_seen; /* seconds of CLOCK_MONOTONIC */
	__u32 rev_nat_index; /* the Service */
	/* This field and the next one, in the client's entry. In an entry of replies of a TCP flow from outside: which
	 * acknowledgement proves that the client gets the answers (nn_nat_expect). Else 0. */
	__u32 backend_id;
	__u16 slot; /* slot of the frontend from which the backend was chosen */
	__u16 endpoint_id; /* the pod that called; a later pod with the same address has another number. 0: outside */
	__u8 flags; /* those of both directions are in the client's entry */
	__u8 pad[3];
};

/* What a socket knows about Services, stored at the socket itself (SK_STORAGE). A backend with the number of the Service
 * that the socket called: for getpeername, recvmsg and the Service names of flows. Or a frontend with the number of the
 * backend that its datagrams go to. */
struct nn_sock_end {
	struct nn_addr addr;
	__be16 port; /* 0: not in use */
	__u16 pad;
	__u32 number;
};

/* The packet that sock_service is run on: the ends of a connected UDP socket. */
struct nn_sock_question {
	__u8 pad[16]; /* an Ethernet header */
	struct nn_addr local;
	struct nn_addr remote;
	__be16 local_port;
	__be16 remote_port;
};

/* The same as nn_sock_end, of sockets that were opened before a version that stores it at the socket. Nothing is added.
 * (socket, backend) -> rev_nat_index; nn_sock_choice has the frontend in place of the backend, and a backend_id. */
struct nn_sock_revnat_key {
	__u64 cookie;
	struct nn_addr addr; /* backend */
	__be16 port;
	__u8 protocol;
	__u8 pad[5];
};

struct nn_sock_revnat_entry {
	__u32 rev_nat_index;
};

/* Fragments after the first carry no ports, and behind IPv6 extension headers not even the protocol. */
struct nn_frag_key {
	struct nn_addr saddr;
	struct nn_addr daddr;
	__u32 id; /* IPv4: 16 bits, and above them the protocol, which every fragment carries */
	__u32 ifindex; /* keeps the fragments of different pods apart */
};

struct nn_frag_entry {
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 pad;
	__u16 headers; /* bytes of the datagram that hold its headers: no later fragment may start before their end */
	__u16 pad2;
	__u32 created; /* nn_frag_time */
};

/* Tables whose entries are counted when they end in the programs: those with slots (fair.h), and the sockets' Services.
 * Append only. */
enum nn_table {
	NN_TABLE_CT = 0,
	NN_TABLE_FRAG = 1,
	NN_TABLE_SOCK = 2, /* what sockets know about Services (sock_lb.h) */
	NN_TABLE_NAT = 3,
};

enum nn_entry_end {
	NN_ENTRY_EXPIRED = 0,
	NN_ENTRY_EVICTED = 1, /* not expired: for a new entry */
	NN_ENTRY_REFUSED = 2, /* a new entry that found no room */
};

#define NN_ENTRY_ENDS 4 /* how many numbers each table has in nn_metrics_key */

/* The bytes of this struct are the index of a counter: the machine is little-endian. */
struct nn_metrics_key {
	__u8 reason; /* 0 forwarded, else the positive DropReason; 255 lost events */
	__u8 direction; /* 0: reason is nn_table * NN_ENTRY_ENDS + nn_entry_end, and packets counts entries */
	__u8 pad[2];
};

struct nn_metrics_entry {
	__u64 packets;
	__u64 bytes;
};

/* The generation of policy that is in force. User space writes both fields at once, and a program reads both at once,
 * once per packet. */
struct nn_state {
	__u32 generation;
	__u32 recheck_from; /* flows that were judged before this generation are judged again */
} __attribute__((aligned(8)));

/* Event types and observation points are Hubble's (monitor API) numbers. */
enum nn_event_type {
	NN_EVENT_DROP = 1,
	NN_EVENT_TRACE = 4,
	NN_EVENT_POLICY_VERDICT = 5,
	NN_EVENT_SOCK = 7,
};

enum nn_observation_point {
	NN_TO_ENDPOINT = 0,
	NN_TO_STACK = 3,
	NN_FROM_ENDPOINT = 5,
	NN_FROM_NETWORK = 10,
};

struct nn_event {
	__u8 type;
	__u8 point; /* trace: nn_observation_point */
	__u16 size; /* bytes of the whole record, so that a reader can skip unknown fields */
	__s32 reason; /* nn_drop, or 0 */
	__u64 time; /* ns of CLOCK_MONOTONIC */
	__u64 cookie; /* packets: cookie of the sending socket; sockets: of the network namespace; 0: not known */
	struct nn_addr saddr;
	struct nn_addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 direction; /* as the endpoint below sees it */
	__u8 ct_status;
	__u8 tcp_flags; /* FIN 1 SYN 2 RST 4 PSH 8 ACK 16 URG 32 */
	__u8 icmp_type;
	__u8 icmp_code;
	__u16 endpoint_id;
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rule_id;
	__u32 rev_nat_index;
	__u32 ifindex;
	__u32 length; /* bytes of the packet */
	__u8 src_mac[6];
	__u8 dst_mac[6];
	__u8 ip_version; /* 4, 6, or 0 if it is not IP */
	__u8 is_reply;
	__u8 pad[6];
};

#endif
