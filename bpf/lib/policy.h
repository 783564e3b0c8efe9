/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Identities and verdicts: address -> identity, address -> region, and the policy table keyed by both. */
#ifndef NN_POLICY_H
#define NN_POLICY_H

#include "context.h"

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

/* For a lookup on its own. The lookups for one packet use the generation in its context. */
NN_INLINE __u32 nn_generation(void)
{
	struct nn_state state = {};

	nn_state_read(&state);
	return state.generation;
}

NN_INLINE struct nn_endpoint_entry *nn_endpoint_lookup(const struct nn_addr *addr)
{
	struct nn_endpoint_key key = { .addr = *addr };

	return bpf_map_lookup_elem(&nn_endpoint, &key);
}

NN_INLINE __u32 nn_identity_of(const struct nn_addr *addr, __u32 generation)
{
	struct nn_lpm_key key = { .prefixlen = NN_ADDR_BITS, .addr = *addr };
	struct nn_ipcache_entry *entry = bpf_map_lookup_elem(&nn_ipcache, &key);
	__u32 identity = 0;

	if (entry)
		identity = nn_is_in_force(entry->since, generation) ? entry->identity : entry->was;
	return identity ?: NN_IDENTITY_WORLD;
}

/* True for an identity that is not a pod's: the node, other nodes, the world. 0 is a pod whose labels are not known
 * yet. */
NN_INLINE int nn_is_reserved(__u32 identity)
{
	return identity != 0 && identity < NN_IDENTITY_FIRST_POD;
}

NN_INLINE __u32 nn_region_of(const struct nn_addr *addr, __u32 generation)
{
	struct nn_lpm_key key = { .prefixlen = NN_ADDR_BITS, .addr = *addr };
	struct nn_cidr_entry *entry = bpf_map_lookup_elem(&nn_cidr, &key);

	if (!entry)
		return 0;
	return nn_is_in_force(entry->since, generation) ? entry->region : entry->was;
}

/* Look up one rule. Returns the stronger one of it and `verdict`, whose rule is `rule_id`. */
NN_INLINE __u32 nn_policy_find(const struct nn_policy_key *key, __u32 generation, __u32 verdict, __u32 *rule_id)
{
	struct nn_policy_entry *entry = bpf_map_lookup_elem(&nn_policy, key);
	struct nn_rule *rule;

	if (!entry)
		return verdict;
	rule = nn_is_in_force(entry->since, generation) ? &entry->now : &entry->was;
	if (rule->verdict <= verdict)
		return verdict;
	*rule_id = rule->rule_id;
	return rule->verdict;
}

/* Ask one tier, which the key's direction names: look up the peer's identity, then its region (ipBlock), then "every
 * peer". The strongest rule decides; without `all` the rules are equally strong, and the first one that is found decides.
 * Returns its verdict and sets the view's rule; 0: no rule matches. */
NN_INLINE __u32 nn_policy_tier(struct nn_policy_key *key, struct nn_view *view, __u32 generation, int all)
{
	__u32 verdict;

	view->rule_id = 0;
	key->peer = view->peer_identity;
	verdict = nn_policy_find(key, generation, 0, &view->rule_id);
	if (!verdict || all) {
		key->peer = nn_region_of(&view->flow.remote, generation);
		if (key->peer)
			verdict = nn_policy_find(key, generation, verdict, &view->rule_id);
	}
	if (!verdict || all) {
		key->peer = NN_IDENTITY_ANY;
		verdict = nn_policy_find(key, generation, verdict, &view->rule_id);
	}
	return verdict;
}

/* Ask policy about the view's flow, as if it was opened in this direction. The port is the server's: the remote port if
 * the pod opened the flow, else the pod's own. Returns 0 or NN_DROP_POLICY_DENIED, and sets the view's rule to the one
 * that decided.
 *
 * With a TIERED flag the Admin tier is asked first. If it does not decide, the rules of the other tiers do, and without
 * one the isolation does. The pod's own node is always allowed (kubelet's probes). ICMP has port 0 and a protocol that no
 * rule names, so only rules without ports match it. */
NN_GLOBAL int nn_policy_ask(__u32 side, __u8 direction)
{
	struct nn_context *context = nn_context_now();
	struct nn_policy_key key = { .prefixlen = NN_POLICY_FULL_PREFIX, .direction = direction };
	const struct nn_ct_key *flow;
	__u32 generation, action = 0;
	__u8 isolated, tiered;
	struct nn_view *view;

	if (!context)
		return NN_DROP_INVALID_PACKET;
	view = nn_view_of(context, side);
	flow = &view->flow;
	view->rule_id = 0;
	isolated = direction == NN_INGRESS ? NN_ENDPOINT_ISOLATED_INGRESS : NN_ENDPOINT_ISOLATED_EGRESS;
	tiered = direction == NN_INGRESS ? NN_ENDPOINT_TIERED_INGRESS : NN_ENDPOINT_TIERED_EGRESS;
	isolated &= view->subject_flags;
	tiered &= view->subject_flags;
	if (!nn_config.enforce_policy || !(isolated | tiered) || view->peer_identity == NN_IDENTITY_HOST)
		return 0;
	key.subject = view->subject;
	key.protocol = flow->protocol;
	if (flow->protocol != IPPROTO_ICMP && flow->protocol != IPPROTO_ICMPV6)
		key.port = direction == NN_EGRESS ? flow->remote_port : flow->pod_port;
	generation = context->state.generation;
	if (tiered) {
		key.direction = direction + NN_RULE_ADMIN;
		action = nn_policy_tier(&key, view, generation, 1) & 0xff;
		key.direction = direction;
	}
	if (action != NN_ACTION_ALLOW && action != NN_ACTION_DENY)
		action = nn_policy_tier(&key, view, generation, tiered) & 0xff;
	if (!action)
		return isolated ? NN_DROP_POLICY_DENIED : 0;
	return action == NN_ACTION_ALLOW ? 0 : NN_DROP_POLICY_DENIED;
}

#endif
