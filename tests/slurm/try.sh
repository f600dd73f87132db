#!/bin/sh
# tests/slurm/try.sh: tries pipelines/slurm.sbatch against a Slurm of its own on this machine, with stub tools.
#
# Needs munged, slurmctld, slurmd and sbatch (Debian: apt-get install slurm-wlm munge) and root, since Debian's daemons
# want it. Everything lives in a temporary folder and ends with the script. No part of `make test`: it takes
# about four minutes, most of them waiting for Slurm's one-minute time limits. README.md tells what was seen.
set -u
cd "$(dirname "$0")/../.." || exit 1
work=$(mktemp -d)
chmod 755 "$work"
host=$(hostname -s)
daemons=
cleanup() {
    scancel --quiet --user "$(id -un)" 2>/dev/null
    sleep 1
    # slurmd, slurmctld, munged: each by the process id it wrote itself
    for daemon in slurmd slurmctld munged; do
        [ ! -s "$work/$daemon.pid" ] || kill "$(cat "$work/$daemon.pid")"
    done
    sleep 2
    [ -n "${KEEP-}" ] || rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

mkdir "$work/spool" "$work/state" "$work/tools" "$work/model"
head -c 128 /dev/urandom >"$work/munge.key"
chmod 600 "$work/munge.key"
cat >"$work/slurm.conf" <<CONF
ClusterName=try
SlurmctldHost=$host
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SchedulerType=sched/backfill
ReturnToService=2
KillWait=5
MinJobAge=600
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
NodeName=$host CPUs=1 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$work/slurm.conf"
munged --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munged.pid" \
    --log-file="$work/munged.log" --seed-file="$work/munge.seed" || exit 1
slurmctld || exit 1
slurmd || exit 1
tries=0
until [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ]; do
    tries=$((tries + 1))
    [ $tries -lt 60 ] || { echo "Slurm did not come up; its logs:" && tail "$work"/*.log && exit 1; }
    sleep 1
done
sbatch --version

for tool in ptq-init lr-wrap shard qat-step fold eval; do
    ln -s "$PWD/tests/pipelines/stub" "$work/tools/$tool"
done
touch "$work/model/config.json" "$work/model/a.safetensors" "$work/model/tokenizer.json"
echo text >"$work/text.txt"

passed=0
failed=0
check() { # WHAT FOUND EXPECTED
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
        echo "ok      $1: $3"
    else
        failed=$((failed + 1))
        echo "FAILED  $1: $2, expected $3"
    fi
}
# submit NAME SBATCH-OPTION... -- NAME=VALUE...: sets $job.
submit() {
    name=$1
    shift
    options=
    while [ "$1" != -- ]; do
        options="$options $1"
        shift
    done
    shift
    export STUB_LOG="$work/$name.log"
    job=$(sbatch --parsable --output="$work/$name.out" --time=1 --signal=B:USR1@20 $options pipelines/slurm.sbatch \
        llama3-8b-w4g128 MODEL="$work/model" DATA="$work/text.txt" EVAL="$work/text.txt" TOOLS="$work/tools/" \
        RUN="$work/run-$name" "$@")
}
field() { scontrol show job "$job" --oneliner | tr ' ' '\n' | sed -n "s/^$1=//p"; }
finish() { # SECONDS: waits for the job's end, sets $state, $code, $restarts
    left=$1
    until case $(field JobState) in COMPLETED | FAILED | CANCELLED | TIMEOUT) true ;; *) false ;; esac; do
        left=$((left - 1))
        [ $left -gt 0 ] || break
        sleep 1
    done
    state=$(field JobState)
    code=$(field ExitCode)
    restarts=$(field Restarts)
    printf -- '-- %s.out\n' "$name" && sed "s|$work/||g" "$work/$name.out"
    printf -- '-- calls of the stubs, without their arguments\n' && sed "s|$work/[^ ]*||g; s| -.*||" "$work/$name.log"
}

echo "== a job of 90 steps of a second, under a time limit of one minute"
export STUB_STEP_TIME=1
submit whole -- STEPS=90
finish 420
check "state" "$state" COMPLETED
check "exit code" "$code" 0:0
check "requeued, at least once" "$([ "$restarts" -ge 1 ] && echo yes)" yes
check "stopped by SIGUSR1" "$([ "$(grep -c 'stopped at step .* by SIGUSR1' "$work/whole.log")" = "$restarts" ] && echo each time)" "each time"
check "resumed" "$([ "$(grep -c 'resumed at step' "$work/whole.log")" = "$restarts" ] && echo each time)" "each time"
check "all steps" "$(grep -c 'trained to step 90' "$work/whole.log")" 1
check "each early stage once" "$(grep -c '^ptq-init skipped' "$work/whole.log")" "$restarts"
check "the table" "$(grep -c 'ppl .*text.txt' "$work/whole.out")" 1

echo "== the number of requeues is bounded"
export MAX_REQUEUES=1 STUB_STOP_AFTER=2 STUB_STEP_TIME=0
submit bounded -- STEPS=90
finish 120
check "state" "$state" FAILED
check "exit code" "$code" 75:0
check "requeued" "$restarts" 1
unset MAX_REQUEUES STUB_STOP_AFTER

echo "== a failure is the job's own"
export STUB_FAIL=lr-wrap:2
submit failing -- STEPS=2
finish 60
check "state" "$state" FAILED
check "exit code" "$code" 2:0
check "requeued" "$restarts" 0
unset STUB_FAIL

echo "== a cancelled job stays cancelled"
export STUB_STEP_TIME=1
submit cancelled -- STEPS=90
tries=0
until grep -q '^qat-step' "$work/cancelled.log" 2>/dev/null || [ $tries -eq 60 ]; do
    tries=$((tries + 1))
    sleep 1
done
sleep 3
scancel "$job"
finish 60
sleep 15
check "state" "$(field JobState)" CANCELLED
check "requeued" "$(field Restarts)" 0
check "its state saved" "$(grep -c 'stopped at step .* by SIGTERM' "$work/cancelled.log")" 1

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
