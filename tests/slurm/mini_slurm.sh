#!/usr/bin/env bash
# shellcheck disable=SC2015,SC2016  # `a && b || c` with a c that may run twice; scripts for inner shells
# mini_slurm.sh - a private, disposable, REAL Slurm cluster on one machine.
#
#   munged + slurmctld + N x slurmd, everything (conf, munge key, sockets, logs,
#   state) below one state directory; nothing under /etc, /var or /run is touched
#   (except /run/netns in -m ns).  No systemd, no cgroups, no slurmdbd.
#
#   mini_slurm.sh start  [-n NODES] [-d DIR] [-m plain|ns] [-c CPUS] [-M MB] [-g GPUS]
#   mini_slurm.sh stop   [-d DIR]        cancel jobs, stop daemons, remove namespaces
#   mini_slurm.sh clean  [-d DIR]        stop + delete DIR
#   mini_slurm.sh status [-d DIR]        daemons, memory, sinfo, squeue (rc 0 = all up)
#   mini_slurm.sh env    [-d DIR]        print "export SLURM_CONF=..." for eval
#   mini_slurm.sh exec   [-d DIR] CMD..  run CMD with SLURM_CONF set
#   mini_slurm.sh run    [start options] CMD..  start, CMD, clean - all inside one throw-away
#                        namespace (no root needed, no network but the cluster's, nothing survives)
#   fault injection (NODE = n1, n2, ...):
#   mini_slurm.sh kill-slurmd NODE       SIGKILL only the slurmd (its jobs live on)
#   mini_slurm.sh start-slurmd NODE      start it again
#   mini_slurm.sh kill-ctld|start-ctld   controller outage
#   mini_slurm.sh crash NODE             power loss: (ns: cable out, then) kill all of it
#   mini_slurm.sh revive NODE            (ns: new machine, cable in, then) slurmd start
#   mini_slurm.sh net-down|net-up NODE   ns only: network partition
#
# -m plain: all nodes share host, hostname and 127.0.0.1 and differ by port.
#           Works as root and as an ordinary user (then only for that user's jobs).
# -m ns:    every node is its own net+pid+uts+mount namespace: own hostname (= node
#           name), own IP on a private bridge, own /etc/hosts, own /proc.  Needs root,
#           or a user namespace that keeps capabilities.
#
# Packages (Debian 12): apt-get install --no-install-recommends slurm-wlm munge
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
unset SLURM_CONF CDPATH
umask 022

privileged() { unshare --mount true 2>/dev/null; }
die() { echo "mini_slurm: $*" >&2; exit 1; }

# ---------------------------------------------------------------- arguments
cmd=${1:-help}; [ $# -gt 0 ] && shift
node=; if [[ ${1:-} =~ ^n[0-9]+$ ]]; then node=$1; shift; fi
nodes=4 dir=${MINI_SLURM_DIR:-/tmp/mini_slurm.$(id -u)} mode=plain cpus=4 mem=4000 gpus=0
while getopts n:d:m:c:M:g: o; do
  case $o in
    n) nodes=$OPTARG ;; d) dir=$OPTARG ;; m) mode=$OPTARG ;;
    c) cpus=$OPTARG ;; M) mem=$OPTARG ;; g) gpus=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
