# shellcheck shell=bash
# A script that is asked for --help or -h prints its first comment, and ends; scripts source this before they change folder.
for word in "$@"; do
    if [[ $word == --help || $word == -h ]]; then
        sed -n '2,${/^#/!q; /^# shellcheck/!s/^# \{0,1\}//p}' "$0"
        exit 0
    fi
done
