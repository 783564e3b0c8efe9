#!/bin/busybox sh
# PID 1 of the virtual machine, out of the initramfs. The host's root folder (virtiofs, read-only) under a layer in
# memory becomes the root. Few commands: a fork and exec costs 26 ms in here. PID 1 itself has to become the new root's
# first process (exec switch_root): otherwise the kernel looks for modprobe in the initramfs and module autoload fails.
b=/bin/busybox
for module in $($b cat /modules/order); do
    $b insmod "/modules/$module.ko"
done
$b mount -t virtiofs -o ro host /lower || exit 1
$b mount -t tmpfs -o size=75% tmpfs /upper
$b mkdir /upper/data /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /root || exit 1
$b mount -t proc proc /root/proc
$b mount -t sysfs sysfs /root/sys
$b mount -t devtmpfs devtmpfs /root/dev
$b mount -t tmpfs tmpfs /root/run
$b mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
$b mount -t bpf bpf /root/sys/fs/bpf
read -r _ _ release _ </root/proc/version
$b mkdir -p /root/dev/pts /root/dev/shm /root/run/nodenet-vm /root/usr/lib/modules
$b mount -t devpts devpts /root/dev/pts
$b rm -rf "/root/usr/lib/modules/$release"
$b ln -s "$($b cat /modules/folder)" "/root/usr/lib/modules/$release"
$b cp /command /root/run/nodenet-vm/command
$b stty -F /root/dev/ttyS1 raw -echo
exec $b switch_root /root /bin/sh /run/nodenet-vm/command
