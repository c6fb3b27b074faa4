#!/bin/bash
# A real systemd as PID 1 of namespaces of its own, over a copy of this machine's root that vanishes with it.
# boot.sh SOURCE=TARGET... binds folders of this machine into it, read-only. Own cgroups first: else it would take over all processes.
set -eu
name=mergd-test-$$
for controller in unified systemd memory pids cpu; do
  [ -d /sys/fs/cgroup/$controller ] || continue
  mkdir -p /sys/fs/cgroup/$controller/$name
  echo $$ > /sys/fs/cgroup/$controller/$name/cgroup.procs
done
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then  # a machine with one hierarchy
  mkdir -p /sys/fs/cgroup/$name
  echo $$ > /sys/fs/cgroup/$name/cgroup.procs
fi
exec unshare --pid --fork --mount --cgroup --ipc --uts --net --kill-child /bin/bash -euc '
  mount --make-rprivate /
  one=$([ -f /sys/fs/cgroup/cgroup.controllers ] && echo yes || echo no)
  scratch=$(mktemp -d /run/mergd-test.XXXXXX); mount -t tmpfs tmpfs $scratch; mkdir $scratch/{upper,work,root}
  mount -t overlay overlay -o lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work $scratch/root
  cd $scratch/root
  mount -t proc proc proc; mount -t sysfs sysfs sys
  if [ $one = yes ]; then mount -t cgroup2 cgroup2 sys/fs/cgroup; else
    mount -t tmpfs tmpfs sys/fs/cgroup; mkdir sys/fs/cgroup/{unified,systemd,memory}
    mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
    mount -t cgroup -o memory cgroup sys/fs/cgroup/memory
  fi
  mount -t tmpfs -o mode=755 tmpfs dev; mkdir dev/{pts,shm}
  for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
  mount -t devpts devpts dev/pts; mount -t tmpfs tmpfs dev/shm
  ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd; ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr
  for pair in "$@"; do
    target=${pair#*=}; mkdir -p .$target; mount --bind ${pair%%=*} .$target; mount -o remount,bind,ro .$target
  done
  mount -t tmpfs -o mode=755 tmpfs run
  rm -rf etc/systemd/system/*.wants etc/systemd/system/mergd*  # nothing of this machine is started
  mkdir old; pivot_root . old; umount -l old
  mount --make-rshared /
  exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --log-target=console --unit=basic.target --show-status=no
' boot "$@"
