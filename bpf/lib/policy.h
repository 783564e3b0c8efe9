/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Identities and verdicts: address -> identity, address -> region, and the policy table keyed by both. */
#ifndef NN_POLICY_H
#define NN_POLICY_H

#include "common.h"

#define NN_POLICY_FULL_PREFIX 96
#define NN_IDENTITY_FIRST_POD 256 /* enum nn_identity */

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct nn_lpm_key);
	__type(value, struct nn_ipcache_entry);
} nn_ipcache SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct nn_lpm_key);
	__type(value, struct nn_cidr_entry);
} nn_cidr SEC(".maps");

/* All entries allow: any hit allows the packet, so entries can be added and removed one by one. An update adds new
 * entries first and removes old ones last, so traffic that both the old and the new rules allow is never
 * interrupted. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1048576);
	__type(key, struct nn_policy_key);
	__type(value, struct nn_policy_entry);
} nn_policy SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct nn_endpoint_key);
	__type(value, struct nn_endpoint_entry);
} nn_endpoint SEC(".maps");

NN_INLINE struct nn_endpoint_entry *nn_endpoint_lookup(const struct nn_addr *addr)
{
	struct nn_endpoint_key key = { .addr = *addr };

	return bpf_map_lookup_elem(&nn_endpoint, &key);
}

NN_INLINE __u32 nn_identity_of(const struct nn_addr *addr)
{
	struct nn_lpm_key key = { .prefixlen = NN_ADDR_BITS, .addr = *addr };
	struct nn_ipcache_entry *entry = bpf_map_lookup_elem(&nn_ipcache, &key);

	return entry ? entry->identity : NN_IDENTITY_WORLD;
}

/* True for an identity that is not a pod's: the node, other nodes, the world. 0 is a pod whose labels are not known
 * yet. */
NN_INLINE int nn_is_reserved(__u32 identity)
{
	return identity != 0 && identity < NN_IDENTITY_FIRST_POD;
}

NN_INLINE __u32 nn_region_of(const struct nn_addr *addr)
{
	struct nn_lpm_key key = { .prefixlen = NN_ADDR_BITS, .addr = *addr };
	struct nn_cidr_entry *entry = bpf_map_lookup_elem(&nn_cidr, &key);

	return entry ? entry->region : 0;
}

struct nn_policy_question {
	struct nn_addr peer;
	__u32 subject; /* identity of the endpoint that is checked */
	__u32 peer_identity;
	__be16 port; /* port of the server side */
	__u8 protocol;
	__u8 direction;
	__u8 subject_flags;
	__u8 pad[3];
};

/* Returns 0 and the rule, or NN_DROP_POLICY_DENIED. Looks up the peer's identity, then its region (ipBlock), then
 * "every peer". The pod's own node is always allowed (kubelet's probes). ICMP has port 0 and a protocol that no rule
 * names, so it passes only if a rule without ports allows the peer. */
NN_INLINE int nn_policy_verdict(const struct nn_policy_question *question, __u32 *rule_id)
{
	__u8 isolated = question->direction == NN_INGRESS ? NN_ENDPOINT_ISOLATED_INGRESS : NN_ENDPOINT_ISOLATED_EGRESS;
	struct nn_policy_key key = { .prefixlen = NN_POLICY_FULL_PREFIX,
				     .subject = question->subject,
				     .peer = question->peer_identity,
				     .direction = question->direction,
				     .protocol = question->protocol,
				     .port = question->port };
	struct nn_policy_entry *entry;

	*rule_id = 0;
	if (!nn_config.enforce_policy || !(question->subject_flags & isolated))
		return 0;
	if (question->peer_identity == NN_IDENTITY_HOST)
		return 0;
	entry = bpf_map_lookup_elem(&nn_policy, &key);
	if (!entry) {
		key.peer = nn_region_of(&question->peer);
		if (key.peer)
			entry = bpf_map_lookup_elem(&nn_policy, &key);
	}
	if (!entry) {
		key.peer = NN_IDENTITY_ANY;
		entry = bpf_map_lookup_elem(&nn_policy, &key);
	}
	if (!entry)
		return NN_DROP_POLICY_DENIED;
	*rule_id = entry->rule_id;
	return 0;
}

#endif