dir=$(realpath -m "$dir")
[[ $nodes =~ ^[0-9]+$ && $nodes -ge 1 && $nodes -le 200 ]] || die "bad -n $nodes"
[ ${#dir} -le 64 ] || die "state dir too long for the unix sockets below it (108 characters): $dir"
[[ $dir =~ ^/[A-Za-z0-9._/-]+$ ]] || die "state dir: only plain characters allowed: $dir"
etc=$dir/etc run=$dir/run log=$dir/log conf=$dir/etc/slurm.conf meta=$dir/etc/meta
# Timeouts, short for tests; override by environment.
: "${MS_SLURMD_TIMEOUT:=15}"  # s without answer until a node is DOWN
: "${MS_KILLWAIT:=5}"         # s between SIGTERM and SIGKILL (production default 30)
: "${MS_CRED_EXPIRE:=5}"      # ALSO the hold-off of a requeued job (production default 120)
: "${MS_EXTRA:=}"             # extra slurm.conf lines

# ---------------------------------------------------------------- processes
# A pid file holds "pid starttime", so that a recycled pid is never signalled.
starttime() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
procstate() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f1; }
record()    { echo "$2 $(starttime "$2")" >"$run/$1.pid"; }
pidof_()    { # prints the pid if the recorded process is alive (and no zombie)
  local p s
  read -r p s 2>/dev/null <"$run/$1.pid" || return 1
  [ -n "$s" ] && [ "$(starttime "$p")" = "$s" ] && [ "$(procstate "$p")" != Z ] && echo "$p"
}
launch() { # NAME CMD...: background, own session, no inherited stdio or other fds
  local name=$1 fd; shift
  (
    for fd in /proc/self/fd/*; do
      fd=${fd##*/}
      if [ "$fd" -gt 2 ] && [ "$fd" -ne 255 ]; then eval "exec $fd>&-"; fi
    done 2>/dev/null
    exec setsid "$@" </dev/null >>"$log/$name.out" 2>&1
  ) &
  record "$name" $!
}
wait_gone() { # NAME SECONDS
  local i
  for ((i = 0; i < $2 * 20; i++)); do pidof_ "$1" >/dev/null || return 0; sleep 0.05; done
  return 1
}
stop_one() { # NAME [grace s]: TERM, then KILL
  local p
  if p=$(pidof_ "$1"); then
    kill -TERM "$p" 2>/dev/null || true
    if ! wait_gone "$1" "${2:-5}"; then kill -KILL "$p" 2>/dev/null || true; wait_gone "$1" 5 || true; fi
  fi
  rm -f "$run/$1.pid"
}
node_procs() { # NODE: pids of this cluster's job processes on NODE (plain mode).
  # Tasks carry SLURMD_NODENAME and SLURM_CONF; their slurmstepd is found as parent.
  local p pp e
  for p in /proc/[0-9]*; do
    e=$(tr '\0' '\n' 2>/dev/null <"$p/environ") || continue
    grep -qx "SLURMD_NODENAME=$1" <<<"$e" && grep -qx "SLURM_CONF=$conf" <<<"$e" || continue
    echo "${p##*/}"
    pp=$(sed 's/.*) //' "$p/stat" 2>/dev/null | cut -d' ' -f2)
    case $(tr '\0' ' ' 2>/dev/null <"/proc/${pp:-0}/cmdline") in slurmstepd:*) echo "$pp" ;; esac
  done | sort -un
}

# ---------------------------------------------------------------- configuration
# shellcheck source=/dev/null
load_meta() { [ -r "$meta" ] || die "no cluster in $dir"; . "$meta"; export SLURM_CONF=$conf; }
names() { seq -f 'n%g' 1 "$nodes"; }

