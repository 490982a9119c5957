#!/bin/sh
# Starts comments.lua, and stops it in order on TERM.
#
# Plain Lua hears no signals, but it can see its input end. So this shell holds the writing end of a pipe to it and
# closes that on TERM: Lua then says farewell to furt, finishes what is in flight and ends. Should the shell be
# killed, the pipe is closed as well, and nothing is left behind. (Ctrl-C in a terminal goes to Lua too, which stops
# at once: furt will see that by its probes.)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
mkfifo "$folder/stop"

# Lua itself ignores TERM: systemd and others send it to every process of a service.
(trap '' TERM HUP; exec "${LUA:-lua5.4}" "$here/comments.lua") < "$folder/stop" &
lua=$!
exec 3> "$folder/stop"
rm -r "$folder"

stopping=
stop() { trap '' TERM HUP; stopping=yes; exec 3>&-; }
trap stop TERM HUP

# The signal ends the first wait; the second one tells how Lua ended.
status=0
wait "$lua" || status=$?
if [ "$stopping" ]; then
    status=0
    wait "$lua" || status=$?
fi
exit "$status"
