"""kube-proxy's rules: the same Services as for eBPF, in the shapes of its modes iptables, nftables and IPVS.

The renderers are pure: Services in, text out for `iptables-restore`, `nft -f -`, `ipset restore`, `ipvsadm -R`. The
benchmark runs that text on its own nodes. `main` is a process that keeps the rules of one node up to date; the lab
starts it in each node's namespace.
"""
