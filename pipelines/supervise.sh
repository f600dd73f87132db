# Read by pipelines/run and pipelines/slurm.sbatch: runs a command, hands it the signals that arrive meanwhile, and
# learns its own exit status.
#
# A shell runs a trap only between commands, so the command runs in the background and is waited for. Background commands
# of a shell ignore SIGINT, hence SIGINT is handed on as SIGTERM.

stopped= # the last signal that came
signals=0
running= # process id of the command
unsent=  # a signal that came before that was known
hand_on() {
    stopped=$1
    signals=$((signals + 1))
    if [ -n "$running" ]; then
        kill -s "$2" "$running" 2>/dev/null || :
    else
        unsent=$2
    fi
}
trap 'hand_on SIGTERM TERM' TERM
trap 'hand_on SIGINT TERM' INT
trap 'hand_on SIGUSR1 USR1' USR1

# supervise COMMAND...: runs it and sets $status.
supervise() {
    status=0
    seen=$signals
    "$@" &
    running=$!
    if [ -n "$unsent" ]; then
        kill -s "$unsent" "$running" 2>/dev/null || :
        unsent=
    fi
    # A trap ends `wait` early with a status of its own, so wait again; 127 then means that there was nothing left to
    # wait for: the first status was the command's.
    wait "$running" || status=$?
    while [ "$signals" -ne "$seen" ]; do
        seen=$signals
        again=0
        wait "$running" || again=$?
        [ "$again" -eq 127 ] || status=$again
    done
    running=
}
