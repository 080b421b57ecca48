# Covering arrays. pairs NAME=VALUE,VALUE,... ...: prints rows "NAME=VALUE NAME=VALUE ...", few of them, so that every two values of two
# factors meet in some row; the same rows each time. product, with the same arguments, prints every combination. pairs_missing ROWS ...
# prints the pairs that no line of the file ROWS holds. Values have no blanks and no "|".
pairs() {
    awk -v factors="$*" '
    function draw(bound) { state = (state * 1103515245 + 12345) % 2147483648; return int(state / 65536) % bound }
    # New pairs that value v of factor f makes with what the candidate row holds already.
    function gain(f, v,    g, n) { for (g = 1; g <= count; g++) if (row[g] && (f, v, g, row[g]) in open) n++; return n + 0 }
    BEGIN {
        count = split(factors, word, " ")
        for (f = 1; f <= count; f++) {
            name[f] = word[f]; sub(/=.*/, "", name[f])
            list = word[f]; sub(/^[^=]*=/, "", list)
            size[f] = split(list, value, ",")
            for (v = 1; v <= size[f]; v++) text[f, v] = value[v]
        }
        for (f = 1; f <= count; f++) for (g = 1; g <= count; g++) if (f != g)
            for (v = 1; v <= size[f]; v++) for (w = 1; w <= size[g]; w++) { open[f, v, g, w] = 1; left++ }
        state = 7
        while (left > 0) {
            most = -1
            for (attempt = 0; attempt < 60; attempt++) {
                for (f = 1; f <= count; f++) { row[f] = 0; order[f] = f }
                for (f = count; f > 1; f--) { g = 1 + draw(f); swap = order[f]; order[f] = order[g]; order[g] = swap }
                total = 0
                for (i = 1; i <= count; i++) {
                    f = order[i]; best = -1; first = draw(size[f])
                    for (v = 0; v < size[f]; v++) {
                        candidate = 1 + (first + v) % size[f]
                        new = gain(f, candidate)
                        if (i == 1) { new = 0; for (g = 1; g <= count; g++) for (w = 1; w <= size[g]; w++) new += (f, candidate, g, w) in open }
                        if (new > best) { best = new; pick = candidate }
                    }
                    if (i > 1) total += best
                    row[f] = pick
                }
                if (total > most) { most = total; for (f = 1; f <= count; f++) kept[f] = row[f] }
            }
            line = ""
            for (f = 1; f <= count; f++) {
                line = line (f > 1 ? " " : "") name[f] "=" text[f, kept[f]]
                for (g = 1; g <= count; g++) if ((f, kept[f], g, kept[g]) in open) { delete open[f, kept[f], g, kept[g]]; left-- }
            }
            print line
        }
    }'
}
product() {
    local rows=("") next factor value row
    for factor in "$@"; do
        next=()
        for row in "${rows[@]}"; do
            for value in $(echo "${factor#*=}" | tr , ' '); do next+=("$row${row:+ }${factor%%=*}=$value"); done
        done
        rows=("${next[@]}")
    done
    printf '%s\n' "${rows[@]}"
}
pairs_missing() {
    local file=$1 i j a b
    shift
    local factors=("$@")
    for ((i = 0; i < ${#factors[@]}; i++)); do
        for ((j = i + 1; j < ${#factors[@]}; j++)); do
            for a in $(echo "${factors[$i]#*=}" | tr , ' '); do
                for b in $(echo "${factors[$j]#*=}" | tr , ' '); do echo "${factors[$i]%%=*}=$a|${factors[$j]%%=*}=$b"; done
            done
        done
    done | awk -F '|' -v file="$file" '
        BEGIN { while ((getline line < file) > 0) rows[++count] = " " line " " }
        { for (i = 1; i <= count; i++) if (index(rows[i], " " $1 " ") && index(rows[i], " " $2 " ")) next; print }'
}