port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
pick_ports() { # nodes+1 free ports below the ephemeral range, start derived from DIR
  local b i t
  b=$((20000 + 16#$tag % 11000))
  for ((t = 0; t < 50; t++)); do
    for ((i = 0; i <= nodes; i++)); do port_free $((b + i)) || break; done
    [ "$i" -gt "$nodes" ] && { port=$b; return; }
    b=$((20000 + (b - 20000 + nodes + 7) % 11000))
  done
  die "no free ports"
}

write_conf() {
  local i where host caddr
  if [ "$mode" = ns ]; then host=ctl caddr=$subnet.254; else host=$(hostname -s) caddr=127.0.0.1; fi
  cat >"$conf" <<EOF
ClusterName=mini$tag
SlurmctldHost=$host($caddr)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$run/munge.sock,cred_expire=$MS_CRED_EXPIRE
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$run/slurmctld.self.pid
SlurmdPidFile=$run/slurmd-%n.self.pid
SlurmctldLogFile=$log/slurmctld.log
SlurmdLogFile=$log/slurmd-%n.log
# no cgroups, no binding, no accounting daemon
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$log/jobcomp.txt
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
# scheduling: quick reactions for tests
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=$((mem / cpus))
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
EnforcePartLimits=ALL
ReturnToService=2
SlurmdTimeout=$MS_SLURMD_TIMEOUT
SlurmctldTimeout=15
MessageTimeout=5
TCPTimeout=2
KillWait=$MS_KILLWAIT
MinJobAge=3600
InactiveLimit=0
UnkillableStepTimeout=30
# bind to the address that the own host name resolves to, not to 0.0.0.0 (ns: slurmd and
# srun may bind to all, else a srun outside of the namespaces would offer its 127.0.0.1)
CommunicationParameters=NoCtldInAddrAny$( [ "$mode" = ns ] || echo ",NoInAddrAny" )
$MS_EXTRA
EOF
  if [ "$gpus" -gt 0 ]; then # fake GPUs: plain files, only counted and numbered
    mkdir -p "$dir/dev"
    for ((i = 0; i < gpus; i++)); do ln -s /dev/null "$dir/dev/gpu$i"; done # must be a char device
    echo "GresTypes=gpu" >>"$conf"
    echo "NodeName=n[1-$nodes] Name=gpu File=$dir/dev/gpu[0-$((gpus - 1))]" >"$etc/gres.conf"
  fi
  : >"$etc/hosts"; echo "127.0.0.1 localhost" >>"$etc/hosts"
  for ((i = 1; i <= nodes; i++)); do
    if [ "$mode" = ns ]; then
      where="NodeHostname=n$i NodeAddr=$subnet.$i Port=$((port + 1))"
      echo "$subnet.$i n$i" >>"$etc/hosts"
    else
      where="NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i))"
      echo "127.0.0.1 n$i" >>"$etc/hosts"
    fi
    echo "NodeName=n$i $where CPUs=$cpus RealMemory=$mem$( [ "$gpus" -gt 0 ] && echo " Gres=gpu:$gpus" ) State=UNKNOWN" >>"$conf"
  done
  echo "$caddr $host" >>"$etc/hosts"
  # No DNS inside a node: torch's TCPStore looks up every peer in reverse, and an
  # unreachable name server makes that 10 s per connection.
  { grep -v '^hosts:' /etc/nsswitch.conf || true; echo "hosts: files"; } >"$etc/nsswitch.conf"
  cat >>"$conf" <<EOF
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=5 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL Default=NO  PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
EOF
}

# ---------------------------------------------------------------- nodes
ns_create() { # NODE: one "machine": a pid 1 that only reaps, in fresh namespaces
  local n=$1 i=${1#n} hold=ms$tag-$1
  if [ ! -e "/run/netns/$hold" ]; then
    ip netns add "$hold"
    ip link add "ms${tag}v$i" type veth peer name eth0 netns "$hold"
    ip link set "ms${tag}v$i" master "ms${tag}br" up
    ip -n "$hold" addr add "$subnet.$i/24" dev eth0
    ip -n "$hold" link set lo up
    ip -n "$hold" link set eth0 up
    ip -n "$hold" route add default via "$subnet.254"
  fi
  ip link set "ms${tag}v$i" up
  launch "node-$n" nsenter --net="/run/netns/$hold" \
    unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc \
    bash -c 'hostname "$1"; mount --bind "$2/hosts" /etc/hosts; mount --bind "$2/nsswitch.conf" /etc/nsswitch.conf
             trap : TERM; echo ready >"$3"; while :; do sleep 3600 & wait -n; done' \
    init "$n" "$etc" "$run/node-$n.ready"
  until_ok 10 test -s "$run/node-$n.ready" || die "$n: no namespaces, see $log/node-$n.out"
  rm -f "$run/node-$n.ready"
}
child_of() { pgrep -o -P "$1"; }
ns_init() { # NODE: host pid of the namespace's pid 1 (the child of unshare)
  local p; p=$(pidof_ "node-$1") && child_of "$p"
}
start_slurmd() { # NODE
  local n=$1 i
  mkdir -p "$dir/spool/$n"
  if [ "$mode" = ns ]; then
    [ -n "$(ns_init "$n" || true)" ] || ns_create "$n"
    launch "slurmd-$n" nsenter -t "$(ns_init "$n")" -m -u -i -n -p \
      env SLURM_CONF="$conf" slurmd -D -N "$n"
  elif privileged; then # private /etc/hosts so that the node names resolve
    launch "slurmd-$n" unshare --mount bash -c 'mount --bind "$1" /etc/hosts
      export SLURM_CONF=$2; exec slurmd -D -N "$3"' _ "$etc/hosts" "$conf" "$n"
  else
    launch "slurmd-$n" env SLURM_CONF="$conf" slurmd -D -N "$n"
  fi
}
slurmd_pid() { # NODE: host pid of the slurmd itself (ns: the child of nsenter)
  local p; p=$(pidof_ "slurmd-$1") || return 1
  if [ "$mode" = ns ]; then child_of "$p"; else echo "$p"; fi
}
until_ok() { # SECONDS CMD: repeat CMD until it succeeds
  local end=$((SECONDS + $1)); shift
  until "$@"; do [ "$SECONDS" -lt "$end" ] || return 1; sleep 0.05; done
}
ctld_up()   { timeout 3 scontrol ping 2>/dev/null | grep -q ' UP'; }
munged_up() { munge -n -S "$run/munge.sock" >/dev/null 2>&1; }
all_up()    { # every node answers and is usable
  [ "$(timeout 1 sinfo -h -N -p main -o '%T' 2>/dev/null | grep -cE '^(idle|mixed|allocated)$')" = "$nodes" ]
}
no_jobs()   { [ -z "$(timeout 3 squeue -h -t R,CG,S -o %i 2>/dev/null)" ]; }

start_ctld() {
  # private /etc/hosts (names resolve); ns: host name "ctl", so that it binds the bridge address
  if privileged; then
    launch slurmctld unshare --mount --uts bash -c 'mount --bind "$1" /etc/hosts
      [ "$2" != ns ] || hostname ctl; exec slurmctld -D' _ "$etc/hosts" "$mode"
  else launch slurmctld slurmctld -D; fi
  until_ok 15 ctld_up || die "slurmctld did not come up, see $log/slurmctld.out"
}

# ---------------------------------------------------------------- commands
do_start() {
  local t0 n
  t0=$(date +%s.%N)
  for n in munged slurmctld slurmd sinfo unshare; do command -v $n >/dev/null || die "$n is not installed"; done
  [[ $mode = plain || $mode = ns ]] || die "bad -m $mode"
  [ "$mode" != ns ] || privileged || die "-m ns needs root or the capabilities of a user namespace"
  if [ -r "$meta" ]; then
    # shellcheck source=/dev/null
    ( . "$meta"; pidof_ slurmctld >/dev/null ) && die "already running in $dir (stop it first)"
    ( do_stop ) >/dev/null 2>&1 || true   # sub-shell: it loads the old cluster's parameters
  fi
  # Always from clean state: a stale StateSaveLocation resurrects old jobs.
  if [ -e "$dir" ]; then
    [ -z "$(ls -A "$dir")" ] || [ -e "$dir/.mini_slurm" ] || die "$dir exists and is not mine"
    rm -rf "$dir"
  fi
  mkdir -p "$etc" "$run" "$log" "$dir/state" "$dir/spool"; : >"$dir/.mini_slurm"
  mkdir -m 700 "$dir/munge"
  tag=$(md5sum <<<"$dir" | cut -c1-6)
  subnet=10.$((192 + 16#${tag:0:2} % 60)).$((16#${tag:2:2}))
  pick_ports
  printf '%s\n' "tag=$tag subnet=$subnet port=$port nodes=$nodes mode=$mode cpus=$cpus mem=$mem gpus=$gpus" >"$meta"
  write_conf
  export SLURM_CONF=$conf

  if [ "$mode" = ns ]; then
    ip link add "ms${tag}br" type bridge
    ip addr add "$subnet.254/24" dev "ms${tag}br"
    ip link set "ms${tag}br" up
  fi
  mungekey --create --keyfile="$dir/munge/key" --bits=1024
  # --force: munged refuses any group-writable parent directory, which CI work spaces often are
  launch munged munged --foreground --force --key-file="$dir/munge/key" --socket="$run/munge.sock" \
    --pid-file="$run/munged.self.pid" --seed-file="$dir/munge/seed" --log-file="$dir/munge/log" \
    --group-update-time=-1
  until_ok 10 munged_up || die "munged did not come up, see $log/munged.out $dir/munge/log"
  start_ctld
  for n in $(names); do start_slurmd "$n"; done
  until_ok 30 all_up || die "nodes did not come up, see $log"
  echo "mini_slurm: $nodes nodes ($mode) up in $(awk -v a="$t0" -v b="$(date +%s.%N)" 'BEGIN{printf "%.1f", b-a}') s; export SLURM_CONF=$conf"
}

do_stop() {
  load_meta
  local n p
  if pidof_ slurmctld >/dev/null; then
    # Pending first (so that nothing starts while we cancel), then the rest.
    timeout 10 scancel --quiet --state=PENDING --user="$(id -un)" 2>/dev/null || true
    timeout 10 scancel --quiet --user="$(id -un)" 2>/dev/null || true
    until_ok $((MS_KILLWAIT + 4)) no_jobs || true
  fi
  for n in $(names); do
    p=$(slurmd_pid "$n" || true)
    if [ -n "$p" ]; then kill -TERM "$p" 2>/dev/null || true; fi
  done
  stop_one slurmctld 10
  for n in $(names); do
    wait_gone "slurmd-$n" 5 || true; stop_one "slurmd-$n" 1
    if [ "$mode" = ns ]; then ns_destroy "$n"
    else for p in $(node_procs "$n"); do kill -KILL "$p" 2>/dev/null || true; done; fi
  done
  if [ "$mode" = ns ]; then ip link del "ms${tag}br" 2>/dev/null || true; fi
  stop_one munged
  rm -f "$run"/*.sock "$run"/*.lock
}
ns_destroy() { # NODE
  local p
  if p=$(pidof_ "node-$1"); then kill -KILL "$p" 2>/dev/null || true; wait_gone "node-$1" 5 || true; fi
  rm -f "$run/node-$1.pid"
  ip link del "ms${tag}v${1#n}" 2>/dev/null || true
  ip netns del "ms$tag-$1" 2>/dev/null || true
}

do_status() {
  load_meta
  local x p rc=0 kb sum=0
  for x in munged slurmctld $(names | sed 's/^/slurmd-/'); do
    case $x in slurmd-*) p=$(slurmd_pid "${x#slurmd-}" || true) ;; *) p=$(pidof_ "$x" || true) ;; esac
    if [ -n "$p" ]; then
      kb=$(awk '/^Pss:/{print $2}' "/proc/$p/smaps_rollup" 2>/dev/null || echo 0); sum=$((sum + ${kb:-0}))
      echo "$x up pid=$p pss=${kb:-?}kB"
    else echo "$x DOWN"; rc=1; fi
  done
  echo "mode=$mode dir=$dir total_pss=$((sum / 1024))MB"
  timeout 10 sinfo -N -o '%N %P %T %c %m %G %E' || rc=1
  timeout 10 squeue -a || rc=1
  return $rc
}

need_node() { load_meta; node=${node:-${1:-}}; [[ $node =~ ^n[0-9]+$ && ${node#n} -le $nodes && ${node#n} -ge 1 ]] || die "which node? (n1..n$nodes)"; }

do_run() { # CMD...: everything in an outer namespace whose end ends every process in it
  [ $# -gt 0 ] || die "run: which command?"
  local user=(); [ "$(id -u)" = 0 ] || user=(--user --map-current-user --keep-caps)
  exec unshare "${user[@]}" --net --mount --pid --fork --kill-child --mount-proc bash -c '
    set -eu; me=$1 opts=$2; shift 2
    mkdir -p /run/netns 2>/dev/null || true; mount -t tmpfs tmpfs /run; ip link set lo up
    # Slurm looks names up with AI_ADDRCONFIG: without any address besides 127.0.0.1 nothing resolves.
    ip link add msany0 type bridge; ip addr add 198.18.255.254/32 dev msany0; ip link set msany0 up
    export SLURM_CONF="$MINI_SLURM_DIR/etc/slurm.conf"
    "$me" start $opts || exit 1
    rc=0; "$@" || rc=$?
    "$me" clean; exit $rc' _ "$(realpath "$0")" "-n $nodes -m $mode -c $cpus -M $mem -g $gpus" "$@"
}

case $cmd in
  start)  do_start ;;
  run)    export MINI_SLURM_DIR=$dir; do_run "$@" ;;
  stop)   do_stop; echo "mini_slurm: stopped" ;;
  clean)  if [ -e "$meta" ]; then do_stop; fi
          if [ -e "$dir/.mini_slurm" ]; then rm -rf "$dir"; fi; echo "mini_slurm: cleaned" ;;
  status) do_status ;;
  env)    load_meta; echo "export SLURM_CONF=$conf" ;;
  exec)   load_meta; exec "$@" ;;
  kill-slurmd)  need_node "$@"; kill -KILL "$(slurmd_pid "$node")" ;;
  start-slurmd) need_node "$@"; slurmd_pid "$node" >/dev/null 2>&1 && die "$node: slurmd runs"; start_slurmd "$node" ;;
  kill-ctld)    load_meta; kill -KILL "$(pidof_ slurmctld)" ;;
  start-ctld)   load_meta; pidof_ slurmctld >/dev/null && die "slurmctld runs"; start_ctld ;;
  crash)  need_node "$@"
          if [ "$mode" = ns ]; then
            ip link set "ms${tag}v${node#n}" down
            kill -KILL "$(pidof_ "node-$node")"; wait_gone "node-$node" 5
          else
            for p in $(slurmd_pid "$node" || true) $(node_procs "$node"); do kill -KILL "$p" 2>/dev/null || true; done
            for p in $(node_procs "$node"); do kill -KILL "$p" 2>/dev/null || true; done # forked meanwhile
          fi ;;
  revive) need_node "$@"; slurmd_pid "$node" >/dev/null 2>&1 && die "$node: slurmd runs"
          start_slurmd "$node" ;;
  net-down|net-up) need_node "$@"; [ "$mode" = ns ] || die "$cmd needs -m ns"
          ip link set "ms${tag}v${node#n}" "${cmd#net-}" ;;
  *) sed -n '3,37s/^# \{0,1\}//p' "$0"; [ "$cmd" = help ] || exit 2 ;;
esac
