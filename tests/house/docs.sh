#!/usr/bin/env bash
# The documentation tells the truth about the tree: links lead somewhere inside the repository, headings that are linked to exist, and
# every `poise COMMAND` is one. Each check is first tried on a made-up offender.
set -u
root=${POISE_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
cd "$root" || exit 2
failures=0
complain() {
    echo "documentation: $1"
    shift
    printf '%s\n' "$@" | sed 's/^/  /'
    failures=$((failures + 1))
}

# Text outside fenced code, with its line numbers kept.
prose() { awk '/^ *```/ { fenced = !fenced; print ""; next } { print fenced ? "" : $0 }' "$1"; }
# Targets of [text](target) and [text]: target, one a line.
targets() {
    prose "$1" | grep -oE '\]\([^()[:space:]]+\)' | sed 's/^](//; s/)$//'
    prose "$1" | sed -nE 's/^\[[^]]+\]:[[:space:]]+([^[:space:]]+).*/\1/p'
}
# Anchors of a page's headings, as GitHub makes them.
anchors() { prose "$1" | sed -nE 's/^#+ +(.*)/\1/p' | tr 'A-Z' 'a-z' | sed -E 's/[^a-z0-9_ -]//g; s/ /-/g'; }
# bad_links TOP FILE...: links that lead nowhere, or out of the folder TOP.
bad_links() {
    local top file target path anchor place
    top=$(realpath "$1")
    shift
    for file in "$@"; do
        targets "$file" | while read -r target; do
            case $target in http://* | https://* | mailto:*) continue ;; esac
            path=${target%%#*} anchor=""
            [ "$target" = "$path" ] || anchor=${target#*#}
            case $path in
            /* | file:*) echo "$file: $target is no relative link"; continue ;;
            '') place=$file ;;
            *) place=$(dirname "$file")/$path ;;
            esac
            [ -e "$place" ] || { echo "$file: $target leads nowhere"; continue; }
            case $(realpath "$place")/ in "$top"/*) ;; *) echo "$file: $target leads out of the repository"; continue ;; esac
            [ -z "$anchor" ] || anchors "$place" | grep -qxF -- "$anchor" || echo "$file: there is no heading for $target"
        done
    done
}
# unknown_commands MAIN FILE...: names behind `poise` that the table of MAIN lacks.
unknown_commands() {
    local main=$1 known
    shift
    known=$(sed -nE 's/^ *\{"([a-z_-]+)",.*/\1/p' "$main")
    grep -noE '(^|[^A-Za-z0-9_.-])poise +[a-z_][a-z_-]*' "$@" /dev/null | while IFS=: read -r file line found; do
        printf '%s\n' "$known" | grep -qxF -- "${found##* }" || echo "$file:$line: there is no 'poise ${found##* }'"
    done
}
# Paths of somebody's own machine.
private_paths() { grep -nE '(^|[^A-Za-z0-9_.])/(home|root|work|mnt|Users)/' "$@" /dev/null; }

trial=$(mktemp -d)
trap 'rm -rf "$trial"' EXIT
mkdir "$trial/top"
cat >"$trial/top/page.md" <<'PAGE'
# A heading, with `code`
[good](page.md#a-heading-with-code) [gone](gone.md) [out](../outside.md) [rooted](/etc/passwd) [anchor](#no-such)
`poise sft` works, `poise fly` does not; see /home/somebody/file.
PAGE
echo '[gone](never.md)' >"$trial/outside.md"
echo '    {"sft", "-c FILE", "trains", command_sft},' >"$trial/main.c"
[ "$(bad_links "$trial/top" "$trial/top/page.md" | wc -l)" = 4 ] || complain "the check of links does not see the wrong ones" "$(bad_links "$trial/top" "$trial/top/page.md")"
[ "$(unknown_commands "$trial/main.c" "$trial/top/page.md" | wc -l)" = 1 ] || complain "the check of commands does not see the wrong one"
[ -n "$(private_paths "$trial/top/page.md")" ] || complain "the check of private paths does not see one"

pages=$(ls docs/*.md)
[ -e README.md ] && pages="README.md $pages"
# shellcheck disable=SC2086
{
    found=$(bad_links . $pages)
    [ -n "$found" ] && complain "broken links" "$found"
    found=$(unknown_commands launch/main.c $pages)
    [ -n "$found" ] && complain "commands that launch/main.c does not have" "$found"
    found=$(private_paths $pages)
    [ -n "$found" ] && complain "paths outside the repository" "$found"
}
# The other way round: every command that users see is in the manual.
for command in $(sed -nE 's/^ *\{"([a-z-]+)",.*/\1/p' launch/main.c); do
    grep -qE "poise $command\b" docs/manual.md || complain "docs/manual.md does not tell of" "poise $command"
done
[ "$failures" -eq 0 ] && echo "the documentation agrees with the tree"
exit $((failures > 0))
