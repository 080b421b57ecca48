# Sourced after jobs.sh: what a job of this test has left on the machine. Other jobs may run meanwhile: processes are told by the mark in
# their environment, shared memory by Open MPI's number of the job, temporary files by a folder of the test's own.
export TMPDIR=$work/tmp
mkdir -p "$TMPDIR"
# With POISE_CASE set in its environment a job is told from others of the same test.
# case_processes CASE: ids of its living processes, whatever they are called.
case_processes() {
    local folder
    for folder in $(grep -lzsx "POISE_CASE=$1" /proc/[0-9]*/environ 2>/dev/null); do
        folder=${folder%/environ}
        grep -qzsx "POISE_TEST_WORK=$work" "$folder/environ" 2>/dev/null || continue
        grep -q '^State:[[:space:]]*Z' "$folder/status" 2>/dev/null || echo "${folder#/proc/}"
    done
}
# case_ranks CASE: "RANK PID STATE" of its living ranks.
case_ranks() {
    local pid rank
    for pid in $(case_processes "$1"); do
        grep -qzs '^__scorer$' "/proc/$pid/cmdline" 2>/dev/null && continue
        rank=$({ tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null | sed -n 's/^OMPI_COMM_WORLD_RANK=//p')
        [ -z "$rank" ] || echo "$rank $pid $(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$pid/status" 2>/dev/null)"
    done
}
# Adds the Open MPI numbers of the case's jobs, in hexadecimal, to $work/CASE.numbers.
note_numbers() { # CASE
    local pid
    for pid in $(case_processes "$1"); do
        { tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null | sed -n 's/^OMPI_MCA_ess_base_jobid=//p'
    done | sort -u | while read -r number; do printf '%x\n' "$number"; done >>"$work/$1.numbers"
}
# what_is_left CASE: a line for each thing that is there and should not be; nothing is good.
what_is_left() {
    local number
    case_processes "$1" | while read -r pid; do echo "process $pid ($(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c1-80))"; done
    sort -u "$work/$1.numbers" 2>/dev/null | while read -r number; do
        find /dev/shm -name "*.$number.*" -printf 'shared memory %p\n' 2>/dev/null
    done
    find "$work/tmp/$1" -mindepth 1 -printf 'temporary file %p\n' 2>/dev/null | head -n 5
    grep -s " $work" /proc/net/unix | sed 's/^.* /socket /'
}
nothing_is_left() { [ -z "$(what_is_left "$1")" ]; }
