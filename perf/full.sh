#!/bin/sh
# The runs behind docs/bench.md, one after the other, and the page itself. As root, on a machine that does nothing else.
#
#   perf/full.sh [FOLDER]     where the reports go (default /var/tmp/nodenet-bench)
set -eu
cd "$(dirname "$0")/.."
out=${1:-/var/tmp/nodenet-bench}
bench=".venv/bin/nodenet bench"
every=crr,rr,udp,stream,program,update,policy,flows,memory
mkdir -p "$out"
# What an older run wrote must not stand for one that fails now.
rm -f "$out/counted.json" "$out/memory.json"

# The physical limit, every mode and every figure, from one Service to 50,000.
$bench --services 1,1000,10000,50000 --workloads $every --json "$out/full.json"
# The same again where it is short: two runs of one machine agree within what they print.
$bench --services 1,1000,10000 --workloads crr --json "$out/again.json"
$bench --workloads cni --json "$out/cni.json"
# In instructions, IPVS too.
$bench --vm 6.12 --services 1,1000,5000 --workloads crr,rr,udp --json "$out/counted.json" || echo "no virtual machine"
# Kernel memory in bytes, by a controller that a machine with cgroup v1 does not have.
$bench --vm 6.12 --services 1,1000,10000 --workloads memory --modes direct,ebpf,iptables,nftables \
	--json "$out/memory.json" || echo "no virtual machine"
[ -s "$out/memory.json" ] && memory="$out/memory.json" || memory=
[ -s "$out/counted.json" ] && counted="$out/counted.json" || counted=
.venv/bin/python -m perf.publish "$out/full.json" --again "$out/again.json" --cni "$out/cni.json" \
	${memory:+--memory "$memory"} ${counted:+--counted "$counted"}
$bench show "$out/full.json" --beside "$out/cni.json" ${memory:+--beside "$memory"} \
	${counted:+--beside "$counted"} --html "$out/full.html"
echo "$out/full.html"
